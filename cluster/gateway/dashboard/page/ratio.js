// How many nodes of each role there were, with a mark at every decision, and what each decision said.
import { byId, frame, keyed, make, room, shape, text } from "./draw.js";

const ROLES = ["prefill", "decode", "mixed", "closed"];
const LEAST_SPAN_S = 60, SHOWN = 40;

export function drawRoles(store) {
  const samples = store.samples;
  if (samples.length < 2) return byId("roles").replaceChildren(make("p", "empty", "one moment: a sample comes each second"));
  const box = room(byId("roles")), { width, height, left, right, top, bottom } = box;
  const end = samples[samples.length - 1].at, begin = Math.min(samples[0].at, end - LEAST_SPAN_S);
  const most = Math.max(1, ...samples.map((each) => ROLES.reduce((sum, role) => sum + (each.roles[role] ?? 0), 0)));
  const x = (at) => left + ((width - left - right) * (at - begin)) / (end - begin);
  const y = (value) => top + (height - top - bottom) * (1 - value / most);
  const last = samples[samples.length - 1].roles;
  const svg = frame(`Nodes by role: now ${ROLES.filter((role) => last[role]).map((role) => `${last[role]} ${role}`).join(", ") || "none"}`, box);
  const base = samples.map(() => 0);
  for (const role of ROLES) {
    if (samples.some((each) => each.roles[role])) svg.append(area(role, samples, base, x, y));
  }
  for (let value = 0; value <= most; value += Math.ceil(most / 4)) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const each of store.decisions.filter((decision) => decision.at >= begin && decision.steps.length)) {
    svg.append(shape("line", { class: "mark", x1: x(each.at), x2: x(each.at), y1: top, y2: height - bottom }));
  }
  svg.append(shape("text", { x: left, y: height - 4 }, ago(end - begin)));
  svg.append(shape("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "now"));
  svg.append(...labels(last, width - right - 6, y));
  return byId("roles").replaceChildren(svg);
}

function area(role, samples, base, x, y) {
  const upper = [], lower = [];
  samples.forEach((each, place) => {
    const from = x(each.at), to = x(samples[place + 1]?.at ?? each.at), top = base[place] + (each.roles[role] ?? 0);
    upper.push(`${from},${y(top)}`, `${to},${y(top)}`);
    lower.unshift(`${to},${y(base[place])}`, `${from},${y(base[place])}`);
    base[place] = top;
  });
  return shape("polygon", { class: `area-${role}`, points: [...upper, ...lower].join(" ") });
}

function labels(last, x, y) {
  let base = 0;
  return ROLES.filter((role) => last[role]).map((role) => {
    const middle = base + last[role] / 2;
    base += last[role];
    return shape("text", { class: "on-area", x, y: y(middle) + 4, "text-anchor": "end" }, `${last[role]} ${role}`);
  });
}

export function drawDecisions(store) {
  const list = byId("decisions"), shown = store.decisions.slice(-SHOWN).reverse();
  if (!shown.length) return list.replaceChildren(make("li", "empty", `no decision yet; the controller is ${store.now.controller}`));
  if (list.firstChild?.className === "empty") list.replaceChildren();
  const known = new Map(shown.map((each) => [String(each.number), each]));
  for (const item of keyed(list, [...known.keys()], () => make("li"))) {
    const each = known.get(item.dataset.key);
    if (!item.children.length) item.append(make("b", "", each.kind), make("span", "reason"), make("span", "quiet"));
    const steps = each.steps.map(([node, was, becomes]) => (was === becomes ? `${node} ${was}, another budget` : `${node} ${was} → ${becomes}`)).join("; ");
    const gain = each.goodput_after_rps ? ` (goodput ${each.goodput_before_rps.toPrecision(3)} → ${each.goodput_after_rps.toPrecision(3)}/s)` : "";
    text(item.children[1], `${each.reason}${steps ? `: ${steps}` : ""}${gain} `);
    text(item.children[2], `${ago(store.now.now - each.at)}`);
  }
}

function ago(span) {
  if (span < 90) return `${Math.max(0, span).toFixed(0)} s ago`;
  return span < 5400 ? `${(span / 60).toFixed(0)} min ago` : `${(span / 3600).toFixed(1)} h ago`;
}
