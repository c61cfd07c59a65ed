// Charts over time: which samples they are drawn from, their axes, and the shapes in them.
import { byId, frame, room, shape } from "./draw.js";

const SECONDS_KEPT = 600, LEAST_SPAN_S = 60, MOST_LINES = 4;

export function wireRange(draw) {
  byId("range").addEventListener("change", draw);
}

function asked() {
  return Number(byId("range").value);
}

// Whether what is drawn needs the samples that come once a minute.
export function wantsMinutes() {
  return asked() > SECONDS_KEPT;
}

export function seen(store) {
  const last = store.samples[store.samples.length - 1];
  if (!last) return [];
  const all = wantsMinutes() ? [...store.minutes.filter((each) => each.number < last.number), last] : store.samples;
  return all.filter((each) => each.at >= last.at - asked());
}

// Axes over the time of these samples and from 0 to `most`; `words` writes a value of the second.
export function axes(place, label, samples, most, words) {
  const box = room(place), { width, height, left, right, top, bottom } = box, svg = frame(label, box);
  const end = samples[samples.length - 1].at, begin = Math.min(samples[0].at, end - LEAST_SPAN_S);
  const x = (at) => left + ((width - left - right) * (at - begin)) / (end - begin);
  const y = (value) => top + (height - top - bottom) * (1 - value / most);
  for (const value of lines(most)) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, words(value)));
  }
  svg.append(shape("text", { x: left, y: height - 4 }, ago(end - begin)));
  svg.append(shape("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, ago((end - begin) / 2)));
  svg.append(shape("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "now"));
  return { svg, x, y, begin, end, top, floor: height - bottom, edge: width - right };
}

// The least round number that is not below, so that a chart does not change its scale with every sample.
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return power * [1, 2, 5, 10].find((each) => each * power >= value * 0.999);
}

function lines(most) {
  const step = roundUp(most / MOST_LINES), found = [];
  for (let value = 0; value <= most * 1.001; value += step) found.push(value);
  return found;
}

// Areas of so many kinds, one on the other; each sample holds until the next one.
export function stack(chart, samples, kinds) {
  const base = samples.map(() => 0);
  for (const [className, value] of kinds) {
    const upper = [], lower = [];
    samples.forEach((each, place) => {
      const from = chart.x(each.at), to = chart.x(samples[place + 1]?.at ?? each.at), top = base[place] + value(each);
      upper.push(`${from},${chart.y(top)}`, `${to},${chart.y(top)}`);
      lower.unshift(`${to},${chart.y(base[place])}`, `${from},${chart.y(base[place])}`);
      base[place] = top;
    });
    chart.svg.append(shape("polygon", { class: className, points: [...upper, ...lower].join(" ") }));
  }
}

export function line(chart, className, points) {
  const found = points.map(([at, value]) => `${chart.x(at).toFixed(1)},${chart.y(value).toFixed(1)}`);
  if (found.length > 1) chart.svg.append(shape("polyline", { class: className, points: found.join(" ") }));
}

// A counter's rise per second, each over `span` before it, or since the sample before where that is longer ago.
export function rates(samples, name, span) {
  const found = [];
  let from = 0;
  for (let place = 1; place < samples.length; place += 1) {
    while (from + 1 < place && samples[from + 1].at <= samples[place].at - span) from += 1;
    const seconds = samples[place].at - samples[from].at;
    if (seconds > 0) found.push([samples[place].at, Math.max(0, samples[place][name] - samples[from][name]) / seconds]);
  }
  return found;
}

export function ago(span) {
  if (span < 90) return `${Math.max(0, span).toFixed(0)} s ago`;
  return span < 5400 ? `${(span / 60).toFixed(0)} min ago` : `${(span / 3600).toFixed(1)} h ago`;
}
