// Blocks of all pools by state, and leases, over time.
import { byId, make, number, text } from "./draw.js";
import { BLOCKS } from "./nodes.js";
import { axes, line, roundUp, seen, stack } from "./timeline.js";

function sum(blocks, states) {
  return states.reduce((whole, each) => whole + (blocks[each] ?? 0), 0);
}

export function drawPool(store) {
  const samples = seen(store), place = byId("pool");
  const whole = samples.length ? Math.max(...samples.map((each) => Object.values(each.blocks).reduce((a, b) => a + b, 0))) : 0;
  if (samples.length < 2 || !whole) return place.replaceChildren(make("p", "empty", "no node has reported yet"));
  const last = samples[samples.length - 1].blocks;
  const said = BLOCKS.map(([, , words, states]) => `${number(sum(last, states))} ${words}`).join(", ");
  text(byId("pool-words"), said);
  const chart = axes(place, `KV blocks of all nodes by state: now ${said}`, samples, whole, count);
  stack(chart, samples, BLOCKS.map(([name, , , states]) => [`area-${name}`, (each) => sum(each.blocks, states)]));
  return place.replaceChildren(chart.svg);
}

export function drawLeases(store) {
  const samples = seen(store), place = byId("leases");
  if (samples.length < 2) return place.replaceChildren(make("p", "empty", "one moment: a sample comes each second"));
  const last = samples[samples.length - 1], most = Math.max(4, ...samples.map((each) => Math.max(each.leases, each.incoming)));
  const said = `${number(last.leases)} ${last.leases === 1 ? "lease" : "leases"}, ${number(last.incoming)} ${last.incoming === 1 ? "attempt" : "attempts"} whose KV is on its way`;
  text(byId("leases-words"), said);
  const chart = axes(place, `Leases of blocks: now ${said}`, samples, roundUp(most), count);
  for (const name of ["incoming", "leases"]) line(chart, `line-${name}`, steps(samples, name));
  return place.replaceChildren(chart.svg);
}

// Each sample holds until the next one.
function steps(samples, name) {
  return samples.flatMap((each, place) => (place ? [[each.at, samples[place - 1][name]], [each.at, each[name]]] : [[each.at, each[name]]]));
}

function count(value) {
  return value >= 10000 ? `${Number((value / 1000).toPrecision(3))}k` : number(value);
}
