// Requests on one axis of time, on a canvas: each in the first lane that is free when it comes, coloured by its stages.
import { byId } from "./draw.js";
import { spans } from "./trace.js";

const LEAST = 4, MOST = 14, WANTED = 150, FOOT = 18, MISS = 2, LEFT = 8, RIGHT = 8, AROUND = 2;
let drawn = [];

export function lanesOf(requests) {
  const ends = [], found = [];
  for (const request of [...requests].sort((a, b) => a.at - b.at)) {
    let lane = ends.findIndex((end) => end <= request.at);
    if (lane < 0) lane = ends.push(0) - 1;
    ends[lane] = request.at + request.wall_s;
    found.push([request, lane]);
  }
  return { found, num: ends.length };
}

function within(store, requests) {
  const span = Number(byId("lanes-span").value), end = store.now.now;
  return span ? requests.filter((each) => each.at + each.wall_s >= end - span) : requests;
}

export function drawLanes(store, requests, chosen) {
  const canvas = byId("lanes"), shown = within(store, requests), { found, num } = lanesOf(shown);
  const width = Math.max(240, byId("lanes-scroll").clientWidth), size = Math.max(LEAST, Math.min(MOST, Math.floor(WANTED / Math.max(num, 1))));
  const height = Math.max(num, 3) * size + FOOT, sharp = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * sharp);
  canvas.height = Math.round(height * sharp);
  canvas.style.height = `${height}px`;
  canvas.setAttribute("aria-label", `${shown.length} requests over time, at most ${num} at once; left and right arrow keys choose one`);
  const colours = coloursOf(canvas), pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  pen.clearRect(0, 0, width, height);
  const span = Number(byId("lanes-span").value), end = Math.max(store.now.now, ...shown.map((each) => each.at + each.wall_s));
  const begin = span ? end - span : Math.min(end - 1, ...shown.map((each) => each.at)), scale = (width - LEFT - RIGHT) / (end - begin);
  const x = (at) => LEFT + (Math.max(at, begin) - begin) * scale;
  drawn = found.map(([request, lane]) => ({ request, x: x(request.at), end: Math.max(x(request.at) + 2, x(request.at + request.wall_s)), y: lane * size, size }));
  for (const each of drawn) bar(pen, each, x, colours);
  for (const each of drawn.filter(({ request }) => String(request.number) === chosen)) {
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 2;
    pen.strokeRect(each.x - 1, each.y, each.end - each.x + 2, each.size);
  }
  axis(pen, { width, height, span: end - begin, colours });
}

function bar(pen, { request, x: from, end, y, size }, x, colours) {
  pen.fillStyle = colours.rest;
  pen.fillRect(from, y + 0.5, end - from, size - 1);
  for (const [place, at, length] of spans(request)) {
    pen.fillStyle = colours.stages[place];
    const left = x(request.at + at);
    pen.fillRect(left, y + 0.5, Math.max(0.5, x(request.at + at + length) - left), size - 1);
  }
  if (request.met !== false && request.outcome !== "failed") return;
  pen.fillStyle = colours.bad;
  pen.fillRect(from, y + size - 0.5 - MISS, end - from, MISS);
}

function axis(pen, { width, height, span, colours }) {
  pen.fillStyle = colours.quiet;
  pen.font = `11px ${colours.font}`;
  for (const [part, align] of [[0, "left"], [0.5, "center"], [1, "right"]]) {
    pen.textAlign = align;
    const back = span * (1 - part), words = part === 1 ? "now" : back < 100 ? `${Number(back.toPrecision(2))} s ago` : `${Number((back / 60).toPrecision(2))} min ago`;
    pen.fillText(words, LEFT + (width - LEFT - RIGHT) * part, height - 5);
  }
}

function coloursOf(canvas) {
  const style = getComputedStyle(canvas), of = (name) => style.getPropertyValue(`--${name}`).trim();
  return { ink: of("ink"), quiet: of("quiet"), bad: of("bad"), rest: of("line"), font: style.fontFamily, stages: [0, 1, 2, 3, 4, 5, 6].map((place) => of(`s${place}`)) };
}

// Pointer and keyboard on the canvas; `choose` gets the number of a request.
export function wireLanes(choose, chosen) {
  const canvas = byId("lanes");
  canvas.addEventListener("click", (event) => {
    const found = drawn.find((each) => event.offsetY >= each.y && event.offsetY < each.y + each.size && event.offsetX >= each.x - AROUND && event.offsetX <= each.end + AROUND);
    if (found) choose(String(found.request.number));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !drawn.length) return;
    event.preventDefault();
    const now = drawn.findIndex((each) => String(each.request.number) === chosen());
    const next = now < 0 ? drawn.length - 1 : Math.min(drawn.length - 1, Math.max(0, now + step));
    choose(String(drawn[next].request.number));
  });
}
