// How many nodes of each role there were, with a mark at every decision, and what each decision said.
import { byId, keyed, legend, make, shape, text } from "./draw.js";
import { ago, axes, line, seen, stack } from "./timeline.js";

export const ROLES = ["prefill", "decode", "mixed", "closed"];
const SHOWN = 40, ARROW = 5;

export function drawRoles(store) {
  const samples = seen(store), place = byId("roles");
  legend(byId("role-legend"), [...ROLES.map((role) => [`role-${role}`, role]), ["role-wanted", "wanted"]]);
  if (samples.length < 2) return place.replaceChildren(make("p", "empty", "one moment: a sample comes each second"));
  const most = Math.max(1, ...samples.map((each) => Math.max(each.wanted ?? 0, ROLES.reduce((sum, role) => sum + (each.roles[role] ?? 0), 0))));
  const last = samples[samples.length - 1].roles;
  const label = `Nodes by role: now ${ROLES.filter((role) => last[role]).map((role) => `${last[role]} ${role}`).join(", ") || "none"}`;
  const chart = axes(place, label, samples, most, (value) => (Number.isInteger(value) ? String(value) : ""));
  const kinds = ROLES.filter((role) => samples.some((each) => each.roles[role]));
  stack(chart, samples, kinds.map((role) => [`area-${role}`, (each) => each.roles[role] ?? 0]));
  const wanted = samples.filter((each) => each.wanted !== null);
  line(chart, "wanted", wanted.flatMap((each, at) => (at ? [[each.at, wanted[at - 1].wanted], [each.at, each.wanted]] : [[each.at, each.wanted]])));
  for (const each of store.decisions.filter((decision) => decision.at >= chart.begin && decision.steps.length)) mark(chart, each);
  chart.svg.append(...labels(last, chart.edge - 6, chart.y));
  return place.replaceChildren(chart.svg);
}

// A line where it was decided, and an arrow on it in the colour of the role that nodes got.
function mark(chart, decision) {
  const x = chart.x(decision.at), [, was, becomes] = decision.steps[0], group = shape("g", {});
  group.append(shape("title", {}, `${decision.kind}: ${decision.reason}`));
  group.append(shape("line", { class: decision.kind === "advice" ? "mark advice" : "mark", x1: x, x2: x, y1: chart.top, y2: chart.floor }));
  if (was !== becomes) group.append(shape("path", { class: `arrow area-${becomes}`, d: `M${x - ARROW} ${chart.top - 8}h${2 * ARROW}l${-ARROW} ${ARROW + 3}z` }));
  chart.svg.append(group);
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
    text(item.children[1], `${said(each)} `);
    text(item.children[2], `${ago(store.now.now - each.at)}`);
  }
}

export function said(decision) {
  const steps = decision.steps.map(([node, was, becomes]) => (was === becomes ? `${node} ${was}, another budget` : `${node} ${was} → ${becomes}`)).join("; ");
  const gain = decision.goodput_after_rps ? ` (goodput ${decision.goodput_before_rps.toPrecision(3)} → ${decision.goodput_after_rps.toPrecision(3)}/s)` : "";
  return `${decision.reason}${steps ? `: ${steps}` : ""}${gain}`;
}

// The ratio that is, and the one that is meant: of slots whose node is not there yet, or that was only advised.
export function ratioWords(store) {
  const { nodes, controller } = store.now, last = store.decisions[store.decisions.length - 1];
  const now = counted(nodes.filter((node) => node.up).map((node) => node.role));
  const advised = new Map(last?.kind === "advice" ? last.steps.map(([node, , becomes]) => [node, becomes]) : []);
  const meant = counted(nodes.map((node) => advised.get(node.name) ?? node.role));
  const aim = meant === now ? "" : advised.size ? ` (advised: ${meant})` : ` → ${meant}`;
  return `${now || "no nodes"}${aim}; controller ${controller}`;
}

function counted(roles) {
  return ROLES.map((role) => [roles.filter((each) => each === role).length, role]).filter(([num]) => num).map(([num, role]) => `${num} ${role}`).join(" : ");
}
