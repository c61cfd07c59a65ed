// The figures at the top, and the table of counters at the end.
import { bytes, byId, increase, keyed, make, number, percentile, seconds, share, text } from "./draw.js";

const SPAN_S = 10, RECENT_S = 60, AT_LEAST = 50;

// Those that ended in the last minute, or the last fifty where they are fewer.
export function recent(store) {
  const since = store.now.now - RECENT_S;
  const late = store.requests.filter((each) => each.at + each.wall_s >= since);
  return late.length >= AT_LEAST ? late : store.requests.slice(-AT_LEAST);
}

export function ordered(requests, name) {
  return requests.filter((each) => each.outcome === "finished" && each[name] !== null).map((each) => each[name]).sort((a, b) => a - b);
}

function rate(store, name) {
  const found = increase(store.samples, name, SPAN_S);
  return found === null ? 0 : found.by / found.seconds;
}

function attainment(store) {
  const counted = increase(store.samples, "counted", RECENT_S), met = increase(store.samples, "met", RECENT_S);
  return counted === null || !counted.by ? null : met.by / counted.by;
}

function cards(store) {
  const totals = store.now.totals, few = recent(store);
  const met = totals.penstock_goodput_requests_total ?? 0, counted = totals.penstock_slo_requests_total ?? 0;
  const now = attainment(store), ttft = ordered(few, "ttft_s"), tpot = ordered(few, "tpot_s");
  const found = [
    ["Goodput", `${rate(store, "met").toFixed(2)} /s`, `of ${rate(store, "came").toFixed(2)} /s offered, ${rate(store, "ended").toFixed(2)} /s ended, last ${SPAN_S} s`],
    ["SLO attainment", share(now), counted ? `${number(met)} of ${number(counted)} since the start` : "no request had targets yet", now === null ? "" : now >= 0.9 ? "good" : "bad"],
    ["TTFT p50", seconds(percentile(ttft, 0.5)), `p99 ${seconds(percentile(ttft, 0.99))}`],
    ["TPOT p50", seconds(percentile(tpot, 0.5)), `p99 ${seconds(percentile(tpot, 0.99))}`],
    ["Tokens", `${rate(store, "tokens").toFixed(0)} /s`, `${number(totals.penstock_generation_tokens_total ?? 0)} since the start`],
    ["Open requests", number(totals.penstock_open_requests), `${number(totals.penstock_node_running_rows ?? 0)} rows, ${number(totals.penstock_node_queued_tokens ?? 0)} tokens queued`],
    ["KV moved", `${bytes(Math.max(0, rate(store, "kv_bytes")))}/s`, `${bytes(totals.penstock_kv_received_bytes_total ?? 0)} by the nodes of now`],
  ];
  const cost = totals.penstock_cost_per_million_tokens;
  if (cost !== undefined) found.push(["Per million tokens", number(Number(cost.toPrecision(3))), `${number(Number(totals.penstock_cost_total.toPrecision(3)))} so far`]);
  return found;
}

export function drawCards(store) {
  const found = new Map(cards(store).map((card) => [card[0], card]));
  const elements = keyed(byId("cards"), [...found.keys()], (name) => {
    const card = make("div");
    card.append(make("dt", "", name), make("dd", "value"), make("dd", "quiet"));
    return card;
  });
  for (const element of elements) {
    const [, value, words, mood] = found.get(element.dataset.key);
    text(element.children[1], value).className = `value ${mood ?? ""}`;
    text(element.children[2], words);
  }
}

export function drawTotals(store) {
  const totals = store.now.totals, table = byId("totals");
  if (!table.tBodies.length) {
    const head = table.createTHead().insertRow();
    head.append(make("th", "", "metric"), make("th", "number", "value"));
    table.append(make("tbody"));
  }
  const names = Object.keys(totals).filter((name) => name.startsWith("penstock_") && /_(total|count|requests)$/.test(name)).sort();
  for (const row of keyed(table.tBodies[0], names, totalRow)) {
    const value = totals[row.dataset.key];
    row.cells[1].dataset.value = String(value);
    text(row.cells[1], number(value));
  }
}

function totalRow(name) {
  const row = make("tr"), head = make("td");
  const title = make("code");
  for (const word of name.split(/(?<=_)/)) title.append(word, make("wbr"));
  head.append(title);
  row.append(head, make("td", "number"));
  return row;
}
