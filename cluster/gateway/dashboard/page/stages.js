// Where the time of requests goes: the stages of a mean request, against its targets; and where targets are lost.
import { byId, keyed, legend, make, number, seconds, text } from "./draw.js";
import { recent } from "./figures.js";

export const STAGE_WORDS = { admit: "admit", queue_prefill: "queue", prefill: "prefill", reserve: "reserve", handoff: "handoff", queue_decode: "decode queue", decode: "decode" };
const BEFORE_FIRST = ["admit", "queue_prefill", "prefill"];

function mean(requests, value) {
  return requests.reduce((sum, each) => sum + value(each), 0) / (requests.length || 1);
}

export function drawStages(store) {
  const few = recent(store).filter((each) => each.outcome === "finished"), names = store.now.stages;
  legend(byId("stage-legend"), names.map((name, place) => [`fill-${place}`, STAGE_WORDS[name] ?? name]));
  const parts = names.map((name, place) => [STAGE_WORDS[name] ?? name, mean(few, (each) => each.stages_s[place]), `fill-${place}`]);
  const wall = mean(few, (each) => each.wall_s);
  parts.push(["unaccounted", rest(wall, parts), "fill-rest"]);
  const whole = parts.reduce((sum, [, each]) => sum + each, 0), box = byId("stages");
  text(byId("stages-words"), few.length ? `a request takes ${seconds(wall)}; mean of ${few.length}` : "no request has finished yet");
  if (!box.children.length) box.append(make("div", "budgets"), make("div", "rows"));
  const once = few.filter((each) => each.attempts === 1), budgets = [toFirst(once, names), perToken(once, names)].filter((each) => each !== null);
  for (const element of keyed(box.firstChild, budgets.map((each) => each.name), budgetRow)) drawBudget(element, budgets.find((each) => each.name === element.dataset.key));
  rows(box.lastChild, parts.map(([name, each, fill]) => [name, whole ? each / whole : 0, seconds(each), fill]));
}

function rest(whole, parts) {
  return Math.max(0, whole - parts.reduce((sum, [, each]) => sum + each, 0));
}

// The target of all of them, where they have one and the same.
function targetOf(requests, name) {
  const found = new Set(requests.map((each) => each[name]));
  return found.size === 1 ? [...found][0] : null;
}

function toFirst(requests, names) {
  if (!requests.length) return null;
  const parts = names.map((name, place) => [STAGE_WORDS[name], mean(requests, (each) => each.stages_s[place]), `fill-${place}`]).filter((_, place) => BEFORE_FIRST.includes(names[place]));
  const spent = mean(requests, (each) => each.ttft_s ?? 0);
  return { name: "TTFT", spent, target: targetOf(requests, "slo_ttft_s"), parts: [...parts, ["unaccounted", rest(spent, parts), "fill-rest"]] };
}

// What a request spends after its first token, for each further one.
function perToken(requests, names) {
  const longer = requests.filter((each) => each.tpot_s !== null && each.tokens > 1);
  if (!longer.length) return null;
  const parts = names.map((name, place) => [STAGE_WORDS[name], mean(longer, (each) => each.stages_s[place] / (each.tokens - 1)), `fill-${place}`]).filter((_, place) => !BEFORE_FIRST.includes(names[place]));
  const spent = mean(longer, (each) => each.tpot_s);
  return { name: "TPOT", spent, target: targetOf(longer, "slo_tpot_s"), parts: [...parts, ["unaccounted", rest(spent, parts), "fill-rest"]] };
}

function budgetRow() {
  const row = make("div", "budget");
  row.append(make("span", "name"), make("span", "track"), make("span", "amount"));
  row.children[1].append(make("i", "aim"));
  return row;
}

// One bar for what is spent, on a scale that has room for the target, which is a line across it.
function drawBudget(row, { name, spent, target, parts }) {
  const [head, track, amount] = row.children, aim = track.querySelector(".aim"), whole = Math.max(spent, target ?? 0) * (target === null ? 1 : 1.04) || 1;
  text(head, name);
  text(amount, target === null ? seconds(spent) : `${seconds(spent)} of ${seconds(target)}`);
  amount.className = `amount ${target !== null && spent > target ? "bad" : ""}`;
  parts.forEach(([words, each, fill], place) => {
    const bar = track.querySelectorAll("span")[place] ?? track.insertBefore(make("span", fill), aim);
    bar.title = `${words} ${seconds(each)}`;
    bar.style.width = `${(100 * each) / whole}%`;
  });
  aim.hidden = target === null;
  aim.style.left = `${(100 * (target ?? 0)) / whole}%`;
}

export function drawLosses(store) {
  const parts = store.now.parts.penstock_slo_misses, box = byId("losses");
  const whole = parts.reduce((sum, [, value]) => sum + value, 0);
  if (!box.children.length) box.append(make("p", "quiet"), make("div", "rows"));
  const refused = store.now.parts.penstock_refusals.map(([code, value]) => `${code} ${number(value)}`).join(", ");
  text(box.firstChild, `${whole ? `${number(whole)} requests missed a target since the start` : "no target was missed"}${refused ? `; refused: ${refused}` : ""}`);
  const sorted = [...parts].sort((a, b) => b[1] - a[1]);
  rows(box.lastChild, sorted.map(([stage, value]) => [STAGE_WORDS[stage] ?? stage, value / whole, number(value), "fill-bad"]));
}

function rows(box, entries) {
  const keys = entries.flatMap(([name]) => [`${name}/name`, `${name}/track`, `${name}/amount`]);
  const cells = keyed(box, keys, (key) => make("span", key.split("/")[1]));
  entries.forEach(([name, part, amount, fill], place) => {
    const [head, track, value] = cells.slice(3 * place, 3 * place + 3);
    text(head, name);
    text(value, amount);
    const bar = track.firstChild ?? track.appendChild(make("span"));
    bar.className = fill;
    bar.style.width = `${100 * part}%`;
  });
}
