// Charts as plain SVG, in units of their view boxes; they shrink and grow with their place.

function ticks(low, high, count = 4) {
  const span = high - low || 1;
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) found.push(Math.abs(t) < step * 1e-6 ? 0 : t);
  return found;
}

// Float values of a tensor over its grid: bars, the ends of the grid, and its steps.
function histogramChart(h, g) {
  const W = 390, H = 150, top = 22, base = H - 22;
  const ends = g && g.hi !== undefined ? [g.lo, g.hi] : [];
  const low = Math.min(h.lo, ...ends), high = Math.max(h.hi, ...ends);
  const pad = (high - low) * 0.03 || 1, x0 = low - pad, span = high - low + 2 * pad;
  const x = (v) => ((v - x0) / span) * W;
  const bars = unpack(h.h);
  const width = (h.hi - h.lo) / bars.length;
  const parts = [];
  if (ends.length) {
    parts.push(draw("rect", { x: x(g.lo), y: top, width: Math.max(1, x(g.hi) - x(g.lo)), height: base - top, style: "fill:var(--accent-soft)" }));
    parts.push(...gridComb(g, x, base));
  }
  bars.forEach((b, i) => {
    if (!b) return;
    const left = x(h.lo + i * width), right = x(h.lo + (i + 1) * width), middle = h.lo + (i + 0.5) * width;
    const out = ends.length && (middle < g.lo - g.s / 2 || middle > g.hi + g.s / 2);
    const height = Math.max(1, (b / 255) * (base - top - 4));
    parts.push(draw("rect", { x: left, y: base - height, width: Math.max(0.8, right - left - 0.4), height, style: `fill:var(${out ? "--bad" : "--accent"})`, opacity: 0.85 }));
  });
  for (const [end, side] of ends.map((e, i) => [e, i])) {
    parts.push(draw("line", { x1: x(end), x2: x(end), y1: top - 4, y2: base + 3, style: "stroke:var(--bad);stroke-width:1.4;stroke-dasharray:4 3" }));
    parts.push(draw("text", { x: Math.min(Math.max(x(end), 2), W - 2), y: top - 8, "text-anchor": side ? "end" : "start", style: "fill:var(--bad)" }, number(end)));
  }
  parts.push(draw("line", { class: "axis", x1: 0, x2: W, y1: base + 0.5, y2: base + 0.5 }));
  for (const t of ticks(low, high)) parts.push(draw("text", { x: x(t), y: H - 7, "text-anchor": x(t) < 14 ? "start" : x(t) > W - 14 ? "end" : "middle" }, number(t)));
  return draw("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Histogram of the float values" }, parts);
}
function gridComb(g, x, base) {
  const gap = x(g.s) - x(0);
  if (!(gap > 0)) return [];
  const every = Math.max(1, Math.ceil(3 / gap)), count = Math.round((g.hi - g.lo) / g.s);
  const way = [];
  for (let k = 0; k <= count && way.length < 500; k += every) way.push(`M${x(g.lo + k * g.s).toFixed(1)} ${base}v${k === 0 ? 6 : 4}`);
  return [draw("path", { d: way.join(""), style: "stroke:var(--accent);stroke-width:.7;fill:none" })];
}

// Errors along the network, node after node: own error as bars that hang from the top, so that
// long ones are bad ones, and error with all before as a line.
function errorChart(open) {
  const shown = NODES.map((n, i) => [n, i]).filter(([n]) => n.e && (n.e[0] !== null || n.e[1] !== null));
  const W = Math.max(340, Math.min(1190, innerWidth - 48)), H = 230, left = 44, base = H - 20, top = 14;
  const cap = (v) => Math.max(-5, Math.min(60, v));
  const y = (db) => top + ((60 - cap(db)) / 65) * (base - top);
  const step = (W - left) / Math.max(1, shown.length);
  const x = (k) => left + (k + 0.5) * step;
  const parts = [];
  for (const t of [0, 20, 40, 60]) {
    parts.push(draw("line", { class: "guide", x1: left, x2: W, y1: y(t), y2: y(t) }), draw("text", { x: left - 8, y: y(t) + 4, "text-anchor": "end" }, t === 60 ? "60 dB" : t));
  }
  const worst = new Set(D.overview.worst.slice(0, 3));
  shown.forEach(([n, i], k) => {
    if (n.e[0] === null) return;
    const width = Math.max(1.2, step * 0.7), depth = y(n.e[0]);
    parts.push(draw("rect", { x: x(k) - width / 2, y: top, width, height: Math.max(1, depth - top), style: `fill:var(${worst.has(i) ? "--h4" : "--h2"})` }));
    if (worst.has(i)) parts.push(draw("path", { d: `M${x(k)} ${depth + 3}l-5 8h10z`, style: "fill:var(--bad)" }));
  });
  const line = shown.map(([n], k) => [k, n.e[1]]).filter(([, v]) => v !== null);
  parts.push(draw("path", { class: "all", d: line.map(([k, v], j) => `${j ? "L" : "M"}${x(k).toFixed(1)} ${y(v).toFixed(1)}`).join("") }));
  shown.forEach(([n, i], k) => {
    parts.push(draw("rect", { class: "hit", x: x(k) - step / 2, y: top, width: step, height: base - top, onclick: () => open(i) },
      draw("title", {}, `${n.p}\nown ${decibels(n.e[0])}, with all before ${decibels(n.e[1])}`)));
  });
  parts.push(draw("line", { class: "axis", x1: left, x2: W, y1: base, y2: base }));
  parts.push(draw("text", { x: left, y: H - 4 }, "input"), draw("text", { x: W, y: H - 4, "text-anchor": "end" }, "output"));
  return draw("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Errors along the network" }, parts);
}

// Ranges of the channels of a weight; grey behind: before.
function rangeChart(w, W = 390, H = 96) {
  const all = [w.lo, w.hi, w.blo, w.bhi].filter(Boolean).flat();
  const low = Math.min(0, ...all), high = Math.max(0, ...all), span = high - low || 1;
  const y = (v) => 4 + ((high - v) / span) * (H - 8);
  const bars = (lo, hi, style, share) => lo.map((v, i) => {
    const step = (W - 40) / lo.length;
    return draw("rect", { x: 40 + i * step + (step * (1 - share)) / 2, y: y(hi[i]), width: Math.max(0.6, step * share), height: Math.max(0.6, y(v) - y(hi[i])), style });
  });
  const parts = [];
  if (w.blo) parts.push(bars(w.blo, w.bhi, "fill:var(--line)", 0.94));
  parts.push(bars(w.lo, w.hi, "fill:var(--accent)", w.blo ? 0.5 : 0.78));
  parts.push(draw("line", { class: "axis", x1: 40, x2: W, y1: y(0), y2: y(0) }));
  parts.push(draw("text", { x: 34, y: 12, "text-anchor": "end" }, number(high, 2)), draw("text", { x: 34, y: H - 3, "text-anchor": "end" }, number(low, 2)));
  return draw("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Ranges of the channels" }, parts);
}

// Points with a front: cost to the right, accuracy upwards.
function paretoChart(points, front, chosen, labels) {
  const W = 640, H = 320, left = 62, base = H - 40, top = 14, right = W - 14;
  const xs = points.map((p) => p.x), ys = points.map((p) => p.y);
  const pad = (a, b) => (b - a || Math.abs(b) || 1) * 0.07;
  const [x0, x1] = [least(xs) - pad(least(xs), most(xs)), most(xs) + pad(least(xs), most(xs))];
  const [y0, y1] = [least(ys) - pad(least(ys), most(ys)), most(ys) + pad(least(ys), most(ys))];
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (right - left), y = (v) => base - ((v - y0) / (y1 - y0)) * (base - top);
  const parts = [];
  for (const t of ticks(y0, y1)) parts.push(draw("line", { class: "guide", x1: left, x2: right, y1: y(t), y2: y(t) }), draw("text", { x: left - 8, y: y(t) + 4, "text-anchor": "end" }, number(t, 4)));
  for (const t of ticks(x0, x1, 5)) parts.push(draw("text", { x: x(t), y: base + 16, "text-anchor": "middle" }, number(t)));
  parts.push(draw("line", { class: "axis", x1: left, x2: right, y1: base, y2: base }));
  parts.push(draw("text", { x: right, y: H - 6, "text-anchor": "end" }, labels[0]), draw("text", { x: left, y: 9 }, labels[1]));
  parts.push(draw("path", { class: "all", d: front.map((p, i) => `${i ? "L" : "M"}${x(p.x)} ${y(p.y)}`).join("") }));
  for (const p of points) {
    const on = front.some((q) => q.x === p.x && q.y === p.y), now = chosen && p.x === chosen.x && p.y === chosen.y;
    parts.push(draw("circle", { cx: x(p.x), cy: y(p.y), r: now ? 7 : on ? 4.5 : 3, style: now ? "fill:var(--h4);stroke:var(--surface);stroke-width:1.5" : on ? "fill:var(--accent)" : "fill:var(--faint)" }, draw("title", {}, p.text)));
  }
  return draw("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Accuracy over cost" }, parts);
}
