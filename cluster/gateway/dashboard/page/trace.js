// One request in detail: its stages in their order, where each ran, and its targets; and requests as traces for Perfetto.
import { byId, frame, keyed, make, number, seconds, share, shape, text } from "./draw.js";
import { STAGE_WORDS } from "./stages.js";

const MICRO = 1e6, ROW = 20, LEFT = 96, RIGHT = 12, FOOT = 20, LABEL = 76;

// Stages one after the other; what no stage of the last attempt explains lies before them.
export function spans(request) {
  const whole = request.stages_s.reduce((sum, each) => sum + each, 0);
  let at = request.attempts > 1 ? Math.max(0, request.wall_s - whole) : 0;
  return request.stages_s.map((length, place) => {
    const found = [place, at, length];
    at += length;
    return found;
  }).filter(([, , length]) => length > 0);
}

function whereOf(request, place) {
  return (place === 0 ? "" : place < 3 ? request.prefill_node : request.decode_node) || "gateway";
}

export function wordsOf(request, stages) {
  const verdict = request.met === null ? "no targets" : request.met ? "met its targets" : `missed, lost at ${STAGE_WORDS[request.lost_at] ?? request.lost_at}`;
  const where = request.prefill_node ? (request.prefill_node === request.decode_node ? ` on ${request.decode_node}` : ` on ${request.prefill_node} → ${request.decode_node}`) : "";
  const tries = request.attempts > 1 ? `, attempt ${request.attempts}` : "";
  const took = spans(request).map(([place, , length]) => `${STAGE_WORDS[stages[place]]} ${seconds(length)}`).join(", ");
  return `${request.client_id || request.id}: ${request.outcome}${request.code ? ` (${request.code})` : ""}${where}${tries}; ${number(request.prompt_tokens)} prompt tokens${request.cached_tokens ? ` (${number(request.cached_tokens)} cached)` : ""}, ${number(request.tokens)} answered; TTFT ${seconds(request.ttft_s)}, TPOT ${seconds(request.tpot_s)}; ${verdict}. ${took}`;
}

export function drawTrace(request, stages) {
  const box = byId("trace");
  box.hidden = request === undefined;
  if (!request) return;
  const known = spans(request), whole = known.reduce((sum, [, , length]) => sum + length, 0);
  byId("trace-picture").replaceChildren(picture(request, stages, known));
  const table = byId("trace-stages");
  if (!table.tBodies.length) {
    const head = table.createTHead().insertRow();
    for (const [words, name] of [["stage", ""], ["where", ""], ["begins", "number"], ["takes", "number"], ["share", "number"]]) head.append(make("th", name, words));
    table.append(make("tbody"));
  }
  const lines = known.map(([place, from, length]) => [STAGE_WORDS[stages[place]] ?? stages[place], whereOf(request, place), seconds(from), seconds(length), share(length / request.wall_s)]);
  if (request.wall_s - whole > 0) lines.push(["unaccounted", "", "", seconds(request.wall_s - whole), share((request.wall_s - whole) / request.wall_s)]);
  const found = keyed(table.tBodies[0], lines.map(([name]) => name), () => {
    const row = make("tr");
    for (const name of ["", "", "number", "number", "number"]) row.append(make("td", name));
    return row;
  });
  found.forEach((row, at) => lines[at].forEach((words, cell) => text(row.cells[cell], words)));
}

// A row for each place that worked on it, a line at its first token, and one at the target of that.
function picture(request, stages, known) {
  const places = [...new Set(known.map(([place]) => whereOf(request, place)))], width = Math.max(240, byId("trace-picture").clientWidth);
  const height = places.length * ROW + FOOT, svg = frame(`The stages of ${request.client_id || request.id} over ${seconds(request.wall_s)}`, { width, height });
  svg.style.height = `${height}px`;
  const end = Math.max(request.wall_s, 1e-6), x = (at) => LEFT + ((width - LEFT - RIGHT) * at) / end;
  places.forEach((name, at) => svg.append(shape("text", { x: LEFT - 6, y: at * ROW + 14, "text-anchor": "end" }, name.length > 13 ? `${name.slice(0, 12)}…` : name)));
  for (const [place, from, length] of known) {
    const bar = shape("rect", { class: `stage-${place}`, x: x(from), y: places.indexOf(whereOf(request, place)) * ROW + 3, width: Math.max(1, x(from + length) - x(from)), height: ROW - 6, rx: 2 });
    bar.append(shape("title", {}, `${STAGE_WORDS[stages[place]]} ${seconds(length)}`));
    svg.append(bar);
  }
  const marks = [["mark", request.ttft_s, "first token"], ["target", request.slo_ttft_s, "target"]].filter(([, at]) => at !== null && at <= end);
  for (const [className, at] of marks) svg.append(shape("line", { class: className, x1: x(at), x2: x(at), y1: 0, y2: height - FOOT }));
  svg.append(shape("text", { x: LEFT, y: height - 4 }, "0"), shape("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, seconds(end)));
  let last = LEFT - LABEL / 2;
  for (const [, at, words] of marks.sort((a, b) => a[1] - b[1])) {
    if (x(at) - last < LABEL || x(at) > width - RIGHT - LABEL * 1.3) continue;
    svg.append(shape("text", { x: x(at), y: height - 4, "text-anchor": "middle" }, words));
    last = x(at);
  }
  return svg;
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
      events.push({ ph: "X", pid: pidOf(whereOf(request, place)), tid: request.number, cat: request.outcome, name: stages[place], ts: (request.at + from) * MICRO, dur: length * MICRO, args: { request: request.id, met: request.met, lost_at: request.lost_at } });
    }
  }
  return { displayTimeUnit: "ms", traceEvents: events };
}

export function download(requests, stages, name) {
  const blob = new Blob([JSON.stringify(traceOf(requests, stages))], { type: "application/json" });
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
