// What the address says, tabs, search, keys; then the first view.
const VIEWS = {};
let current = null;

function select(name, { focus = false } = {}) {
  if (!TABS.some(([key]) => key === name)) name = "overview";
  current = name;
  const [, , make] = TABS.find(([key]) => key === name);
  VIEWS[name] ||= make();
  byId("main").replaceChildren(VIEWS[name]);
  for (const tab of byId("tabs").children) {
    const on = tab.dataset.tab === name;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    if (on && focus) tab.focus();
  }
  document.body.style.height = name === "graph" ? "100dvh" : "";
  if (name === "graph") {
    tools();
    if (!graph.drawn) { graph.drawn = true; openSome(); redraw(); fit(); }
  } else scrollTo(0, 0);
}
function show(name) {
  select(name);
  if (!byId("panel").hidden) hideNode();
  setHash({ tab: name });
}
function openNode(i) {
  showNode(i, { center: current === "graph" });
  byId("panel").focus({ preventScroll: true });
}
// a root of few boxes says little: open the largest ones until there is something to see
function openSome() {
  const shown = [...D.tree.c];
  for (;;) {
    const group = shown.filter((b) => b.c && b.k !== "stack").sort((a, b) => b.z - b.a - (a.z - a.a))[0];
    if (!group || shown.length >= 7 || shown.length + group.c.length > 22) return;
    group.open = true;
    shown.splice(shown.indexOf(group), 1, ...group.c);
  }
}

// --- the address --------------------------------------------------------------------------------

let written = "";
function setHash(values) {
  const parts = [values.tab];
  if (values.node) parts.push(`node=${encodeURIComponent(values.node)}`);
  written = `#${parts.join("&")}`;
  history.replaceState(null, "", written);
}
function readHash() {
  const given = location.hash.slice(1).split("&").filter(Boolean);
  const values = {};
  let tab = null;
  for (const part of given) {
    const [key, ...rest] = part.split("=");
    if (rest.length) { try { values[key] = decodeURIComponent(rest.join("=")); } catch { values[key] = rest.join("="); } }
    else tab = key;
  }
  if (values.theme) setTheme(values.theme === "dark");
  if (COLORINGS[values.color] && COLORINGS[values.color].has) { coloring = values.color; if (graph.drawn) redraw(); }
  const found = values.node === undefined ? -1 : NODES.findIndex((n) => n.n === values.node || n.p === values.node);
  select(tab || (found >= 0 ? "graph" : "overview"));
  const group = values.open === undefined || current !== "graph" ? null : BOXES.find((b) => b.c && b.p === values.open);
  if (group) { if (!group.open) toggle(group); reveal(group); }
  if (found >= 0) showNode(found, { center: true });
}

// --- search -------------------------------------------------------------------------------------

function search() {
  const input = byId("search"), list = byId("found");
  let hits = [], at = 0;
  const close = () => { list.hidden = true; input.setAttribute("aria-expanded", "false"); };
  const mark = () => [...list.children].forEach((li, k) => {
    li.setAttribute("aria-selected", String(k === at));
    if (k === at) { li.scrollIntoView({ block: "nearest" }); input.setAttribute("aria-activedescendant", li.id); }
  });
  const take = (k) => {
    if (hits[k] === undefined) return;
    close();
    if (current !== "graph") select("graph");
    showNode(hits[k], { center: true });
    byId("panel").focus({ preventScroll: true });
  };
  const find = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return close();
    hits = [];
    for (let i = 0; i < NODES.length && hits.length < 40; i++) {
      const text = `${NODES[i].p} ${NODES[i].n} ${NODES[i].o} ${source(NODES[i])}`.toLowerCase();
      if (words.every((w) => text.includes(w))) hits.push(i);
    }
    at = 0;
    list.replaceChildren(...(hits.length ? hits.map((i, k) => el("li", { role: "option", id: `hit${k}`, onmousedown: (e) => { e.preventDefault(); take(k); } }, NODES[i].p, el("small", {}, [NODES[i].o, source(NODES[i])].filter(Boolean).join(" · ")))) : [el("li", { class: "muted" }, "nothing is called so")]));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    return mark();
  };
  input.addEventListener("input", find);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (e) => {
    if (e.key === "ArrowDown" || e.key === "ArrowUp") { at = Math.max(0, Math.min(hits.length - 1, at + (e.key === "ArrowDown" ? 1 : -1))); mark(); e.preventDefault(); }
    else if (e.key === "Enter") take(at);
    else if (e.key === "Escape") { input.value = ""; close(); input.blur(); e.stopPropagation(); }
  });
}

// --- themes, keys -------------------------------------------------------------------------------

function setTheme(dark) { document.documentElement.classList.toggle("dark", dark); }
function begin() {
  document.title = `${D.title}: fxquant report`;
  byId("title").textContent = D.title;
  byId("subtitle").textContent = `for ${D.target} · ${many(NODES.length, "node")} · ${D.samples ? "with data" : "without data"} · fxquant ${D.version}`;
  const system = matchMedia("(prefers-color-scheme: dark)");
  setTheme(system.matches);
  system.addEventListener("change", (e) => setTheme(e.matches));
  byId("theme").addEventListener("click", () => setTheme(!document.documentElement.classList.contains("dark")));
  byId("tabs").append(...TABS.map(([key, name]) => el("button", { type: "button", role: "tab", "data-tab": key, "aria-controls": "main", onclick: () => show(key) }, name)));
  byId("tabs").addEventListener("keydown", (e) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!way) return;
    const k = TABS.findIndex(([key]) => key === current);
    show(TABS[(k + way + TABS.length) % TABS.length][0]);
    select(current, { focus: true });
  });
  addEventListener("keydown", (e) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
    if (e.key === "Escape" && !byId("panel").hidden) hideNode();
    else if (e.key === "/" && !typing) { e.preventDefault(); byId("search").focus(); }
    else if (e.key === "0" && !typing && current === "graph") fit();
  });
  addEventListener("hashchange", () => { if (location.hash !== written) readHash(); });
  search();
  readHash();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}
begin();
