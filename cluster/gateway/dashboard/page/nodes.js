// The map of the cluster: a tile for each place of a node; and what moves between them.
import { bytes, byId, keyed, legend, make, number, percentile, seconds, share, text } from "./draw.js";
import { handoffs } from "./handoffs.js";

const RED_S = 5;
// What a reader tells apart: the states of the ledger of blocks, in six colours.
export const BLOCKS = [
  ["used", "fill-used", "in use", ["in_use", "filling", "sealed"]],
  ["reserved", "fill-reserved", "reserved", ["reserved"]],
  ["moving", "fill-moving", "in transfer", ["receiving"]],
  ["held", "fill-held", "quarantined", ["quarantined"]],
  ["cached", "fill-cached", "cached", ["cached"]],
  ["free", "fill-free", "free", ["free"]],
];

function isDown(store, node) {
  const since = store.downSince.get(node.name);
  return !node.up || (since !== undefined && store.now.now - since < RED_S);
}

function tile(name) {
  const node = make("li"), head = make("h3"), bar = make("div", "blocks");
  head.append(make("span", "", name), make("span", "role"));
  bar.setAttribute("role", "img");
  for (const [, fill] of BLOCKS) bar.append(make("span", fill));
  node.append(head, make("p", "what"), bar, make("p", "pool quiet"), make("p", "more quiet"));
  return node;
}

export function drawNodes(store) {
  const nodes = new Map(store.now.nodes.map((node) => [node.name, node]));
  for (const element of keyed(byId("nodes"), [...nodes.keys()], tile)) fill(element, nodes.get(element.dataset.key), store);
  legend(byId("block-legend"), BLOCKS.map(([, className, words]) => [className, words]));
}

function fill(element, node, store) {
  const down = isDown(store, node);
  element.className = `node ${node.role} ${down ? "down" : ""}`;
  text(element.querySelector(".role"), down ? (node.up ? "back after a death" : `down: ${node.state}`) : node.role + (node.set_by ? ` (${node.set_by})` : ""));
  const budget = node.role === "decode" ? "" : `, chunks of ${number(node.prefill_tokens_per_step)}`;
  const rows = node.running_rows === undefined ? "no report yet" : `${node.running_rows} of ${number(node.max_decode_rows)} rows, ${node.prefilling} prefilling, ${number(node.queued_tokens)} tokens queued${budget}`;
  text(element.querySelector(".what"), node.up ? rows : "no node here");
  const bar = element.querySelector(".blocks"), blocks = node.blocks;
  bar.hidden = blocks === undefined;
  const counts = BLOCKS.map(([, , words, states]) => [words, blocks ? states.reduce((sum, each) => sum + blocks[each], 0) : 0]);
  counts.forEach(([, value], place) => { bar.children[place].style.width = blocks ? `${(100 * value) / blocks.capacity}%` : "0"; });
  const words = counts.filter(([, value]) => value).map(([name, value]) => `${number(value)} ${name}`).join(", ");
  bar.setAttribute("aria-label", `KV blocks: ${words}`);
  text(element.querySelector(".pool"), blocks ? `blocks: ${words}` : "");
  const used = [node.mfu === undefined ? "" : `MFU ${share(node.mfu)}`, node.mbu === undefined ? "" : `MBU ${share(node.mbu)}`, node.deaths ? `${node.deaths} ${node.deaths === 1 ? "death" : "deaths"}` : "", node.pid ? `pid ${node.pid}` : ""];
  text(element.querySelector(".more"), used.filter(Boolean).join(", "));
}

export function drawTransfers(store) {
  const table = byId("transfers");
  if (!table.tBodies.length) {
    const head = table.createTHead().insertRow();
    for (const [words, name] of [["node", ""], ["reads", ""], ["KV read", "number"], ["now", "number"], ["fetches", "number"], ["handoff p50", "number"], ["p99", "number"], ["went otherwise", ""]]) head.append(make("th", name, words));
    table.append(make("tbody"));
  }
  const nodes = new Map(store.now.nodes.filter((node) => node.up).map((node) => [node.name, node]));
  const before = new Map((store.before?.nodes ?? []).map((node) => [node.name, node]));
  const rows = keyed(table.tBodies[0], [...nodes.keys()], () => {
    const row = make("tr");
    for (const name of ["", "", "number", "number", "number", "number", "number", ""]) row.append(make("td", name));
    return row;
  });
  for (const row of rows) {
    const node = nodes.get(row.dataset.key), was = before.get(row.dataset.key);
    const span = store.before ? store.now.now - store.before.now : 0;
    const speed = was && was.pid === node.pid && span > 0 ? (node.kv_bytes - was.kv_bytes) / span : 0;
    const links = node.links.map(([peer, transport]) => `${peer} by ${transport}`).join(", ");
    const events = node.events.map(([name, count]) => `${name} ${number(count)}`).join(", ");
    const ways = node.moved.length > 1 ? ` (${node.moved.map(([transport, , size]) => `${transport} ${bytes(size)}`).join(", ")})` : "";
    const took = handoffs(store).filter((each) => each.decode_node === node.name).map((each) => each.stages_s[store.now.stages.indexOf("handoff")]).sort((a, b) => a - b);
    const words = [node.name, links || "nobody yet", `${bytes(node.kv_bytes)}${ways}`, `${bytes(speed)}/s`, number(node.fetches), seconds(percentile(took, 0.5)), seconds(percentile(took, 0.99)), events || "nothing"];
    words.forEach((each, place) => text(row.cells[place], each));
  }
}
