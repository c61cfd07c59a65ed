// Handoffs of the last minute, drawn from the nodes that prefilled to those that decoded.
import { byId, frame, make, shape, text } from "./draw.js";

const SPAN_S = 60, ROW = 22, GAP = 8, NODE = 104, HEAD = 4, MOST_NODES = 24;

// The answered requests of the last minute that were prefilled on one node and decoded on another.
export function handoffs(store) {
  return answered(store).filter((each) => each.prefill_node !== each.decode_node);
}

function answered(store) {
  const since = store.now.now - SPAN_S;
  return store.requests.filter((each) => each.at + each.wall_s >= since && each.prefill_node && each.decode_node);
}

export function drawHandoffs(store) {
  const moved = handoffs(store), stayed = answered(store).length - moved.length, place = byId("handoffs");
  const flows = new Map();
  for (const each of moved) {
    const key = `${each.prefill_node}\n${each.decode_node}`;
    flows.set(key, (flows.get(key) ?? 0) + 1);
  }
  const stay = stayed ? `${stayed} decoded where their prompts were computed` : "";
  if (!flows.size) return place.replaceChildren(make("p", "quiet", `no handoff in the last minute${stay ? `; ${stay}` : ""}`));
  const found = [...flows].map(([key, count]) => [...key.split("\n"), count]).sort(([a, b], [c, d]) => (a + b).localeCompare(c + d, "en", { numeric: true }));
  const words = `${moved.length} handoffs in the last minute${stay ? `; ${stay}` : ""}`;
  if (!place.querySelector("svg")) place.replaceChildren(make("p", "quiet"), shape("svg", {}));
  text(place.firstChild, words);
  return place.lastChild.replaceWith(picture(found, place.clientWidth, words, new Map(store.now.nodes.map((node) => [node.name, node]))));
}

// Two columns of nodes; an arrow is as thick as its share of the most that any had.
function picture(flows, room, words, nodes) {
  const names = (column) => [...new Set(flows.map((each) => each[column]))].slice(0, MOST_NODES);
  const from = names(0), to = names(1), most = Math.max(...flows.map(([, , count]) => count));
  const width = Math.min(Math.max(260, room), 640), height = Math.max(from.length, to.length) * (ROW + GAP);
  const said = flows.map(([a, b, count]) => `${a} to ${b} ${count}`).join(", ");
  const svg = frame(`${words}: ${said}`, { width, height });
  svg.setAttribute("width", width);
  const middle = (list, name) => ((list.indexOf(name) + 0.5) * height) / list.length;
  for (const [a, b, count] of flows.filter(([a, b]) => from.includes(a) && to.includes(b))) {
    const x1 = NODE, x2 = width - NODE - HEAD - 6, y1 = middle(from, a), y2 = middle(to, b), bend = (x1 + x2) / 2, thick = 1.5 + (8 * count) / most;
    svg.append(shape("path", { class: "flow", d: `M${x1} ${y1}C${bend} ${y1} ${bend} ${y2} ${x2} ${y2}`, "stroke-width": thick }));
    svg.append(shape("path", { class: "flow-head", d: `M${x2} ${y2 - HEAD - thick / 2}l${HEAD + 6} ${HEAD + thick / 2}l${-HEAD - 6} ${HEAD + thick / 2}z` }));
    const at = 0.15 + (0.4 * (to.indexOf(b) + 0.5)) / to.length;
    const [x, y] = onCurve(at);
    svg.append(shape("text", { class: "flow-count", x: x1 + (x2 - x1) * x, y: y1 + (y2 - y1) * y + 4, "text-anchor": "middle" }, String(count)));
  }
  for (const [list, x] of [[from, 0], [to, width - NODE]]) {
    for (const name of list) svg.append(...box(name, x, middle(list, name), nodes.get(name)));
  }
  return svg;
}

// The point of such a curve at `part` of its parameter, as shares of its width and its height.
function onCurve(part) {
  return [1.5 * part * (1 - part) + part ** 3, part * part * (3 - 2 * part)];
}

function box(name, x, y, node) {
  const role = node?.up ? node.role : "closed";
  return [
    shape("rect", { class: `area-${role}`, x, y: y - ROW / 2, width: NODE, height: ROW, rx: 4 }),
    shape("text", { class: "on-area", x: x + NODE / 2, y: y + 4, "text-anchor": "middle" }, name.length > 14 ? `${name.slice(0, 13)}…` : name),
  ];
}
