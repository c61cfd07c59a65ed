// The dashboard's entry: asks for the state once a second, keeps what it was told, and draws it.
import { drawCards, drawTotals } from "./figures.js";
import { drawGantt, wireGantt } from "./gantt.js";
import { drawHandoffs } from "./handoffs.js";
import { drawLatency } from "./latency.js";
import { drawLoad } from "./load.js";
import { drawNodes, drawTransfers } from "./nodes.js";
import { drawLeases, drawPool } from "./pool.js";
import { drawDecisions, drawRoles, ratioWords, said } from "./ratio.js";
import { wireResults } from "./results.js";
import { drawLosses, drawStages } from "./stages.js";
import { wantsMinutes, wireRange } from "./timeline.js";
import { wirePlayground } from "./playground.js";
import { byId, seconds, text } from "./draw.js";

const EVERY_MS = 1000, PATIENCE_MS = 5000;
const KEEP = { samples: 600, minutes: 1440, requests: 1024, decisions: 256 };
const KEY = "penstock-key", THEME = "penstock-theme";
const store = empty("");
let wake = () => {};

function empty(gateway) {
  return { gateway, now: null, before: null, samples: [], minutes: [], requests: [], decisions: [], downSince: new Map(), deaths: new Map() };
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
  if (wantsMinutes()) seen.set("minute", last(store.minutes));
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
  text(byId("ratio"), `${ratioWords(store)}${now.wanted_nodes === null ? "" : `; ${now.wanted_nodes} nodes wanted`}`);
  text(byId("targets"), now.targets.length ? `Targets: ${now.targets.map((each) => `${each.class} TTFT ${seconds(each.ttft_s)}, TPOT ${seconds(each.tpot_s)}`).join("; ")}` : "Targets: those that requests name");
  const decision = store.decisions[store.decisions.length - 1];
  text(byId("last-decision"), decision ? `Last decision: ${decision.kind}: ${said(decision)}` : "");
  text(byId("footer"), `Penstock ${now.version}`);
  drawCards(store);
  drawNodes(store);
  drawHandoffs(store);
  drawLoad(store);
  drawLatency(store);
  drawStages(store);
  drawLosses(store);
  drawRoles(store);
  drawDecisions(store);
  drawPool(store);
  drawLeases(store);
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
wireRange(() => wake());
wireResults();
wirePlayground(store, authorization);
run();
