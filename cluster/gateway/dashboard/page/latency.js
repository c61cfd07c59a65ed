// TTFT and TPOT against their lines, and where the time of requests goes.
import { byId, frame, keyed, legend, make, number, percentile, room, seconds, shape, text } from "./draw.js";
import { ordered, recent } from "./figures.js";

const SPAN_S = 120;
export const STAGE_WORDS = { admit: "admit", queue_prefill: "queue", prefill: "prefill", reserve: "reserve", handoff: "handoff", queue_decode: "decode queue", decode: "decode" };

export function drawLatency(store) {
  scatter(store, "ttft", "ttft_s", "slo_ttft_s");
  scatter(store, "tpot", "tpot_s", "slo_tpot_s");
}

function scatter(store, id, name, target) {
  const since = store.now.now - SPAN_S;
  const seen = store.requests.filter((each) => each[name] !== null && each.at + each.wall_s >= since);
  const lines = [...new Set(seen.map((each) => each[target]).filter((each) => each !== null))];
  const values = ordered(recent(store), name);
  const parts = [["p50", 0.5], ["p90", 0.9], ["p99", 0.99]].map(([word, part]) => `${word} ${seconds(percentile(values, part))}`);
  const aim = lines.length === 1 ? `, target ${seconds(lines[0])}` : lines.length ? `, ${lines.length} targets` : "";
  text(byId(`${id}-words`), values.length ? `${parts.join(", ")}${aim}; of ${values.length} requests` : "no request has ended yet");
  byId(id).replaceChildren(plot(room(byId(id)), { seen, lines, name, target, since }, `${id.toUpperCase()} of ${seen.length} requests in two minutes${aim}`));
}

function plot(box, { seen, lines, name, target, since }, label) {
  const { width, height, left, right, top, bottom } = box, svg = frame(label, box);
  const all = [...seen.map((each) => each[name]), ...lines].filter((each) => each > 0);
  const low = Math.log10(all.length ? Math.min(...all) / 1.5 : 0.001), high = Math.log10(all.length ? Math.max(...all) * 1.5 : 1);
  const y = (value) => top + (height - top - bottom) * (1 - (Math.log10(Math.max(value, 1e-9)) - low) / (high - low));
  const x = (at) => left + ((width - left - right) * (at - since)) / SPAN_S;
  for (const value of ticks(low, high)) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, seconds(value)));
  }
  for (const ago of [120, 60, 0]) svg.append(shape("text", { x: x(since + SPAN_S - ago), y: height - 4, "text-anchor": ago ? "middle" : "end" }, ago ? `-${ago} s` : "now"));
  for (const value of lines) svg.append(shape("line", { class: "target", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
  for (const each of seen) {
    const verdict = each[target] === null ? "none" : each[name] <= each[target] ? "met" : "missed";
    svg.append(shape("circle", { class: verdict, r: verdict === "missed" ? 4 : 3, cx: x(each.at + each.wall_s), cy: y(each[name]) }));
  }
  return svg;
}

function ticks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
    for (const factor of [1, 2, 5]) found.push(factor * 10 ** power);
  }
  const inside = found.filter((each) => Math.log10(each) >= low && Math.log10(each) <= high);
  const every = Math.ceil(inside.length / 5);
  return inside.filter((_, place) => place % every === 0);
}

export function drawStages(store) {
  const few = recent(store).filter((each) => each.outcome === "finished"), names = store.now.stages;
  legend(byId("stage-legend"), names.map((name, place) => [`fill-${place}`, STAGE_WORDS[name] ?? name]));
  const means = names.map((_, place) => few.reduce((sum, each) => sum + each.stages_s[place], 0) / (few.length || 1));
  const mean = (name) => few.reduce((sum, each) => sum + (each[name] ?? 0), 0) / (few.length || 1);
  const wall = mean("wall_s"), rest = Math.max(0, wall - means.reduce((sum, each) => sum + each, 0));
  const parts = [...names.map((name, place) => [STAGE_WORDS[name] ?? name, means[place], `fill-${place}`]), ["unaccounted", rest, "fill-rest"]];
  const whole = parts.reduce((sum, [, each]) => sum + each, 0), targets = [...new Set(few.map((each) => each.slo_ttft_s).filter((each) => each !== null))];
  const against = targets.length === 1 ? `; until the first token ${seconds(mean("ttft_s"))} of the target's ${seconds(targets[0])}` : "";
  text(byId("stages-words"), few.length ? `a request takes ${seconds(wall)}${against}; mean of ${few.length}` : "no request has finished yet");
  const box = byId("stages");
  if (!box.children.length) box.append(make("div", "stack"), make("div", "rows"));
  parts.forEach(([, each, fill], place) => {
    const bar = box.firstChild.children[place] ?? box.firstChild.appendChild(make("span", fill));
    bar.style.width = whole ? `${(100 * each) / whole}%` : "0";
  });
  rows(box.lastChild, parts.map(([name, each, fill]) => [name, whole ? each / whole : 0, seconds(each), fill]));
}

export function drawLosses(store) {
  const parts = store.now.parts.penstock_slo_misses, box = byId("losses");
  const whole = parts.reduce((sum, [, value]) => sum + value, 0);
  if (!box.children.length) box.append(make("p", "quiet"), make("div", "rows"));
  const refused = store.now.parts.penstock_refusals.map(([code, value]) => `${code} ${number(value)}`).join(", ");
  text(box.firstChild, `${whole ? `${number(whole)} requests missed a target since the start` : "no target was missed"}${refused ? `; refused: ${refused}` : ""}`);
  const sorted = [...parts].sort((a, b) => b[1] - a[1]);
  rows(box.lastChild, sorted.map(([stage, value]) => [STAGE_WORDS[stage] ?? stage, value / whole, number(value), "fill-bad"]));
}

function rows(box, entries) {
  const keys = entries.flatMap(([name]) => [`${name}/name`, `${name}/track`, `${name}/amount`]);
  const cells = keyed(box, keys, (key) => make("span", key.split("/")[1]));
  entries.forEach(([name, part, amount, fill], place) => {
    const [head, track, value] = cells.slice(3 * place, 3 * place + 3);
    text(head, name);
    text(value, amount);
    const bar = track.firstChild ?? track.appendChild(make("span"));
    bar.className = fill;
    bar.style.width = `${100 * part}%`;
  });
}
