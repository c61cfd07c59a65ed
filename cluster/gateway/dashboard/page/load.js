// What came, what was served and what of it was in time, per second; and what the controller forecast.
import { byId, legend, make, shape, text } from "./draw.js";
import { axes, line, rates, roundUp, seen } from "./timeline.js";

const SPAN_S = 10;
const LINES = [["line-came", "came", "offered"], ["line-ended", "ended", "ended"], ["line-met", "met", "goodput"]];

export function drawLoad(store) {
  const samples = seen(store), place = byId("load");
  legend(byId("load-legend"), [...LINES.map(([className, , words]) => [className, words]), ["fill-forecast", "forecast goodput, up to the rate that was planned for"]]);
  if (samples.length < 2) return place.replaceChildren(make("p", "empty", "one moment: a sample comes each second"));
  const found = LINES.map(([className, name, words]) => [className, words, rates(samples, name, SPAN_S)]);
  const band = forecasts(store, samples[samples.length - 1].at);
  const begin = samples[0].at, shown = band.filter((each) => each.to > begin);
  const values = [...found.flatMap(([, , points]) => points.map(([, value]) => value)), ...shown.map((each) => each.planned)];
  const said = found.map(([, words, points]) => `${words} ${points[points.length - 1][1].toFixed(2)}`).join(", ");
  const chart = axes(place, `Requests per second: now ${said}`, samples, roundUp(Math.max(1, ...values)), (value) => String(Number(value.toPrecision(3))));
  for (const each of shown) bandOf(chart, each);
  for (const [className, , points] of found) line(chart, className, points);
  const last = band[band.length - 1];
  text(byId("load-words"), `requests per second: ${said}${last ? `; forecast ${last.goodput.toPrecision(3)} of ${last.planned.toPrecision(3)} planned for` : ""}`);
  return place.replaceChildren(chart.svg);
}

// Each forecast holds until the next decision that makes one.
function forecasts(store, end) {
  const made = store.decisions.map((each) => ({ from: each.at, planned: fact(each, "planned_rps"), goodput: each.goodput_after_rps })).filter((each) => each.planned !== undefined);
  return made.map((each, place) => ({ ...each, goodput: Math.min(each.goodput, each.planned), to: made[place + 1]?.from ?? end }));
}

function fact(decision, name) {
  return decision.facts.find(([known]) => known === name)?.[1];
}

function bandOf(chart, { from, to, planned, goodput }) {
  const x = chart.x(Math.max(from, chart.begin)), width = chart.x(to) - x, thick = Math.max(2, chart.y(goodput) - chart.y(planned));
  if (width > 0) chart.svg.append(shape("rect", { class: "forecast", x, width, y: chart.y(planned), height: thick }));
}
