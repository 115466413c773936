// The graph: drawn anew when something opens, moved by its transform only.
const graph = { x: 0, y: 0, scale: 1, at: null, drawn: false, plan: null };

function graphView() {
  const select = el("select", { id: "coloring", onchange: (e) => { coloring = e.target.value; redraw(); tools(); } });
  for (const [key, way] of Object.entries(COLORINGS)) if (way.has) select.append(el("option", { value: key }, way.name));
  graph.canvas = draw("svg", { class: "canvas", tabindex: -1, "aria-label": "Graph of the network" });
  graph.scene = draw("g", {});
  graph.canvas.append(graph.scene);
  graph.legend = el("span", { class: "legend" });
  const zoom = (factor, label, title) => el("button", { class: "quiet", type: "button", title, "aria-label": title, onclick: () => zoomAt(factor) }, label);
  graph.view = el("div", { class: "graph" },
    el("div", { class: "tools" }, el("label", {}, "Colour: ", select), graph.legend,
      el("span", { class: "legend wide-only" }, el("span", {}, el("i", { style: "background:var(--integer);width:4px" }), "integer kernel"), el("span", {}, el("i", { style: "background:var(--float);width:4px" }), "float kernel"))),
    graph.canvas,
    el("div", { class: "zoomers" }, zoom(1.25, "+", "Zoom in"), zoom(0.8, "−", "Zoom out"),
      el("button", { class: "quiet", type: "button", onclick: () => fit() }, "Fit"),
      el("button", { class: "quiet", type: "button", onclick: closeAll }, "Fold all")),
    el("div", { class: "hint" }, "arrows: neighbours · enter: open · esc: back · / find"));
  listen();
  return graph.view;
}
function tools() {
  byId("coloring").value = coloring;
  graph.legend.replaceChildren(...legendOf(coloring));
  graph.legend.title = COLORINGS[coloring].about;
}

// --- drawing ------------------------------------------------------------------------------------

function redraw() {
  if (!graph.view) return;
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.box : null;
  graph.plan = place(D.tree);
  graph.spots = new Map();
  graph.scene.replaceChildren(...drawn(graph.plan, 0, 0));
  move();
  markNow();
  const again = focused !== null && focused !== undefined ? elementOf(focused) : null;
  if (again) again.focus({ preventScroll: true });
}
function drawn(plan, x, y) {
  const parts = plan.ways.map((way) => draw("path", { class: "edge", d: way.d, transform: `translate(${x} ${y})`, "data-from": way.from ? way.from.id : null, "data-to": way.to ? way.to.id : null }));
  parts.push(...plan.ports.map(([px, py]) => draw("circle", { class: "port", cx: x + px, cy: y + py, r: 2.6 })));
  for (const spot of plan.boxes) {
    const at = { x: x + spot.x, y: y + spot.y, w: spot.w, h: spot.h };
    graph.spots.set(spot.box.id, at);
    if (spot.inside && spot.box.c) parts.push(...room(spot, at));
    else parts.push(spot.box.c ? closedBox(spot.box, at) : leafBox(spot.box, at));
  }
  for (const far of plan.far || []) parts.push(farEdge(far, x, y));
  return parts;
}
function farEdge(far, x, y) {
  const label = far.from ? far.from.l : "outside";
  return draw("text", { class: "far", x: x + far.spot.x + 12, y: y + far.spot.top - 4, onclick: () => far.from && goto(far.from) }, `↰ ${clip(label, 22)}`, draw("title", {}, `also reads ${label}`));
}
function frame(box, at, label, expanded = null) {
  return draw("g", {
    class: "box", "data-box": box.id, tabindex: 0, role: "button", "aria-label": label,
    "aria-expanded": expanded, transform: `translate(${at.x.toFixed(1)} ${at.y.toFixed(1)})`,
  });
}
function leafBox(box, at) {
  const node = NODES[box.i], look = paint(box.i, box.i + 1);
  const g = frame(box, at, `${node.p}, ${node.o}${look.text ? `, ${look.text}` : ""}`);
  const round = ["input", "output", "quantize", "dequantize"].includes(node.o) ? 21 : 7;
  g.style.color = look.ink;
  g.append(
    draw("title", {}, [node.p, node.o, shape(node.s), node.pr, KERNELS[node.k], source(node)].filter(Boolean).join("\n")),
    draw("rect", { class: "body", width: at.w, height: at.h, rx: round, style: `fill:${look.color}` }));
  if (node.k === "integer" || node.k === "float") {
    g.append(draw("path", { d: `M0 ${round}Q0 0 ${round} 0h1v${at.h}h-1Q0 ${at.h} 0 ${at.h - round}z`, style: `fill:var(--${node.k})`, "clip-path": "inset(0 0 0 0)" , transform: "scale(.62 1)" }));
  }
  const space = at.w - 24 - (look.text ? 7 * look.text.length + 8 : 0), inner = shape(node.s.slice(1));
  g.append(
    draw("text", { class: "label", x: 14, y: 18 }, fitting(titleOf(box), space)),
    draw("text", { class: "kind", x: 14, y: 33 }, fitting(node.o, at.w - 30 - 6 * inner.length, 11), inner ? `  ${inner}` : ""));
  if (look.text) g.append(draw("text", { class: "value", x: at.w - 10, y: 18, "text-anchor": "end" }, look.text));
  g.append(draw("rect", { class: "ring", x: -4, y: -4, width: at.w + 8, height: at.h + 8, rx: round + 4 }));
  return g;
}
function closedBox(box, at) {
  const look = paint(box.a, box.z), stack = box.k === "stack";
  const count = stack ? `${box.c.length} × ${box.c[0].z - box.c[0].a} nodes` : many(box.z - box.a, "node");
  const g = frame(box, at, `${box.p || box.l}, ${count}, folded${look.text ? `, ${look.text}` : ""}`, "false");
  g.append(draw("title", {}, `${box.p || box.l}\n${count}\nclick to open`));
  if (stack) for (const k of [6, 3]) g.append(draw("rect", { class: "behind", x: k, y: k, width: at.w, height: at.h, rx: 9 }));
  g.append(draw("rect", { class: "body", width: at.w, height: at.h, rx: 9, style: "fill:var(--surface)" }));
  g.append(
    draw("text", { class: "label", x: 12, y: 19 }, fitting(titleOf(box), at.w - 26 - (look.text ? 7 * look.text.length + 16 : 0))),
    draw("text", { class: "kind", x: 12, y: 35 }, count));
  if (look.text) {
    const wide = 12 + 6.6 * look.text.length;
    g.append(draw("rect", { x: at.w - wide - 8, y: 8, width: wide, height: 17, rx: 8.5, style: `fill:${look.color}` }),
      draw("text", { class: "value", x: at.w - 8 - wide / 2, y: 20.5, "text-anchor": "middle", style: `fill:${look.ink}` }, look.text));
  }
  g.append(...barcode(box, 12, 43, at.w - 24, 9));
  g.append(draw("rect", { class: "ring", x: -4, y: -4, width: at.w + 8, height: at.h + 8, rx: 13 }));
  return g;
}
// one cell a member, or a node: where in a folded box the trouble is
function barcode(box, x, y, w, h) {
  const parts = box.k === "stack" ? box.c.map((c) => [c.a, c.z]) : Array.from({ length: box.z - box.a }, (_, k) => [box.a + k, box.a + k + 1]);
  const n = Math.min(parts.length, 48), cells = [];
  for (let k = 0; k < n; k++) {
    const first = parts[Math.floor((k * parts.length) / n)][0], last = parts[Math.floor(((k + 1) * parts.length) / n) - 1][1];
    cells.push(draw("rect", { class: "cell", x: x + (k * w) / n, y, width: Math.max(0.8, w / n - (n > 30 ? 0.4 : 1.2)), height: h, rx: 1.5, style: `fill:${paint(first, last).color}` }));
  }
  return cells;
}
function room(spot, at) {
  const { box, inside } = spot, stack = box.k === "stack";
  const look = paint(box.a, box.z);
  const g = frame(box, at, `${box.p || box.l}, open`, "true");
  g.append(draw("rect", { class: "body room", width: at.w, height: at.h, rx: 12 }));
  const head = stack ? `${titleOf(box)}  × ${box.c.length}` : titleOf(box);
  g.append(draw("text", { class: "head", x: 14, y: 22 }, `${spot.fixed ? "" : "−  "}${clip(head, Math.floor((at.w - 90) / 7.2))}`));
  if (look.text) g.append(draw("text", { class: "sub", x: at.w - 14, y: 22, "text-anchor": "end" }, look.text));
  g.append(draw("rect", { class: "ring", x: -4, y: -4, width: at.w + 8, height: at.h + 8, rx: 15 }));
  const parts = [g];
  if (stack) parts.push(picker(box, at, inside));
  return [...parts, ...drawn(inside, at.x, at.y)];
}
function picker(box, at) {
  const g = draw("g", { transform: `translate(${at.x + PAD} ${at.y + HEAD})` });
  box.c.forEach((member, k) => {
    const look = paint(member.a, member.z), row = Math.floor(k / CELLS_A_ROW);
    g.append(draw("rect", {
      class: `cell pick${k === box.pick ? " now" : ""}`, x: (k % CELLS_A_ROW) * (CELL + 3), y: row * (CELL + 3), width: CELL, height: CELL, rx: 3.5,
      style: `fill:${look.color}`, onclick: (e) => { e.stopPropagation(); pick(box, k); },
    }, draw("title", {}, `${member.p || member.l}${look.text ? `: ${look.text}` : ""}`)));
  });
  const rows = Math.ceil(box.c.length / CELLS_A_ROW);
  const text = `shown: ${box.pick + 1} of ${box.c.length}; all have this structure`;
  g.append(draw("text", { class: "sub", x: 0, y: rows * (CELL + 3) + 12 }, text));
  return g;
}

// --- opening ------------------------------------------------------------------------------------

function keepInPlace(box, change) {
  const before = graph.spots.get(box.id);
  change();
  redraw();
  const after = graph.spots.get(box.id);
  if (before && after) {
    graph.x += (before.x + before.w / 2 - after.x - after.w / 2) * graph.scale;
    graph.y += (before.y - after.y) * graph.scale;
    move();
  }
}
function toggle(box) {
  if (!box.c) return;
  keepInPlace(box, () => {
    box.open = !box.open;
    if (box.open && box.k === "stack") openWorst(box);
  });
  const there = elementOf(box.id);
  if (there) there.focus({ preventScroll: true });
}
function openWorst(stack) {
  let best = -Infinity;
  stack.c.forEach((member, k) => {
    const { rank } = paint(member.a, member.z);
    if (rank > best) { best = rank; stack.pick = k; }
  });
}
function pick(stack, k) {
  keepInPlace(stack, () => { stack.pick = Math.max(0, Math.min(stack.c.length - 1, k)); });
}
function closeAll() {
  for (const box of BOXES) box.open = box === D.tree;
  redraw();
  fit();
}
// opens all that a box lies in, and puts it into the middle
function reveal(box) {
  for (let child = box, above = box.above; above; child = above, above = above.above) {
    above.open = true;
    if (above.k === "stack") above.pick = above.c.indexOf(child);
  }
  redraw();
  const at = graph.spots.get(box.id);
  if (!at) return;
  const size = graph.canvas.getBoundingClientRect();
  graph.scale = Math.max(graph.scale, 0.8);
  // on a phone the panel of the node covers the lower part
  const sheet = innerWidth <= 760 && !byId("panel").hidden ? byId("panel").getBoundingClientRect().height : 0;
  const middle = sheet ? 20 + (size.height - sheet) / 2 : size.height / 2;
  graph.x = size.width / 2 - (at.x + at.w / 2) * graph.scale;
  graph.y = middle - (at.y + Math.min(at.h, 200) / 2) * graph.scale;
  move();
}
function goto(box) {
  reveal(box);
  const there = elementOf(box.id);
  if (there) there.focus({ preventScroll: true });
}
// a number alone says little: "layer3.0" for the "0" in layer3
function titleOf(box) {
  const path = box.i !== undefined ? NODES[box.i].p : box.p;
  return /^\d+$/.test(box.l) && path ? path.split(".").slice(-2).join(".") : box.l;
}
const elementOf = (id) => graph.scene.querySelector(`[data-box="${CSS.escape(id)}"]`);

function markNow() {
  const box = graph.at === null ? null : LEAF_OF[graph.at];
  const chain = new Set();
  for (let b = box; b; b = b.above) chain.add(b.id);
  for (const element of graph.scene.querySelectorAll(".box")) element.classList.toggle("at", box !== null && element.dataset.box === box.id);
  for (const edge of graph.scene.querySelectorAll(".edge")) edge.classList.toggle("on", box !== null && (edge.dataset.from === box.id || edge.dataset.to === box.id));
}

// --- moving -------------------------------------------------------------------------------------

function move() { graph.scene.setAttribute("transform", `translate(${graph.x.toFixed(2)} ${graph.y.toFixed(2)}) scale(${graph.scale.toFixed(4)})`); }
function fit() {
  const size = graph.canvas.getBoundingClientRect();
  if (!graph.plan || !size.width) return;
  const tools = graph.view.querySelector(".tools").getBoundingClientRect().height + 18;
  const wide = (size.width - 32) / graph.plan.w;
  const whole = (size.height - tools - 30) / graph.plan.h;
  // a long network is read from its top: the whole of it would be too small for its texts
  graph.scale = Math.min(1.15, wide, Math.max(whole, 0.7));
  graph.x = (size.width - graph.plan.w * graph.scale) / 2;
  graph.y = whole >= graph.scale ? tools + (size.height - tools - graph.plan.h * graph.scale) / 2 : tools - 10;
  move();
}
function zoomAt(factor, px, py) {
  const size = graph.canvas.getBoundingClientRect();
  const x = px === undefined ? size.width / 2 : px - size.left, y = py === undefined ? size.height / 2 : py - size.top;
  const scale = Math.max(0.05, Math.min(3, graph.scale * factor)), by = scale / graph.scale;
  graph.x = x - (x - graph.x) * by;
  graph.y = y - (y - graph.y) * by;
  graph.scale = scale;
  move();
}
function listen() {
  const pointers = new Map();
  let moved = 0;
  graph.canvas.addEventListener("pointerdown", (e) => { pointers.set(e.pointerId, [e.clientX, e.clientY]); moved = 0; });
  addEventListener("pointermove", (e) => {
    const before = pointers.get(e.pointerId);
    if (!before) return;
    const now = [e.clientX, e.clientY];
    if (pointers.size === 1) {
      graph.x += now[0] - before[0];
      graph.y += now[1] - before[1];
      moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
      move();
    } else if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== e.pointerId)[1];
      const length = ([ax, ay], [bx, by]) => Math.hypot(ax - bx, ay - by) || 1;
      zoomAt(length(now, other) / length(before, other), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      moved += 10;
    }
    pointers.set(e.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, (e) => pointers.delete(e.pointerId));
  graph.canvas.addEventListener("wheel", (e) => {
    e.preventDefault();
    const lines = e.deltaMode === 1 ? 18 : 1;
    if (e.ctrlKey || e.metaKey) zoomAt(Math.exp(-e.deltaY * lines * 0.006), e.clientX, e.clientY);
    else { graph.x -= e.deltaX * lines; graph.y -= e.deltaY * lines; move(); }
  }, { passive: false });
  graph.canvas.addEventListener("click", (e) => {
    if (moved > 6) return;
    const found = e.target.closest(".box");
    if (found) activate(BOX_OF.get(found.dataset.box), e);
  });
  graph.canvas.addEventListener("keydown", keys);
}
function activate(box, event) {
  if (box.i !== undefined) return showNode(box.i);
  const member = box.above !== null && box.above.k === "stack";
  // the inside of an open group is for moving around; its head closes it
  if (event.type === "click" && (box.open || member)) {
    const at = graph.spots.get(box.id), top = graph.canvas.getBoundingClientRect().top;
    if ((event.clientY - top - graph.y) / graph.scale - at.y > HEAD) return undefined;
  }
  return toggle(member ? box.above : box);
}
function keys(e) {
  const element = e.target.closest(".box");
  if (!element) return;
  const box = BOX_OF.get(element.dataset.box);
  const stack = box.k === "stack" && box.open ? box : box.above && box.above.k === "stack" ? box.above : null;
  if (e.key === "Enter" || e.key === " ") activate(box, e);
  else if (stack && (e.key === "ArrowLeft" || e.key === "ArrowRight")) {
    pick(stack, stack.pick + (e.key === "ArrowLeft" ? -1 : 1));
    goto(stack === box ? stack : stack.c[stack.pick]);
  } else if (e.key.startsWith("Arrow")) step(box, e.key);
  else if (e.key === "Escape" && box.above && box.above !== D.tree && byId("panel").hidden) toggleUp(box);
  else if (e.key === "+" || e.key === "-") zoomAt(e.key === "+" ? 1.25 : 0.8);
  else return;
  e.preventDefault();
  if (e.key === "Escape") e.stopPropagation();
}
function toggleUp(box) {
  const above = box.above.above && box.above.above.k === "stack" ? box.above.above : box.above;
  toggle(above);
}
// the nearest box in a direction, among all that are drawn
function step(box, key) {
  const from = graph.spots.get(box.id), [cx, cy] = [from.x + from.w / 2, from.y + 20];
  const along = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] }[key];
  let best = null, least = Infinity;
  for (const [id, at] of graph.spots) {
    if (id === box.id) continue;
    const dx = at.x + at.w / 2 - cx, dy = at.y + 20 - cy;
    const ahead = dx * along[0] + dy * along[1], aside = Math.abs(dx * along[1]) + Math.abs(dy * along[0]);
    if (ahead > 4 && ahead + 2.5 * aside < least) { least = ahead + 2.5 * aside; best = id; }
  }
  if (best === null) return;
  elementOf(best).focus({ preventScroll: true });
  intoSight(graph.spots.get(best));
}
function intoSight(at) {
  const size = graph.canvas.getBoundingClientRect(), edge = 70;
  const [x, y] = [at.x * graph.scale + graph.x, at.y * graph.scale + graph.y];
  const [w, h] = [at.w * graph.scale, Math.min(at.h, 120) * graph.scale];
  if (x < edge) graph.x += edge - x; else if (x + w > size.width - edge) graph.x -= x + w - size.width + edge;
  if (y < edge) graph.y += edge - y; else if (y + h > size.height - edge) graph.y -= y + h - size.height + edge;
  move();
}
