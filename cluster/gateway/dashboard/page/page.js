// The dashboard's entry: asks for the state once a second, keeps what it was told, and draws it.
import { drawCards, drawTotals } from "./figures.js";
import { drawGantt, wireGantt } from "./gantt.js";
import { drawLatency, drawLosses, drawStages } from "./latency.js";
import { drawNodes, drawTransfers } from "./nodes.js";
import { drawDecisions, drawRoles } from "./ratio.js";
import { wirePlayground } from "./playground.js";
import { byId, text } from "./draw.js";

const EVERY_MS = 1000, PATIENCE_MS = 5000;
const KEEP = { samples: 600, requests: 512, decisions: 256 };
const KEY = "penstock-key", THEME = "penstock-theme";
const store = empty("");
let wake = () => {};

function empty(gateway) {
  return { gateway, now: null, before: null, samples: [], requests: [], decisions: [], downSince: new Map(), deaths: new Map() };
}

function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

function last(list) {
  return list.length ? list[list.length - 1].number : 0;
}

async function ask() {
  const seen = new URLSearchParams({ sample: last(store.samples), request: last(store.requests), decision: last(store.decisions) });
  const signal = AbortSignal.timeout(PATIENCE_MS);
  return fetch(`dashboard/state.json?${seen}`, { headers: authorization(), cache: "no-store", signal });
}

function take(told) {
  if (told.gateway !== store.gateway) Object.assign(store, empty(told.gateway));
  store.before = store.now;
  store.now = told;
  for (const [name, limit] of Object.entries(KEEP)) {
    const newest = last(store[name]);
    store[name].push(...told[name].filter((each) => each.number > newest));
    store[name].splice(0, store[name].length - limit);
  }
  for (const node of told.nodes) noteDeaths(node, told.now);
}

function noteDeaths(node, now) {
  const known = store.deaths.get(node.name);
  if (!node.up || (known !== undefined && node.deaths > known)) store.downSince.set(node.name, now);
  store.deaths.set(node.name, node.deaths);
}

function draw() {
  const now = store.now;
  text(byId("model"), now.model.name);
  const [word, mood] = now.draining ? ["draining", "bad"] : now.serving ? ["serving", "good"] : ["not serving", "bad"];
  showState(now.infeasible ? `${word}, out of reach` : word, now.infeasible ? "bad" : mood);
  const roles = now.nodes.filter((node) => node.up).map((node) => node.role);
  const counts = ["prefill", "decode", "mixed", "closed"].map((role) => [roles.filter((each) => each === role).length, role]);
  const words = counts.filter(([number]) => number).map(([number, role]) => `${number} ${role}`).join(" : ");
  text(byId("ratio"), `${words || "no nodes"}${now.wanted_nodes === null ? "" : `, ${now.wanted_nodes} wanted`}; controller ${now.controller}`);
  text(byId("footer"), `Penstock ${now.version}`);
  drawCards(store);
  drawNodes(store);
  drawLatency(store);
  drawStages(store);
  drawLosses(store);
  drawRoles(store);
  drawDecisions(store);
  drawTransfers(store);
  drawGantt(store);
  drawTotals(store);
}

function showState(words, mood) {
  text(byId("state"), words);
  byId("state").className = `badge ${mood}`;
}

function askForKey(problem) {
  const form = byId("ask-key");
  text(byId("key-problem"), sessionStorage.getItem(KEY) ? problem : "");
  if (form.hidden) {
    form.hidden = false;
    byId("main").hidden = true;
    byId("key").focus();
  }
  showState("locked", "bad");
}

async function look() {
  let status, told;
  try {
    const answer = await ask();
    status = answer.status;
    told = await answer.json();
  } catch {
    return showState("no answer", "bad");
  }
  if (status === 401 || status === 403) return askForKey(told.error.message);
  if (status !== 200) return showState(`no answer: ${told.error.message}`, "bad");
  byId("ask-key").hidden = true;
  byId("main").hidden = false;
  take(told);
  return draw();
}

async function run() {
  for (;;) {
    const next = new Promise((resolve) => { wake = resolve; setTimeout(resolve, EVERY_MS); });
    if (!document.hidden) await look().catch((error) => console.error(error));
    await next;
  }
}

function wireTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)"), choice = byId("theme");
  const apply = () => { document.documentElement.dataset.theme = choice.value || (dark.matches ? "dark" : "light"); };
  choice.value = localStorage.getItem(THEME) || "";
  choice.addEventListener("change", () => { localStorage.setItem(THEME, choice.value); apply(); });
  dark.addEventListener("change", apply);
  apply();
}

byId("ask-key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  wake();
});
document.addEventListener("visibilitychange", () => wake());
wireTheme();
wireGantt(store);
wirePlayground(store, authorization);
run();
