// Report files that measuring commands wrote, read in this page and sent nowhere: two runs compared, and surfaces of tune.
import { byId, make, number, text } from "./draw.js";

const MOST_BYTES = 64e6, DEEPEST = 45;
const reports = new Map();

export function wireResults() {
  for (const name of ["a", "b"]) byId(`run-${name}`).addEventListener("change", (event) => take(name, event.target.files[0]));
}

async function take(name, file) {
  reports.delete(name);
  text(byId("results-problem"), "");
  try {
    if (file) reports.set(name, { file: file.name, ...reportOf(await read(file)) });
  } catch (error) {
    text(byId("results-problem"), `${file.name}: ${error.message}`);
  }
  draw();
}

async function read(file) {
  if (file.size > MOST_BYTES) throw new Error(`a report has at most ${MOST_BYTES / 1e6} MB`);
  try {
    return JSON.parse(await file.text());
  } catch {
    throw new Error("this is no JSON");
  }
}

function reportOf(told) {
  const { figures, command, date, samples } = told ?? {};
  if (typeof figures !== "object" || figures === null || Array.isArray(figures)) throw new Error("this is no report: it has no figures (a report is what --json of simulate, tune or a bench writes)");
  return { figures, command: String(command ?? "unknown"), date: String(date ?? "undated"), points: pointsOf(Array.isArray(samples) ? samples : []) };
}

function pointsOf(samples) {
  return samples.filter((each) => each?.kind === "point" && typeof each.layout === "string" && Number.isFinite(each.rate_rps) && Number.isFinite(each.attainment));
}

function draw() {
  const found = ["a", "b"].filter((name) => reports.has(name)).map((name) => reports.get(name)), box = byId("results");
  if (!found.length) return box.replaceChildren();
  const maps = found.filter((each) => each.points.length).flatMap(surfaces);
  return box.replaceChildren(scroll(compared(found), "Figures"), ...maps);
}

function scroll(table, label) {
  const box = make("div", "scroll");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", label);
  box.append(table);
  return box;
}

function compared(runs) {
  const table = make("table"), head = table.createTHead().insertRow(), body = table.createTBody();
  head.append(make("th", "", "figure"), ...runs.map((each) => make("th", "number", `${each.file}: ${each.command}, ${each.date}`)));
  if (runs.length === 2) head.append(make("th", "number", "second / first"));
  for (const name of [...new Set(runs.flatMap((each) => Object.keys(each.figures)))]) {
    const row = body.insertRow(), values = runs.map((each) => each.figures[name]);
    const title = make("td");
    title.append(make("code", "", name));
    row.append(title, ...values.map((each) => make("td", "number", shown(each))));
    if (runs.length === 2) row.append(make("td", "number", ratio(...values)));
  }
  return table;
}

function shown(value) {
  return value === undefined ? "–" : typeof value === "number" ? number(value) : String(value);
}

function ratio(first, second) {
  return typeof first === "number" && typeof second === "number" && first ? (second / first).toFixed(3) : "";
}

// One heat map for each SLO that was tried: layouts by rate.
function surfaces(report) {
  const slos = [...new Set(report.points.map(sloOf))];
  return slos.flatMap((slo) => {
    const title = `${report.file}: attainment by layout and requests per second; ${slo}`;
    return [make("h3", "", title), scroll(heatMap(report.points.filter((each) => sloOf(each) === slo)), title)];
  });
}

function sloOf(point) {
  return `TTFT ${point.ttft_slo_s} s and TPOT ${point.tpot_slo_s} s`;
}

function heatMap(points) {
  const rates = [...new Set(points.map((each) => each.rate_rps))].sort((a, b) => a - b);
  const rows = new Map();
  for (const each of points) {
    const name = `${each.layout.replace("disaggregated:", "P:D ")}, chunks of ${each.layout.startsWith("disaggregated") ? each.prefill_chunk : each.chunk}`;
    if (!rows.has(name)) rows.set(name, new Map());
    rows.get(name).set(each.rate_rps, each.attainment);
  }
  const table = make("table", "heat"), head = table.createTHead().insertRow(), body = table.createTBody();
  head.append(make("th", "", "layout"), ...rates.map((rate) => make("th", "number", String(Number(rate.toPrecision(3))))));
  const order = new Intl.Collator("en", { numeric: true });
  for (const [name, cells] of [...rows].sort(([a], [b]) => order.compare(a, b))) {
    const row = body.insertRow();
    row.append(make("td", "", name), ...rates.map((rate) => cell(cells.get(rate))));
  }
  return table;
}

function cell(attainment) {
  const found = make("td", "number", attainment === undefined ? "" : `${(attainment * 100).toFixed(0)} %`);
  if (attainment !== undefined) found.style.setProperty("--part", `${(attainment * DEEPEST).toFixed(1)}%`);
  return found;
}
