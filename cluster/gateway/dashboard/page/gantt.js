// The last requests: over time, and the newest as lines of their stages; one of them can be chosen.
import { byId, keyed, make, seconds, text } from "./draw.js";
import { drawLanes, wireLanes } from "./lanes.js";
import { STAGE_WORDS } from "./stages.js";
import { download, drawTrace, spans, wordsOf } from "./trace.js";

const SHOWN = 60;
let chosen = "", drawn = "", gateway = "";

function asked(store) {
  return byId("only-missed").checked ? store.requests.filter((each) => each.met === false) : store.requests;
}

export function wireGantt(store) {
  const again = () => store.now && drawGantt(store);
  byId("only-missed").addEventListener("change", again);
  byId("lanes-span").addEventListener("change", again);
  byId("export").addEventListener("click", () => download(store.requests, store.now?.stages ?? [], "penstock-trace.json"));
  byId("export-one").addEventListener("click", () => download(store.requests.filter((each) => String(each.number) === chosen), store.now.stages, `penstock-request-${chosen}.json`));
  byId("close-trace").addEventListener("click", () => choose(store, ""));
  wireLanes((key) => choose(store, key), () => chosen);
  byId("gantt").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const next = step && [...byId("gantt").querySelectorAll("button")];
    if (!next) return;
    event.preventDefault();
    next[next.indexOf(document.activeElement) + step]?.focus();
  });
}

export function drawGantt(store) {
  if (gateway !== store.gateway) choose(store, "");
  gateway = store.gateway;
  const all = asked(store);
  drawLanes(store, all, chosen);
  drawList(store, all.slice(-SHOWN).reverse());
}

// A window from the oldest shown to the newest end would squeeze all of them, so each starts at the left: lengths compare.
function drawList(store, shown) {
  const box = byId("gantt");
  const what = `${shown.length}/${shown[0]?.number}/${shown[shown.length - 1]?.number}/${store.gateway}`;
  if (what === drawn) return;
  drawn = what;
  if (!shown.length) return box.replaceChildren(make("p", "empty", byId("only-missed").checked ? "none of the last requests missed a target" : "no request here yet: send one from the playground"));
  if (box.firstChild?.className === "empty") box.replaceChildren();
  const longest = Math.max(...shown.map((each) => each.wall_s), 1e-6);
  const known = new Map(shown.map((each) => [String(each.number), each]));
  for (const item of keyed(box, [...known.keys()], () => row(store))) fill(item, known.get(item.dataset.key), longest, store);
}

function row(store) {
  const item = make("div"), line = make("button");
  item.setAttribute("role", "listitem");
  line.type = "button";
  line.append(make("span", "name mono"), make("span", "lane"), make("span", "wall"));
  line.addEventListener("click", () => choose(store, item.dataset.key));
  line.addEventListener("focus", () => choose(store, item.dataset.key));
  item.append(line);
  return item;
}

function fill(item, request, longest, store) {
  const line = item.firstChild, [name, lane, wall] = line.children;
  line.className = request.met === false || request.outcome === "failed" ? "lost" : "";
  line.setAttribute("aria-pressed", String(chosen === item.dataset.key));
  text(name, request.client_id || request.id.slice(0, 10));
  text(wall, seconds(request.wall_s));
  lane.replaceChildren(...spans(request).map(([place, from, length]) => {
    const bar = make("span", `fill-${place}`);
    bar.style.left = `${(100 * from) / longest}%`;
    bar.style.width = `${(100 * length) / longest}%`;
    bar.title = `${STAGE_WORDS[store.now.stages[place]]} ${seconds(length)}`;
    return bar;
  }));
}

function choose(store, key) {
  const request = store.requests.find((each) => String(each.number) === key);
  chosen = request ? key : "";
  for (const item of byId("gantt").querySelectorAll("[data-key]")) item.firstChild.setAttribute("aria-pressed", String(item.dataset.key === chosen));
  text(byId("request-words"), request ? wordsOf(request, store.now.stages) : "");
  drawTrace(request, store.now?.stages ?? []);
  if (store.now) drawLanes(store, asked(store), chosen);
}
