// The parts of the report; each is made when it is first shown.
const TABS = [["overview", "Overview", overview], ["graph", "Graph", graphView], ["nodes", "Nodes", nodeTable]];
if (NODES.some((n) => n.w)) TABS.push(["weights", "Weights", weightList]);
if (D.mixed || D.analyzer) TABS.push(["sensitivity", "Sensitivity", searchView]);
if (D.export || D.profile) TABS.push(["runtime", "Runtime", runtimeView]);
TABS.push(["recipe", "Recipe", recipeView]);

// --- overview -----------------------------------------------------------------------------------

function overview() {
  const O = D.overview;
  return el("div", { class: "view" },
    HAS.uncalibrated ? el("p", { class: "notice", role: "status" }, "This simulation is not calibrated: tensors have no ranges yet, so there is nothing to measure. What is shown is the plan.") : null,
    el("p", { class: "verdict" }, verdict(O)),
    el("div", { class: "cards" }, cards(O)),
    HAS.errors || HAS.all ? el("section", {}, el("h2", {}, "Errors along the network"),
      el("p", { class: "lead" }, "Bars: the error that each node makes itself; the longer, the worse. Line: the error of its value, with all before it; the lower, the worse. Triangles mark the three that cause most noise at the outputs. Click to open a node."),
      resizing(() => errorChart(openNode))) : null,
    el("div", { class: "two" },
      el("div", {}, worstPart(O), el("section", {}, el("h2", {}, "Not computed in integers"), reasonsPart(O))),
      el("section", {}, el("h2", {}, "What to do next"), O.advice.length ? el("ol", { class: "advice" }, O.advice.map(adviceItem)) : el("p", { class: "empty" }, "Nothing stands out."))));
}
// a chart that is drawn anew when the window has another width
function resizing(make) {
  const place = el("div", {}, make());
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; place.replaceChildren(make()); } });
  return place;
}
const strong = (text, kind) => el("strong", { class: kind }, text);
function verdict(O) {
  const parts = [];
  const [float, ...others] = O.evaluation;
  if (float && others.length && float.value !== null) {
    const last = others[others.length - 1], lost = float.value - last.value;
    const size = Math.abs(lost).toFixed(Math.abs(float.value) >= 10 ? 2 : 4);
    const said = lost > 0 ? `${size} lost` : lost < 0 ? `${size} more` : "nothing lost";
    parts.push("The quantized model scores ", strong(score(last.value)), `, the float model ${score(float.value)}: `, strong(said, lost > 0 ? "warn" : "good"), ". ");
  }
  if (O.output_db !== null && O.output_db !== undefined) {
    parts.push("Its outputs keep ", strong(decibels(O.output_db), O.output_db < 20 ? "bad" : O.output_db < 30 ? "warn" : "good"), " of the float model's. ");
  }
  const total = O.counts.integer + O.counts.float;
  parts.push(strong(`${O.counts.integer} of ${total}`), ` operators compute in integers on ${D.target}`);
  if (HAS.shares && O.worst.length) {
    const node = NODES[O.worst[0]];
    parts.push("; the most harmful node is ", nodeLink(O.worst[0]), ` (${percent(node.e[2])} of the noise)`);
  }
  return [...parts, "."];
}
const card = (title, ...children) => el("div", { class: "card" }, el("h3", {}, title), children);
const big = (value, unit) => el("div", { class: "big" }, value, unit ? el("small", {}, ` ${unit}`) : null);
const meter = (parts) => el("div", { class: "meter" }, parts.map(([share, color]) => el("i", { style: `width:${(100 * share).toFixed(2)}%;background:var(${color})` })));
function cards(O) {
  const made = [];
  if (O.evaluation.length) made.push(card("Accuracy", el("table", {}, O.evaluation.map((r) => el("tr", {}, el("td", {}, r.name), el("td", {}, score(r.value)))))));
  if (O.output_db !== null && O.output_db !== undefined) made.push(card("Outputs against float", big(O.output_db.toFixed(1), "dB"), el("div", { class: "note" }, `signal to noise over ${many(D.samples, "sample")}`)));
  const { integer, float } = O.counts, total = integer + float || 1;
  made.push(card("In integers", big(`${Math.round((100 * integer) / total)}%`, "of operators"), meter([[integer / total, "--integer"], [float / total, "--float"]]), el("div", { class: "note" }, `${integer} integer, ${float} float`)));
  if (O.size.float) {
    const [now, unit] = bytes(O.size.stored), [before, was] = bytes(O.size.float);
    made.push(card("Weights", big(now, unit), meter([[O.size.stored / O.size.float, "--accent"]]), el("div", { class: "note" }, `${before} ${was} in floating point: ${(O.size.float / O.size.stored).toFixed(1)} × smaller`)));
  }
  if (D.profile && D.profile.seconds) {
    const { seconds, float_seconds: was } = D.profile, [value, unit] = time(seconds).split(" ");
    made.push(card("Time of the kernels", big(value, unit), was ? [meter([[Math.min(1, seconds / was), "--accent"]]), el("div", { class: "note" }, `${time(was)} in floating point: ${(was / seconds).toFixed(2)} × faster`)] : null));
  }
  if (D.export) {
    const done = D.export.runtime, ok = D.export.proven;
    made.push(card("Export", el("div", { class: `big ${ok ? "good" : "bad"}` }, !done ? "not proven" : ok ? "proven" : "NOT PROVEN"),
      el("div", { class: "note" }, done ? `against ${D.export.runtime}; at most ${many(D.export.max_steps, "step")} apart` : "not compared with a runtime")));
  }
  return made;
}
function worstPart(O) {
  if (!O.worst.length) return el("section", {}, el("h2", {}, "Worst nodes"), el("p", { class: "empty" }, D.samples ? "No node stands out." : "Errors need data: pass data=batches to report()."));
  const own = HAS.errors, top = HAS.shares ? NODES[O.worst[0]].e[2] || 1 : 1;
  const rows = O.worst.map((i) => {
    const n = NODES[i];
    const cells = own
      ? [el("td", { class: "num" }, n.e[2] === null ? "–" : [el("span", { class: "inline-bar", style: `width:${Math.round((54 * n.e[2]) / top)}px` }), percent(n.e[2])]), el("td", { class: "num" }, decibels(n.e[0])), el("td", { class: "num wide-only" }, decibels(n.e[1]))]
      : [el("td", { class: "num" }, percent(sum(n.h.cl)))];
    return el("tr", {}, el("td", { class: "path" }, nodeLink(i)), el("td", { class: "muted wide-only" }, n.o), cells);
  });
  const heads = own ? [["share of noise", 1], ["own", 1], ["with all before", 1, "wide-only"]] : [["clipped", 1]];
  return el("section", {}, el("h2", {}, own ? "Worst nodes" : "Most clipped"),
    el("p", { class: "lead" }, own ? "By what each one's own error adds to the noise at the outputs." : "Share of the float values beyond the ends of the grid."),
    el("div", { class: "scroll" }, el("table", { class: "list" }, el("thead", {}, el("tr", {}, el("th", {}, "node"), el("th", { class: "wide-only" }, "operator"), heads.map(([t, , c]) => el("th", { class: `num ${c || ""}` }, t)))), el("tbody", {}, rows))));
}
function reasonsPart(O) {
  if (!O.reasons.length) return el("p", { class: "empty" }, O.counts.integer ? "Every operator computes in integers." : "Nothing is known about kernels.");
  return el("div", { class: "scroll" }, el("table", { class: "list" },
    el("thead", {}, el("tr", {}, el("th", { class: "num" }, "nodes"), el("th", {}, "operator"), el("th", {}, "why"), el("th", {}, "where"))),
    el("tbody", {}, O.reasons.slice(0, 14).map((r) => el("tr", {}, el("td", { class: "num" }, r.nodes.length), el("td", {}, r.o), el("td", { class: "muted" }, r.why),
      el("td", { class: "path" }, nodeLink(r.nodes[0]), r.nodes.length > 1 ? el("span", { class: "muted" }, ` +${r.nodes.length - 1}`) : null))),
      O.reasons.length > 14 ? el("tr", {}, el("td", { colspan: 4, class: "muted" }, `and ${O.reasons.length - 14} more reasons: see Nodes`)) : null)));
}
function adviceItem(a) {
  const links = a.nodes.slice(0, 3).map((i, k) => [k ? ", " : "", nodeLink(i)]);
  return el("li", {}, el("b", {}, a.what), el("p", {}, a.why), a.nodes.length > 1 ? el("p", {}, links, a.count > 3 ? ` and ${a.count - 3} more` : "") : null, a.code ? el("code", {}, a.code) : null);
}

// --- tables -------------------------------------------------------------------------------------

function sortable(columns, rows, first) {
  let by = first, down = columns[first].down;
  const body = el("tbody", {});
  const heads = columns.map((c, k) => el("th", { class: `${c.num ? "num" : ""} ${c.cls || ""}` }, el("button", { type: "button", onclick: () => { down = by === k ? !down : Boolean(c.down); by = k; render(); } }, c.name)));
  function render() {
    heads.forEach((h, k) => (k === by ? h.setAttribute("aria-sort", down ? "descending" : "ascending") : h.removeAttribute("aria-sort")));
    const key = columns[by].key, rank = (r) => { const v = key(r); return v === null || v === undefined ? null : v; };
    const sorted = [...rows].sort((a, b) => {
      const [x, y] = [rank(a), rank(b)];
      if (x === null || y === null) return x === y ? 0 : x === null ? 1 : -1;
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    });
    body.replaceChildren(...sorted.map((r) => el("tr", {}, columns.map((c) => el("td", { class: `${c.num ? "num" : ""} ${c.cls || ""}` }, c.cell(r))))));
  }
  render();
  return el("div", { class: "scroll" }, el("table", { class: "list" }, el("thead", {}, el("tr", {}, heads)), body));
}
function nodeTable() {
  const columns = [
    { name: "#", key: (r) => r.i, cell: (r) => r.i, num: true, cls: "muted wide-only" },
    { name: "node", key: (r) => r.n.p, cell: (r) => nodeLink(r.i), cls: "path" },
    { name: "operator", key: (r) => r.n.o, cell: (r) => r.n.o },
    { name: "shape", key: (r) => r.n.s.reduce((a, b) => a * b, 1), cell: (r) => shape(r.n.s), cls: "muted wide-only", down: true },
    { name: "precision", key: (r) => r.n.pr, cell: (r) => r.n.pr },
    { name: "kernel", key: (r) => r.n.kn || r.n.k, cell: (r) => r.n.kn || { integer: "integer", float: "float", moves: "moves" }[r.n.k] || "", cls: "wide-only" },
  ];
  const measured = [
    [HAS.shares, "noise", (n) => n.e && n.e[2], percent, true], [HAS.errors, "own", (n) => n.e && n.e[0], decibels, false],
    [HAS.all, "all before", (n) => n.e && n.e[1], decibels, false], [HAS.clipped, "clipped", (n) => n.h && n.h.cl && sum(n.h.cl), percent, true],
    [HAS.times, "time", (n) => n.t && n.t[0] + n.t[1], time, true],
  ];
  for (const [has, name, of, text, down] of measured) {
    if (has) columns.push({ name, key: (r) => { const v = of(r.n); return v === undefined || v === null ? null : v; }, cell: (r) => { const v = of(r.n); return v === undefined || v === null ? "" : text(v); }, num: true, down });
  }
  columns.push({ name: "line", key: (r) => source(r.n), cell: (r) => source(r.n), cls: "muted wide-only" });
  const rows = NODES.map((n, i) => ({ n, i })).filter((r) => r.n.o !== "output");
  return el("div", { class: "view" }, el("section", {}, el("h2", {}, many(rows.length, "node")), el("p", { class: "lead" }, "In the order of execution; a head sorts."), sortable(columns, rows, 0)));
}
function weightList() {
  const rows = NODES.flatMap((n, i) => (n.w || []).filter((w) => w.lo && w.s.length > 1).map((w) => ({ n, i, w })));
  const changed = rows.filter((r) => r.w.blo).length;
  const columns = [
    { name: "weight", key: (r) => r.i, cell: (r) => nodeLink(r.i, `${r.n.p}.${r.w.n}`), cls: "path" },
    { name: "type", key: (r) => r.w.t, cell: (r) => r.w.t },
    { name: "grids", key: (r) => r.w.g.ch || 1, cell: (r) => r.w.g.ch || 1, num: true, down: true, cls: "wide-only" },
    { name: "ranges of the channels", key: (r) => r.i, cell: (r) => rangeChart(r.w, 330, 46), cls: "ranges" },
    { name: "largest : smallest", key: (r) => r.w.r, cell: (r) => (r.w.br && r.w.br !== r.w.r ? `${number(r.w.br)} → ${number(r.w.r)}` : number(r.w.r)), num: true, down: true },
  ];
  return el("div", { class: "view" }, el("section", {}, el("h2", {}, "Ranges of weights"),
    el("p", { class: "lead" }, changed ? `Blue: as they are. Grey: as they were before techniques changed them (${changed} of ${rows.length}).` : "Channel by channel. With one grid for all channels, small ones have few steps. To see what techniques changed, pass before=float_model."),
    sortable(columns, rows, 0)));
}

// --- what was handed in -------------------------------------------------------------------------

const UNITS = { size: ["size of the weights, kB", 1e-3], bit_operations: ["10⁹ bit operations", 1e-9], latency: ["latency, ms", 1e3] };
function searchView() {
  return el("div", { class: "view" }, D.mixed ? mixedParts(D.mixed) : null, D.analyzer ? analyzerPart(D.analyzer) : null);
}
function analyzerPart(A) {
  const S = A.sensitivity || {}, paths = Object.keys(A.enabled || {}), all = Object.values(A.enabled || {});
  const low = least(all), span = most(all) - low || 1;
  const bar = (v) => el("span", { class: "inline-bar", style: `width:${Math.round(4 + (80 * (v - low)) / span)}px` });
  const facts = [["float model", S.float_model], ["weights quantized", S.weights], ["activations quantized", S.activations], ["all quantized", S.all_quantized]];
  const columns = [
    { name: "layer", key: (r) => r, cell: (r) => { const i = NODES.findIndex((n) => n.p === r); return i < 0 ? r : nodeLink(i); }, cls: "path" },
    { name: "it alone quantized", key: (r) => A.enabled[r], cell: (r) => [bar(A.enabled[r]), score(A.enabled[r])], num: true },
    { name: "all but it quantized", key: (r) => (A.disabled || {})[r], cell: (r) => score((A.disabled || {})[r]), num: true, down: true },
  ];
  return [
    el("section", {}, el("h2", {}, "Sensitivity of the model"), el("p", { class: "lead" }, `Measured: ${S.measure || "evaluation"}.`), el("div", { style: "max-width:560px" }, plainPairs(facts.filter(([, v]) => v !== null && v !== undefined).map(([k, v]) => [k, score(v)])))),
    paths.length ? el("section", {}, el("h2", {}, "Sensitivity of layers"), el("p", { class: "lead" }, "Each layer quantized alone, all others in floating point; and all others quantized, it alone in floating point."), sortable(columns, paths, 1)) : null,
  ];
}
function mixedParts(M) {
  const [unit, scale] = UNITS[M.cost] || [M.cost || "cost", 1], parts = [];
  const measure = M.measure === "evaluate" ? "accuracy" : "signal to noise, dB";
  const point = (p) => ({ x: p.cost * scale, y: p.accuracy, text: `${p.label}\n${number(p.accuracy, 4)} at ${number(p.cost * scale)}` });
  const usable = (list) => (list || []).filter((p) => p.accuracy !== null && p.cost !== null).map(point);
  if (M.points && usable(M.points).length) {
    parts.push(el("section", {}, el("h2", {}, "Choices of precision"), el("p", { class: "lead" }, "Every choice that was evaluated; the line joins those that no other one beats. The large dot is what the simulation has now."),
      el("div", { style: "max-width:760px" }, paretoChart(usable(M.points), usable(M.pareto), M.chosen && M.chosen.accuracy !== null ? point(M.chosen) : null, [unit, measure]))));
  }
  if (M.sensitivities && M.sensitivities.length) {
    const scored = M.sensitivities.some((s) => s.score !== null);
    const columns = [
      { name: "group", key: (r) => r.group, cell: (r) => r.group, cls: "path" }, { name: "option", key: (r) => r.option, cell: (r) => r.option },
      { name: "signal to noise", key: (r) => r.sqnr_db, cell: (r) => barOf(r.sqnr_db, M.sensitivities.map((s) => s.sqnr_db)), num: true },
    ];
    if (scored) columns.push({ name: "accuracy", key: (r) => r.score, cell: (r) => number(r.score, 4), num: true });
    parts.push(el("section", {}, el("h2", {}, "Sensitivities"), el("p", { class: "lead" }, "What the outputs keep when one group alone is quantized so, all others in floating point."), sortable(columns, M.sensitivities, 2)));
  }
  return parts;
}
function barOf(db, all) {
  if (db === null || db === undefined) return "–";
  const known = all.filter((v) => v !== null), low = Math.min(0, least(known)), span = most(known) - low || 1;
  return [el("span", { class: "inline-bar", style: `width:${Math.round((90 * (db - low)) / span)}px;background:var(--h${Math.max(2, below(db))})` }), decibels(db)];
}
function runtimeView() {
  return el("div", { class: "view" }, D.export ? exportParts(D.export) : null, D.profile ? profilePart() : null);
}
function exportParts(E) {
  const facts = [["result", !E.runtime ? "not compared" : E.proven ? "proven" : "NOT PROVEN"], ["against", E.runtime || "–"], ["on", E.cpu || "–"],
    ["largest difference", many(E.max_steps || 0, "step")], ["elements that are equal", E.exact_share === undefined ? "–" : percent(E.exact_share)],
    ["multiply-accumulates in integers", E.integer_macs_share === undefined ? "–" : percent(E.integer_macs_share)]];
  if (E.shipped && E.shipped.length) facts.push(["file run at levels", E.shipped.join(", ")]);
  if (E.label_agreement !== null && E.label_agreement !== undefined) facts.push(["labels that agree", percent(E.label_agreement)]);
  return [
    el("section", {}, el("h2", {}, "Proof"), el("p", { class: "lead" }, "What the runtime computes beside what the simulation computes, node by node."), el("div", { style: "max-width:560px" }, plainPairs(facts))),
    E.fidelity && E.fidelity.length ? el("section", {}, el("h2", {}, "Outputs against the float model"), table(["output", "signal to noise", "cosine", "equal labels"], E.fidelity.map((f) => [f.name, f.sqnr_db === null ? "equal or none" : decibels(f.sqnr_db), number(f.cosine, 5), percent(f.labels)]))) : null,
    E.tensors.length ? el("section", {}, el("h2", {}, "Tensors that differ"), el("p", { class: "lead" }, `Computed from the simulation's own inputs; ${many(E.differing, "row")} in all. A tie lies at a rounding boundary.`),
      table(["tensor", "level", "elements", "ties", "drift", "defects", "steps"], E.tensors)) : null,
    E.operators.length ? el("section", {}, el("h2", {}, "Kernels"), table(["nodes", "operator", "kernel", "integer", "why not", "where"], E.operators.map(([n, operator, kernel, integer, reason, name]) => [n, operator, kernel, integer ? "yes" : "no", reason, name]))) : null,
    el("section", {}, el("h2", {}, "This and other CPUs"), cpuPart(E)),
    E.warnings && E.warnings.length ? el("section", {}, el("h2", {}, "Warnings"), el("ul", {}, E.warnings.map((w) => el("li", {}, w)))) : null,
    E.notes && E.notes.length ? el("section", {}, el("h2", {}, "Notes"), el("ul", {}, E.notes.map((w) => el("li", {}, w)))) : null,
  ];
}
function cpuPart(E) {
  const runs = E.kernels || [];
  const risks = E.risks;
  return [
    runs.length ? table(["CPU", "measured", "tensors", "differing", "steps", "signal to noise", "equal labels"], runs.map((k) => [k.cpu, k.measured ? "yes" : "computed", k.tensors, k.differing, k.max_steps, k.sqnr === null ? "equal" : decibels(k.sqnr), percent(k.labels)])) : el("p", { class: "empty" }, "Every CPU that was looked at computes the same."),
    risks ? el("p", { class: "lead" }, `${many(risks, "kernel")} could saturate on x86 CPUs without VNNI.`) : null,
  ];
}
function profilePart() {
  const P = D.profile;
  return el("section", {}, el("h2", {}, "Time"), el("div", { style: "max-width:560px" }, plainPairs([["kernels", time(P.seconds)], ["without grids", time(P.float_seconds)], ["threads", String(P.threads)]])),
    el("p", { class: "lead" }, "Node by node: colour the graph by latency, or sort the table of nodes."));
}
const plainPairs = (rows) => el("table", { class: "list" }, el("tbody", {}, rows.map(([k, v]) => el("tr", {}, el("td", { class: "muted" }, k), el("td", { class: "num" }, v)))));
const table = (heads, rows) => el("div", { class: "scroll" }, el("table", { class: "list" }, el("thead", {}, el("tr", {}, heads.map((h) => el("th", {}, h)))), el("tbody", {}, rows.map((r) => el("tr", {}, r.map((c) => el("td", { class: "path" }, c)))))));

function recipeView() {
  const E = D.environment, parts = [];
  for (const [name, values] of [["Settings", E.settings], ["Versions", E.versions], ["Machine", E.machine]]) parts.push(el("section", {}, el("h2", {}, name), el("div", { style: "max-width:560px" }, plainPairs(Object.entries(values)))));
  for (const [name, value] of [["Recipe", D.recipe], ["Configuration", E.config]]) {
    if (value && Object.keys(value).length) parts.push(el("section", {}, el("h2", {}, name), el("pre", { class: "code mono", style: "overflow:auto;background:var(--sunken);padding:12px 14px;border-radius:8px;margin:6px 0 0" }, JSON.stringify(value, null, 2))));
  }
  return el("div", { class: "view" }, parts);
}
