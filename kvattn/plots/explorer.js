"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, text = "") => Object.assign(document.createElement(tag), {textContent: text});
const percent = x => (100 * x).toFixed(1) + "%";
const {layers, heads, tokens, segments, panels, colours, gain, loss, start} = data;
const base = panels[0], others = panels.slice(1);
// Shares of the row were written as square roots in 16 bits.
for (const p of panels) {
  const bytes = Uint8Array.from(atob(p.rows), c => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  p.row = Float32Array.from({length: bytes.length / 2}, (_, i) => (view.getUint16(2 * i, true) / 65535) ** 2);
}
const state = {method: 0, layer: start.layer, head: start.head, less: true};

// The row of one head, or its mean over heads, layers or both (-1).
function row(p, layer, head) {
  const out = new Float32Array(tokens.length);
  const ls = layer < 0 ? [...Array(layers).keys()] : [layer], hs = head < 0 ? [...Array(heads).keys()] : [head];
  for (const l of ls) for (const h of hs) {
    const at = (l * heads + h) * tokens.length;
    for (let t = 0; t < out.length; t++) out[t] += p.row[at + t];
  }
  return out.map(x => x / (ls.length * hs.length));
}
const slots = row => segments.map(([start, stop]) => row.slice(start, stop).reduce((a, b) => a + b, 0));

// By head, the candidate's share that changes most, signed, and its slot.
function changes(p) {
  const out = [];
  for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
    const [a, b] = [slots(row(base, l, h)), slots(row(p, l, h))];
    const by = b.map((x, s) => x - a[s]);
    const s = by.reduce((best, x, i) => Math.abs(x) > Math.abs(by[best]) ? i : best, 0);
    out.push({l, h, s, by: by.length ? by[s] : 0});
  }
  return out;
}

const panes = [...(others.length ? [0, 1, 2] : [0])].map(kind => {
  const pane = make("div"), head = make("h2"), said = make("p"), text = make("div");
  pane.className = "pane"; text.className = "text"; text.tabIndex = 0;
  const spans = tokens.map(t => text.appendChild(make("span", t)));
  text.addEventListener("scroll", () => panes.forEach(o => { if (o.text !== text) o.text.scrollTop = text.scrollTop; }));
  pane.append(head, said, text);
  $("panes").append(pane);
  return {pane, kind, head, said, text, spans};
});
const slotOf = new Int16Array(tokens.length).fill(-1);
segments.forEach(([start, stop], s) => slotOf.fill(s, start, stop));
const colour = t => colours[slotOf[t] < 0 ? colours.length - 1 : slotOf[t] % (colours.length - 1)];

function full(rows) {
  const all = rows.flatMap(r => [...r].filter((_, t) => slotOf[t] >= 0).map(Math.abs)).sort((a, b) => a - b);
  return Math.max(all[Math.floor(0.98 * (all.length - 1))] || 0, 1e-12);
}

function paint(pane, title, row, full, kept, signed) {
  pane.head.textContent = title;
  pane.said.textContent = "slots: " + slots(row).map(x => (signed && x > 0 ? "+" : "") + percent(x)).join(" ");
  pane.spans.forEach((span, t) => {
    const share = Math.min(Math.abs(row[t]) / full, 1) * (slotOf[t] < 0 && !signed ? 0.4 : 0.55);
    const [r, g, b] = signed ? (row[t] > 0 ? gain : loss) : colour(t);
    span.style.backgroundColor = share > 0.01 ? `rgba(${r},${g},${b},${share.toFixed(3)})` : "";
    span.className = kept[t] ? "kept" : "";
    span.style.setProperty("--mark", `rgb(${colour(t)})`);
    span.title = `token ${t}: ${row[t].toPrecision(3)}`;
  });
}

let found = [];
function heatmap() {
  found = others.length ? changes(others[state.method]) : [];
  $("heads").hidden = !found.length;
  const ordered = [...found].sort((a, b) => Math.abs(b.by) - Math.abs(a.by)), most = Math.max(1e-9, Math.abs(ordered[0]?.by || 0));
  const canvas = $("grid"), side = Math.max(5, Math.min(14, Math.floor(560 / layers)));
  canvas.width = layers * side; canvas.height = heads * side; canvas.dataset.side = side;
  const pen = canvas.getContext("2d");
  for (const {l, h, by} of found) {
    const [r, g, b] = by > 0 ? gain : loss;
    pen.fillStyle = `rgba(${r},${g},${b},${Math.abs(by) / most})`;
    pen.fillRect(l * side, h * side, side, side);
  }
  for (const {l, h} of found) if ((state.layer === l || state.layer < 0) && state.head === h || state.layer === l && state.head < 0) {
    pen.strokeStyle = getComputedStyle(document.body).color; pen.lineWidth = 1;
    pen.strokeRect(l * side + 0.5, h * side + 0.5, side - 1, side - 1);
  }
  $("top").replaceChildren(...ordered.slice(0, 10).map(({l, h, s, by}) => {
    const button = make("button", `L${l}H${h} slot ${s + 1} ${by > 0 ? "+" : ""}${percent(by)}`);
    button.type = "button";
    button.setAttribute("aria-pressed", String(state.layer === l && state.head === h));
    button.onclick = () => choose(l, h);
    return button;
  }));
}

function draw() {
  const {layer, head} = state, own = row(base, layer, head);
  $("layer").value = layer; $("head").value = head;
  $("at").textContent = layer < 0 ? "mean of all" : `${layer} of 0 to ${layers - 1}`;
  const shown = [own], p = others[state.method];
  if (p) shown.push(row(p, layer, head));
  const top = full(shown);
  paint(panes[0], base.title, own, top, base.kept, false);
  if (p) {
    const less = shown[1].map((x, t) => x - own[t]);
    paint(panes[1], p.title, shown[1], top, p.kept, false);
    paint(panes[2], `${p.name} less ${base.name}`, less, full([less]), p.kept, true);
    panes[2].pane.hidden = !state.less;
  }
  $("note").textContent = `Stronger: more of the deciding token's attention, full at ${percent(top)} of the row. Underlined: reused.`
    + (p ? " Orange: more than under " + base.name + ", blue: less." : "");
  heatmap();
}
function choose(layer, head) { Object.assign(state, {layer, head}); draw(); }

others.forEach((p, i) => $("method").append(Object.assign(make("option", p.name), {value: i})));
$("method").parentElement.hidden = others.length < 2;
$("head").append(Object.assign(make("option", "mean of all"), {value: -1}));
for (let h = 0; h < heads; h++) $("head").append(Object.assign(make("option", h), {value: h}));
$("layer").max = layers - 1;
$("less").parentElement.hidden = !others.length;
$("said").textContent = "How far the attention to a candidate changes, layers across, heads down; a click opens a head";
$("method").onchange = e => { state.method = Number(e.target.value); draw(); };
$("layer").oninput = e => choose(Number(e.target.value), state.head);
$("head").onchange = e => choose(state.layer, Number(e.target.value));
$("less").onchange = e => { state.less = e.target.checked; draw(); };
const cell = e => {
  const canvas = $("grid"), box = canvas.getBoundingClientRect(), side = Number(canvas.dataset.side) * box.width / canvas.width;
  const [l, h] = [Math.floor((e.clientX - box.left) / side), Math.floor((e.clientY - box.top) / side)];
  return found.find(c => c.l === l && c.h === h);
};
$("grid").onclick = e => { const c = cell(e); if (c) choose(c.l, c.h); };
$("grid").onmousemove = e => { const c = cell(e); e.target.title = c ? `L${c.l}H${c.h}: slot ${c.s + 1} ${percent(c.by)}` : ""; };
let timer = null;
$("play").onclick = () => {
  const playing = timer === null;
  if (playing) timer = setInterval(() => choose((state.layer + 1) % layers, state.head), 700);
  else { clearInterval(timer); timer = null; }
  $("play").textContent = playing ? "Stop" : "Play";
  $("play").setAttribute("aria-pressed", String(playing));
};
draw();
