// What the colour of a box means: a number of every node, how groups add it up, and its steps.
const DB_STEPS = [50, 40, 30, 20, 10];
const SHARE_STEPS = [0.005, 0.01, 0.03, 0.1, 0.25];
const CLIP_STEPS = [1e-6, 1e-4, 1e-3, 1e-2, 5e-2];
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
const below = (x) => DB_STEPS.filter((s) => x < s).length;
const above = (steps) => (x) => steps.filter((s) => x >= s).length;
const DB_LABELS = ["≥ 50 dB", "40", "30", "20", "10", "< 10 dB"];
const SHARE_LABELS = ["< 0.5%", "0.5", "1", "3", "10", "≥ 25%"];
const stepped = (labels) => labels.map((label, i) => [`--h${i}`, label]);

const PRECISIONS = {
  "4": ["--p4", "4 bits or fewer"], "8": ["--p8", "8 bits"], "16": ["--p16", "9 to 16 bits"],
  more: ["--pn", "more bits"], float: ["--pf", "floating point"], none: ["--pn", "no real values"],
};
function precisionOf(node) {
  if (node.g || node.w) return node.b <= 4 ? "4" : node.b <= 8 ? "8" : node.b <= 16 ? "16" : "more";
  return node.k === "integer" ? "8" : node.k ? "float" : "none";
}

const COLORINGS = {
  share: {
    name: "share of the noise", has: HAS.shares, of: (n) => (n.e ? n.e[2] : null), join: sum,
    step: above(SHARE_STEPS), text: percent, legend: stepped(SHARE_LABELS),
    about: "what this node's own error adds to the noise at the outputs",
  },
  own: {
    name: "own error", has: HAS.errors, of: (n) => (n.e ? n.e[0] : null), join: least,
    step: below, text: decibels, legend: stepped(DB_LABELS),
    about: "signal to noise of the node, fed with the float model's values",
  },
  all: {
    name: "error with all before", has: HAS.all, of: (n) => (n.e ? n.e[1] : null), join: least,
    step: below, text: decibels, legend: stepped(DB_LABELS),
    about: "signal to noise of the node's value in the quantized model",
  },
  clipped: {
    name: "clipped values", has: HAS.clipped, of: (n) => (n.h && n.h.cl ? sum(n.h.cl) : null), join: most,
    step: above(CLIP_STEPS), text: percent,
    legend: stepped(["none", "> 0", "0.01%", "0.1%", "1%", "≥ 5%"]),
    about: "share of the float values beyond the ends of the grid",
  },
  latency: {
    name: "latency", has: HAS.times, of: (n) => (n.t ? n.t[2] : null), join: sum,
    step: above(SHARE_STEPS), text: percent, legend: stepped(SHARE_LABELS),
    about: "share of the time of all kernels, with conversions",
  },
  precision: {
    name: "precision", has: true, of: precisionOf,
    legend: Object.values(PRECISIONS).filter(([, label], i, all) => NODES.some((n) => PRECISIONS[precisionOf(n)] === all[i])),
    about: "bits of the values and weights that a node makes and reads",
  },
};
let coloring = Object.keys(COLORINGS).find((key) => COLORINGS[key].has);

// {color, ink, text, rank} of nodes from one place to another
function paint(first, last) {
  const way = COLORINGS[coloring];
  const values = [];
  for (let i = first; i < last; i++) {
    const value = way.of(NODES[i]);
    if (value !== null && value !== undefined) values.push(value);
  }
  if (!values.length) return { color: "var(--pn)", ink: "var(--t0)", text: "", rank: -Infinity };
  if (coloring === "precision") return paintPrecision(first, last, values);
  const value = way.join(values), step = way.step(value);
  const rank = way.join === least ? -value : value;
  return { color: `var(--h${step})`, ink: `var(--t${step})`, text: way.text(value), rank };
}
function paintPrecision(first, last, values) {
  const kinds = new Set(values.filter((v) => v !== "none"));
  if (kinds.size === 0) kinds.add("none");
  const key = kinds.size === 1 ? [...kinds][0] : null;
  const text = last - first === 1 ? NODES[first].pr : key === "float" ? "float" : "";
  return { color: key ? `var(${PRECISIONS[key][0]})` : "var(--pm)", ink: "var(--ink)", text, rank: 0 };
}
const legendOf = (key) => COLORINGS[key].legend.map(([color, label]) => el("span", {}, el("i", { style: `background:var(${color})` }), label));
