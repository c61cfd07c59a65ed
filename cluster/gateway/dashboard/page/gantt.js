// The last requests, each a line of its stages; and the same as a trace for Perfetto.
import { byId, keyed, make, number, seconds, text } from "./draw.js";
import { STAGE_WORDS } from "./latency.js";

const SHOWN = 60, MICRO = 1e6;
let chosen = "", drawn = "";

function shownOf(store) {
  const all = byId("only-missed").checked ? store.requests.filter((each) => each.met === false) : store.requests;
  return all.slice(-SHOWN).reverse();
}

export function wireGantt(store) {
  byId("only-missed").addEventListener("change", () => store.now && drawGantt(store));
  byId("export").addEventListener("click", () => download(store));
  byId("gantt").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const next = step && [...byId("gantt").querySelectorAll("button")];
    if (!next) return;
    event.preventDefault();
    next[next.indexOf(document.activeElement) + step]?.focus();
  });
}

// A window from the oldest shown to the newest end would squeeze all of them, so each starts at the left: lengths compare.
export function drawGantt(store) {
  const shown = shownOf(store), box = byId("gantt");
  const what = `${shown.length}/${shown[0]?.number}/${shown[shown.length - 1]?.number}/${store.gateway}`;
  if (what === drawn) return;
  drawn = what;
  if (!shown.length) return box.replaceChildren(make("p", "empty", "no request here yet: send one from the playground"));
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

// Stages one after the other, back from the end: what no stage explains lies before them.
function spans(request) {
  const whole = request.stages_s.reduce((sum, each) => sum + each, 0);
  let at = request.attempts > 1 ? Math.max(0, request.wall_s - whole) : 0;
  return request.stages_s.map((length, place) => {
    const found = [place, at, length];
    at += length;
    return found;
  }).filter(([, , length]) => length > 0);
}

function choose(store, key) {
  const request = store.requests.find((each) => String(each.number) === key);
  if (!request) return;
  chosen = key;
  for (const item of byId("gantt").children) item.firstChild.setAttribute("aria-pressed", String(item.dataset.key === key));
  const verdict = request.met === null ? "no targets" : request.met ? "met its targets" : `missed, lost at ${STAGE_WORDS[request.lost_at] ?? request.lost_at}`;
  const where = request.prefill_node ? (request.prefill_node === request.decode_node ? ` on ${request.decode_node}` : ` on ${request.prefill_node} → ${request.decode_node}`) : "";
  const stages = request.stages_s.map((each, place) => [each, place]).filter(([each]) => each > 0).map(([each, place]) => `${STAGE_WORDS[store.now.stages[place]]} ${seconds(each)}`).join(", ");
  text(byId("request-words"), `${request.client_id || request.id}: ${request.outcome}${request.code ? ` (${request.code})` : ""}${where}; ${number(request.prompt_tokens)} prompt tokens${request.cached_tokens ? ` (${number(request.cached_tokens)} cached)` : ""}, ${number(request.tokens)} answered; TTFT ${seconds(request.ttft_s)}, TPOT ${seconds(request.tpot_s)}; ${verdict}. ${stages}`);
}

// Chrome's trace format: a process for each node, a thread for each request. Source: the Trace Event Format document.
export function traceOf(requests, stages) {
  const pids = new Map(), events = [];
  const pidOf = (name) => {
    if (!pids.has(name)) {
      pids.set(name, pids.size + 1);
      events.push({ ph: "M", pid: pids.get(name), tid: 0, name: "process_name", args: { name } });
    }
    return pids.get(name);
  };
  for (const request of requests) {
    for (const [place, from, length] of spans(request)) {
      const where = place === 0 ? "gateway" : place < 3 ? request.prefill_node : request.decode_node;
      events.push({ ph: "X", pid: pidOf(where || "gateway"), tid: request.number, cat: request.outcome, name: stages[place], ts: (request.at + from) * MICRO, dur: length * MICRO, args: { request: request.id, met: request.met, lost_at: request.lost_at } });
    }
  }
  return { displayTimeUnit: "ms", traceEvents: events };
}

function download(store) {
  const blob = new Blob([JSON.stringify(traceOf(store.requests, store.now?.stages ?? []))], { type: "application/json" });
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = "penstock-trace.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
