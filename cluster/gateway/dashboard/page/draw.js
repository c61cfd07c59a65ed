// Small words of drawing: elements, numbers for people, and the frame of a chart.
const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  return document.getElementById(id);
}

// Texts are set only where they changed, so that a reader's selection stays.
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
  return element;
}

export function make(name, className = "", words = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (words) element.textContent = words;
  return element;
}

export function shape(name, attributes, words = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (words) element.textContent = words;
  return element;
}

// As many children as there are keys, in their order; those of keys that stay are kept, and with them the focus.
export function keyed(parent, keys, create) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = keys.map((key) => {
    const child = known.get(key) ?? create(key);
    child.dataset.key = key;
    known.delete(key);
    return child;
  });
  for (const child of known.values()) child.remove();
  wanted.forEach((child, place) => {
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
  });
  return wanted;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.00095) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 0.0995) return `${(value * 1e3).toFixed(1)} ms`;
  if (value < 0.9995) return `${(value * 1e3).toFixed(0)} ms`;
  return value < 99.95 ? `${value.toFixed(2)} s` : `${value.toFixed(0)} s`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${place ? value.toPrecision(3) : Math.round(value)} ${units[place]}`;
}

export function share(value) {
  return value === null ? "–" : `${(value * 100).toFixed(value < 0.9995 ? 1 : 0)} %`;
}

export function number(value) {
  return Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(6)).toString();
}

export function percentile(ordered, part) {
  if (!ordered.length) return null;
  const place = part * (ordered.length - 1), low = Math.floor(place), high = Math.min(low + 1, ordered.length - 1);
  return ordered[low] + (ordered[high] - ordered[low]) * (place - low);
}

// The increase of a counter over the last so many seconds of samples, with the seconds that it took.
export function increase(samples, name, span) {
  if (samples.length < 2) return null;
  const end = samples[samples.length - 1];
  const begin = samples.find((each) => each.at >= end.at - span - 0.25) ?? samples[0];
  return end.at > begin.at ? { by: end[name] - begin[name], seconds: end.at - begin.at } : null;
}

// The room of a chart, in the pixels that its place has now.
export function room(place) {
  return { width: Math.max(240, place.clientWidth), height: 176, left: 52, right: 10, top: 10, bottom: 22 };
}

export function frame(label, box) {
  return shape("svg", { viewBox: `0 0 ${box.width} ${box.height}`, role: "img", "aria-label": label });
}

export function legend(list, entries) {
  if (list.children.length === entries.length) return;
  list.replaceChildren(...entries.map(([className, words]) => {
    const entry = make("li");
    entry.append(make("i", className), words);
    return entry;
  }));
}
