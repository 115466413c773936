// Everything about one node.
let opened = null; // what had the focus before

function showNode(i, { center = false } = {}) {
  const panel = byId("panel"), node = NODES[i];
  if (panel.hidden) opened = document.activeElement;
  graph.at = i;
  panel.replaceChildren(...panelParts(node, i));
  panel.hidden = false;
  document.body.classList.add("with-panel");
  panel.scrollTop = 0;
  setHash({ tab: current, node: node.n });
  if (center && current === "graph") reveal(LEAF_OF[i]);
  markNow();
  if (!center) panel.focus({ preventScroll: true });
}
function hideNode() {
  byId("panel").hidden = true;
  document.body.classList.remove("with-panel");
  graph.at = null;
  markNow();
  setHash({ tab: current });
  if (opened && opened.isConnected) opened.focus({ preventScroll: true });
}
const nodeLink = (i, text) => el("button", { class: "link", type: "button", onclick: () => openNode(i) }, text || NODES[i].p);

function panelParts(node, i) {
  const title = el("header", {},
    el("h2", {}, node.p),
    current === "graph" ? null : el("button", { class: "quiet", type: "button", onclick: () => { select("graph"); showNode(i, { center: true }); } }, "In the graph"),
    el("button", { class: "quiet", type: "button", "aria-label": "Close", onclick: hideNode }, "×"));
  const chips = el("div", { class: "chips" },
    el("span", { class: "chip" }, node.o),
    node.s.length ? el("span", { class: "chip" }, shape(node.s)) : null,
    node.pr !== "float" || node.k ? el("span", { class: `chip ${node.k}` }, node.pr) : null,
    node.k ? el("span", { class: `chip ${node.k}` }, KERNELS[node.k] || node.k) : null,
    node.kn ? el("span", { class: "chip" }, node.kn) : null);
  return [title, chips, errorPart(node), valuePart(node), gridPart(node), (node.w || []).map(weightPart), timePart(node), whyPart(node), sourcePart(node), wiringPart(i)].flat().filter(Boolean);
}
const section = (title, ...children) => el("section", {}, el("h3", {}, title), children);

function stat(value, label, step) {
  return el("div", { class: "stat", style: step === null ? "" : `border-left-color:var(--h${step})` }, el("b", {}, value), el("span", {}, label));
}
function errorPart(node) {
  if (!node.e) return null;
  const [own, all, share] = node.e;
  return section("Error against the float model", el("div", { class: "pair three" },
    stat(decibels(own), "own", own === null ? null : below(own)),
    stat(decibels(all), "with all before", all === null ? null : below(all)),
    stat(percent(share), "of the noise", share === null ? null : above(SHARE_STEPS)(share))));
}
function valuePart(node) {
  const h = node.h;
  if (!h || !h.h) return null;
  const parts = [histogramChart(h, node.g && !node.g.ch ? node.g : null)];
  const rows = [["range", `${number(h.lo)} to ${number(h.hi)}`], ["mean ± deviation", `${number(h.m)} ± ${number(h.sd)}`]];
  if (h.ze) rows.push(["zeros", percent(h.ze)]);
  if (h.cl) rows.push(["clipped below, above", `${percent(h.cl[0])}, ${percent(h.cl[1])}`]);
  if (h.us !== undefined) rows.push(["steps that 99.8% of the values use", percent(h.us)]);
  parts.push(pairs(rows));
  return section(node.g && node.g.hi !== undefined ? "Float values over the grid (bars: square root of the count)" : "Float values (bars: square root of the count)", parts);
}
const pairs = (rows) => el("dl", {}, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

function gridRows(g) {
  const rows = [["type", g.t + (g.sy ? ", symmetric" : "")]];
  if (g.un) return [...rows, ["range", "not calibrated"]];
  if (g.ch) rows.push(["grids", `${g.ch}, ${({ perchannel: "one a channel", blockwise: "one a block" })[g.gr] || g.gr}`], ["steps", `${number(g.s)} to ${number(g.s2)}`]);
  else if (g.s !== undefined) rows.push(["step (scale)", number(g.s, 5)], ["zero point", String(g.z)]);
  if (g.hi !== undefined) rows.push(["covers", `${number(g.lo)} to ${number(g.hi)}`]);
  return rows;
}
function gridPart(node) {
  if (!node.g) return null;
  const rows = gridRows(node.g);
  if (node.g.own !== undefined) rows.push(["grid of", nodeLink(node.g.own)]);
  return section("Encoding of the output", pairs(rows));
}
function weightPart(w) {
  const rows = [["shape", shape(w.s)], ...gridRows(w.g)];
  if (w.r) rows.push(["largest to smallest channel", w.br && w.br !== w.r ? `${number(w.br)} before, ${number(w.r)} now` : number(w.r)]);
  return section(`Encoding of ${w.n}`, w.lo && w.s.length > 1 ? rangeChart(w) : null, pairs(rows));
}
function timePart(node) {
  if (!node.t) return null;
  const [seconds, conversions, share, float] = node.t;
  return section("Time in the runtime", pairs([
    ["kernels", time(seconds)], ["conversions around it", time(conversions)], ["of the whole", percent(share)], ["in floating point", time(float)],
  ]));
}
function whyPart(node) {
  const places = [...new Set(node.kw === undefined ? node.why : [node.kw, ...node.why])];
  return places.length ? section("Why", el("ul", {}, places.map((k) => el("li", {}, D.texts[k])))) : null;
}
function sourcePart(node) {
  if (!node.src) return null;
  const text = D.texts[node.src[2]];
  return section(source(node), text ? el("div", { class: "code" }, text) : null);
}
function wiringPart(i) {
  const users = NODES.map((n, k) => [n, k]).filter(([n]) => n.in.includes(i)).map(([, k]) => k);
  const list = (title, places) => (places.length ? section(title, el("ul", {}, places.slice(0, 12).map((k) => el("li", {}, nodeLink(k))), places.length > 12 ? el("li", { class: "muted" }, `and ${places.length - 12} more`) : null)) : null);
  return [list("Reads", NODES[i].in), list("Read by", users)];
}
