// Documents are made of elements and texts: nothing here takes a text for markup.
const D = JSON.parse(document.getElementById("data").textContent);
const NODES = D.nodes;
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") element.style.cssText = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// --- numbers ------------------------------------------------------------------------------------

function number(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-4) return x.toExponential(digits - 1).replace("e+", "e").replace("-", "−");
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return String(Number(x.toFixed(Math.min(places, 8)))).replace("-", "−");
}
// a score keeps its decimals: numbers below each other are compared by eye
const score = (x) => (x === null || x === undefined ? "–" : x.toFixed(Math.abs(x) >= 10 ? 2 : 4).replace("-", "−"));
const decibels = (x) => (x === null || x === undefined ? "–" : x <= -300 ? "lost" : `${x.toFixed(1).replace("-", "−")} dB`);
function percent(x) {
  if (x === null || x === undefined) return "–";
  const p = 100 * x;
  if (p === 0) return "0%";
  if (p < 0.01) return "<0.01%";
  return `${p < 1 ? p.toFixed(2) : p < 10 ? p.toFixed(1) : p.toFixed(0)}%`;
}
function bytes(n) {
  if (n >= 1e9) return [(n / 1e9).toFixed(2), "GB"];
  if (n >= 1e6) return [(n / 1e6).toFixed(n >= 1e8 ? 0 : 1), "MB"];
  return [(n / 1e3).toFixed(n >= 1e5 ? 0 : 1), "kB"];
}
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds >= 1) return `${number(seconds)} s`;
  if (seconds >= 1e-3) return `${number(seconds * 1e3)} ms`;
  return `${number(seconds * 1e6)} µs`;
}
const many = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const shape = (s) => (s && s.length ? s.join(" × ") : "");
const clip = (text, most) => (text.length <= most ? text : `…${text.slice(1 - most)}`);
// a text that fits so many pixels, cut at its end; digits and letters of one size are near enough
function fitting(text, width, size = 13) {
  const n = Math.floor(width / (size * 0.57));
  return text.length <= n ? text : `${text.slice(0, Math.max(1, n - 1))}…`;
}
const sum = (values) => values.reduce((a, b) => a + b, 0);
const source = (node) => (node.src ? `${D.files[node.src[0]]}:${node.src[1]}` : "");
const KERNELS = { integer: "computed in integers", float: "computed in floating point", moves: "moves values", boundary: "boundary" };

function unpack(text) {
  const raw = atob(text);
  return Array.from(raw, (c) => c.charCodeAt(0));
}
const HAS = {
  errors: NODES.some((n) => n.e && n.e[0] !== null),
  all: NODES.some((n) => n.e && n.e[1] !== null),
  shares: NODES.some((n) => n.e && n.e[2] !== null),
  values: NODES.some((n) => n.h && n.h.h),
  clipped: NODES.some((n) => n.h && n.h.cl),
  times: NODES.some((n) => n.t),
  uncalibrated: NODES.some((n) => n.g && n.g.un),
};
