// Where boxes and edges go. Rows and their order come with the data, for every group by itself;
// sizes depend on what is open, so places are computed here, from the inside to the outside.
const GAP_X = 22, GAP_Y = 30, BEND = 12, PAD = 16, HEAD = 34;
const LEAF = [176, 42], CLOSED = [196, 60], CELL = 15, CELLS_A_ROW = 24;

const BOXES = []; // every box of the folded graph; the root first
const LEAF_OF = []; // place of a node -> its box
(function number(box, above, id) {
  Object.assign(box, { id, above, open: above === null, pick: 0 });
  if (box.i !== undefined) { box.a = box.i; box.z = box.i + 1; LEAF_OF[box.i] = box; }
  BOXES.push(box);
  (box.c || []).forEach((child, k) => number(child, box, id === "" ? String(k) : `${id}.${k}`));
})(D.tree, null, "");
const BOX_OF = new Map(BOXES.map((box) => [box.id, box]));

// {w, h, boxes: [{box, x, y, w, h, inside}], ways: [{from, to, d}], ports: [[x, y]]}
function place(box) {
  if (box.k === "stack") return placeStack(box);
  const n = box.c.length;
  const inside = box.c.map((child) => (child.open && child.c ? place(child) : null));
  const size = box.c.map((child, k) => (inside[k] ? [inside[k].w, inside[k].h] : child.c ? CLOSED : LEAF));
  const width = (id) => (id < n ? size[id][0] : id < n + 2 ? 1 : BEND);
  const used = new Set(box.e.flatMap(([a, b]) => [a, b]));
  const rows = box.r.map((row) => row.filter((id) => id < n || id > n + 1 || used.has(id))).filter((row) => row.length);
  const up = new Map(), down = new Map();
  const note = (map, key, value) => (map.has(key) ? map.get(key).push(value) : map.set(key, [value]));
  const chains = box.e.map(([a, b, bends]) => [a, ...bends, b]);
  for (const chain of chains) for (let k = 1; k < chain.length; k++) { note(down, chain[k - 1], chain[k]); note(up, chain[k], chain[k - 1]); }
  const xs = middles(rows, width, up, down);
  let y = HEAD;
  const tops = rows.map((row, k) => {
    const height = Math.max(0, ...row.map((id) => (id < n ? size[id][1] : 0)));
    const at = y;
    y += height + (k < rows.length - 1 ? (height ? GAP_Y : 12) : 0);
    return [at, height];
  });
  const left = Math.min(...rows.flat().map((id) => xs.get(id) - width(id) / 2));
  const right = Math.max(...rows.flat().map((id) => xs.get(id) + width(id) / 2));
  const title = 60 + 7 * (box.l || "").length;
  const w = Math.max(right - left + 2 * PAD, Math.min(title + 120, 420)), shift = (w - (right - left)) / 2 - left;
  const made = { w, h: y + PAD, boxes: [], ways: [], ports: [] };
  const spot = new Map();
  rows.forEach((row, k) => row.forEach((id) => {
    const [top, height] = tops[k], x = xs.get(id) + shift;
    if (id < n) {
      const [bw, bh] = size[id], by = top + (height - bh) / 2;
      made.boxes.push({ box: box.c[id], x: x - bw / 2, y: by, w: bw, h: bh, inside: inside[id] });
      spot.set(id, { x, top: by, bottom: by + bh });
    } else {
      spot.set(id, { x, top, bottom: top + height });
      if (id < n + 2) made.ports.push([x, top]);
    }
  }));
  const part = (id) => (id < n ? box.c[id] : null);
  chains.forEach((chain) => made.ways.push({ from: part(chain[0]), to: part(chain[chain.length - 1]), d: curve(chain.map((id) => spot.get(id))) }));
  made.far = (box.f || []).map(([a, b]) => ({ from: part(a), to: part(b), spot: spot.get(b) })).filter((f) => f.to);
  return made;
}

// An open stack shows all its members as cells, and the one that is picked below them.
function placeStack(box) {
  const member = box.c[box.pick];
  const inside = member.c ? place(member) : { ...LEAF };
  const rows = Math.ceil(box.c.length / CELLS_A_ROW);
  const strip = rows * (CELL + 3) + 26;
  const w = Math.max(inside.w + 2 * PAD, Math.min(box.c.length, CELLS_A_ROW) * (CELL + 3) + 2 * PAD, 330);
  return {
    w, h: HEAD + strip + inside.h + PAD, strip, ports: [], ways: [], far: [],
    boxes: [{ box: member, x: (w - inside.w) / 2, y: HEAD + strip, w: inside.w, h: inside.h, inside, fixed: true }],
  };
}

// Middles of boxes: near their neighbours, in their order and apart from each other.
function middles(rows, width, up, down) {
  const xs = new Map();
  const mean = (ids, fallback) => {
    const known = (ids || []).filter((id) => xs.has(id)).map((id) => xs.get(id));
    return known.length ? sum(known) / known.length : fallback;
  };
  const apart = (row, neighbours, fallback) => {
    const wanted = row.map((id) => mean(neighbours.get(id), fallback(id)));
    const found = [];
    row.forEach((id, k) => {
      let x = wanted[k];
      if (k) x = Math.max(x, found[k - 1] + (width(row[k - 1]) + width(id)) / 2 + GAP_X);
      found.push(x);
    });
    const drift = sum(found.map((f, k) => f - wanted[k])) / row.length;
    row.forEach((id, k) => xs.set(id, found[k] - drift));
  };
  for (const row of rows) apart(row, up, () => 0);
  for (const row of [...rows].reverse()) apart(row, down, (id) => xs.get(id));
  for (const row of rows) apart(row, up, (id) => xs.get(id));
  return xs;
}

// A smooth line that leaves and enters every spot vertically, and runs straight beside boxes.
function curve(spots) {
  let text = "";
  spots.forEach((spot, k) => {
    if (k === 0) { text = `M${spot.x.toFixed(1)} ${spot.bottom.toFixed(1)}`; return; }
    const from = spots[k - 1], middle = (from.bottom + spot.top) / 2;
    text += `C${from.x.toFixed(1)} ${middle.toFixed(1)} ${spot.x.toFixed(1)} ${middle.toFixed(1)} ${spot.x.toFixed(1)} ${spot.top.toFixed(1)}`;
    if (k < spots.length - 1 && spot.bottom > spot.top) text += `V${spot.bottom.toFixed(1)}`;
  });
  return text;
}
