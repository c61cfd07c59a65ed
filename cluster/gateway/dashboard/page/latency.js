// TTFT and TPOT against their lines: every request over time, and how many at each length.
import { byId, frame, percentile, room, seconds, shape, text } from "./draw.js";
import { ordered, recent } from "./figures.js";

const SPAN_S = 120, BINS = 22, HISTOGRAM = 0.2, HISTOGRAM_GAP = 10;

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
  const counts = ["met", "missed"].map((word) => `${seen.filter((each) => verdict(each, name, target) === word).length} ${word}`).join(", ");
  byId(id).replaceChildren(plot(room(byId(id)), { seen, lines, name, target, since }, `${id.toUpperCase()} of ${seen.length} requests in two minutes${aim}: ${counts}`));
}

function verdict(request, name, target) {
  return request[target] === null ? "none" : request[name] <= request[target] ? "met" : "missed";
}

function plot(box, { seen, lines, name, target, since }, label) {
  const { width, height, left, right, top, bottom } = box, svg = frame(label, box);
  const all = [...seen.map((each) => each[name]), ...lines].filter((each) => each > 0);
  const low = Math.log10(all.length ? Math.min(...all) / 1.5 : 0.001), high = Math.log10(all.length ? Math.max(...all) * 1.5 : 1);
  const y = (value) => top + (height - top - bottom) * (1 - (Math.log10(Math.max(value, 1e-9)) - low) / (high - low));
  const edge = width - right, split = left + (edge - left) * (1 - HISTOGRAM);
  const x = (at) => left + ((split - HISTOGRAM_GAP - left) * (at - since)) / SPAN_S;
  for (const value of ticks(low, high)) {
    svg.append(shape("line", { class: "grid", x1: left, x2: edge, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, seconds(value).replace(/\.0+ /, " ")));
  }
  for (const ago of [120, 60, 0]) svg.append(shape("text", { x: x(since + SPAN_S - ago), y: height - 4, "text-anchor": ago === 120 ? "start" : ago ? "middle" : "end" }, ago ? `-${ago} s` : "now"));
  const share = { met: [], missed: [], none: [] };
  for (const each of seen) {
    const word = verdict(each, name, target);
    share[word].push(each[name]);
    svg.append(shape("circle", { class: word, r: word === "missed" ? 4 : 3, cx: x(each.at + each.wall_s), cy: y(each[name]) }));
  }
  histogram(svg, share, { low, high, y, split, edge });
  svg.append(shape("text", { x: split, y: height - 4 }, "how many"));
  for (const value of lines) svg.append(shape("line", { class: "target", x1: left, x2: edge, y1: y(value), y2: y(value) }));
  return svg;
}

// Bars beside the points, on the points' own scale: those that met their target, then those that missed it.
function histogram(svg, share, { low, high, y, split, edge }) {
  const bin = (value) => Math.min(BINS - 1, Math.max(0, Math.floor(((Math.log10(Math.max(value, 1e-9)) - low) / (high - low)) * BINS)));
  const counts = Object.entries(share).map(([word, values]) => [word, values.reduce((found, each) => { found[bin(each)] += 1; return found; }, Array(BINS).fill(0))]);
  const most = Math.max(1, ...Array.from({ length: BINS }, (_, place) => counts.reduce((sum, [, each]) => sum + each[place], 0)));
  for (let place = 0; place < BINS; place += 1) {
    const upper = y(10 ** (low + ((high - low) * (place + 1)) / BINS)), lower = y(10 ** (low + ((high - low) * place) / BINS));
    let from = split;
    for (const [word, found] of counts.filter(([, each]) => each[place])) {
      const width = ((edge - split) * found[place]) / most;
      svg.append(shape("rect", { class: `bin ${word}`, x: from, y: upper + 0.5, width, height: Math.max(1, lower - upper - 1) }));
      from += width;
    }
  }
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
