"use strict";
/* Draws the page from the data in it. What comes from a checkpoint goes into text nodes and, as
   numbers, into attributes: never into markup. */
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const NS = "http://www.w3.org/2000/svg";
const HEIGHTS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
const $ = (id) => document.getElementById(id);

/* Text without characters that hide or turn other text round. */
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/g;
const PAIR = /[\ud800-\udbff][\udc00-\udfff]/g;
function shown(text) {
  const escape = (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0");
  let out = "", from = 0;
  const plain = String(text);
  for (const pair of plain.matchAll(PAIR)) {
    out += plain.slice(from, pair.index).replace(HIDDEN, escape) + pair[0];
    from = pair.index + 2;
  }
  return out + plain.slice(from).replace(HIDDEN, escape);
}

function fill(node, options, children) {
  for (const [name, value] of Object.entries(options || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) node.setAttribute(name, shown(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child.nodeType ? child : shown(child));
  }
  return node;
}
const el = (tag, options, ...children) => fill(document.createElement(tag), options, children);
const svg = (tag, options, ...children) => fill(document.createElementNS(NS, tag), options, children);
const button = (options, ...children) => el("button", { type: "button", ...options }, ...children);

/* Numbers for people. */
function num(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value === "Infinity" ? "∞" : value === "-Infinity" ? "−∞" : value;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  const short = String(Number(value.toPrecision(size < 1e-3 ? 3 : 4)));
  return size >= 1e6 || short.length > 8 ? value.toExponential(size < 1 ? 1 : 2).replace("e+", "e") : short;
}
const count = (value) => (value || 0).toLocaleString("en");
function bytes(value) {
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (value < 1000 || unit === "TB") return (unit === "B" ? value : value.toFixed(1)) + " " + unit;
    value /= 1000;
  }
}
const percent = (value) => value === null || value === undefined ? "–"
  : value === 0 ? "0" : value < 0.0001 ? (100 * value).toExponential(1) + " %" : Number((100 * value).toPrecision(3)) + " %";
const finite = (value) => typeof value === "number" && Number.isFinite(value);

const byName = new Map(data.tensors.map((tensor, at) => [tensor.name, at]));
const owner = new Map(); // the weight that a moment belongs to
for (const tensor of data.tensors) for (const name of Object.values(tensor.moments || {})) owner.set(name, tensor.name);

const above = (name) => name.slice(0, name.lastIndexOf("/"));
const kept = new Set([...owner.keys()].map(above)); // what an optimizer keeps for one weight
const isKept = (row) => kept.has(above(row.name));

/* Overview ------------------------------------------------------------------------------- */
function overview() {
  $("title").append(shown(data.title));
  document.title = shown(data.title) + " – checkpoint report";
  const last = data.checkpoints.at(-1);
  const several = data.checkpoints.length;
  $("subtitle").append(several === 1 ? `saved ${shown(last.saved)}`
    : several === 2 ? `compared with ${shown(data.checkpoints[0].label)}`
      : `the last of ${several} checkpoints of a run`);
  const figures = el("dl", { class: "figures" }, data.overview.map(([label, value, more]) =>
    el("div", null, el("dt", null, label),
      el("dd", { class: value.length > 12 ? "value long" : "value" }, value), more ? el("dd", { class: "more" }, more) : null)));
  const facts = el("dl", { class: "facts" }, data.facts.map(([what, path, text]) =>
    [el("dt", null, what), el("dd", null, text, path ? el("small", null, path) : null)]));
  $("overview").append(figures);
  if (data.history.length) {
    $("overview").append(el("div", { class: "charts" }, data.history.map(([label, xs, values, axis]) => chart(label, values, xs, axis))));
  }
  $("overview").append(facts);
  $("footer").append(`Made by ${shown(data.made_by)}. This page needs no network.`);
}

/* Health --------------------------------------------------------------------------------- */
function health() {
  const host = $("health");
  host.append(el("p", { class: "muted" }, `${data.checked}: all were read.`));
  const serious = data.health.filter((one) => one.level !== "note").length;
  if (!serious) {
    host.append(el("p", { class: "allgood" }, el("span", { class: "dot good" }),
      "No NaN, no infinity, no dead rows or columns, no norm out of bounds."));
  }
  for (const one of data.health) {
    const list = el("ul");
    const node = el("details", { class: "finding" },
      el("summary", null, el("span", { class: "dot " + one.level }),
        el("span", null, one.title), el("span", { class: "muted" }, count(one.count) + (one.count === 1 ? " tensor" : " tensors")),
        el("span", { class: "why" }, one.why)), list);
    node.addEventListener("toggle", () => {
      if (list.childNodes.length) return;
      for (const [name, text] of one.tensors) list.append(el("li", null, link(name), el("span", { class: "muted" }, text)));
      if (one.count > one.tensors.length) list.append(el("li", { class: "muted" }, `and ${count(one.count - one.tensors.length)} more`));
    });
    host.append(node);
  }
}
function link(name) {
  return byName.has(name) ? button({ class: "name", onclick: () => choose(byName.get(name), true) }, name) : el("span", { class: "name" }, name);
}

/* Treemap -------------------------------------------------------------------------------- */
function hierarchy() {
  const root = { key: "all", value: 0, below: new Map(), tensor: -1 };
  data.tensors.forEach((tensor, at) => {
    if (!tensor.own) return;
    const parts = tensor.name.split(/[/.]/).filter(Boolean);
    let node = root;
    root.value += tensor.own;
    parts.slice(0, 24).forEach((key) => {
      let next = node.below.get(key);
      if (!next) node.below.set(key, next = { key, value: 0, below: new Map(), tensor: -1 });
      next.value += tensor.own;
      node = next;
    });
    node.tensor = at;
    const weight = owner.get(tensor.name);
    if (weight && parts.length > 1) {  // say which weight a number of an optimizer stands for
      let above = root;
      for (const key of parts.slice(0, -1)) above = above.below.get(key);
      above.label = `${above.key} · ${weight.split(/[/.]/).slice(-3).join(".")}`;
    }
  });
  const settle = (node) => {
    for (const [key, child] of node.below) {
      let only = child;
      while (only.below.size === 1 && only.tensor < 0) {
        const inner = only.below.values().next().value;
        inner.key = only.key + "." + inner.key;
        inner.label = only.label || inner.label;
        only = inner;
      }
      node.below.set(key, only);
      settle(only);
    }
    node.parts = [...node.below.values()].sort((a, b) => b.value - a.value);
  };
  settle(root);
  return root;
}

/* Squarified treemap: Bruls, Huizing, van Wijk (2000). Rows are filled while the worst ratio of
   sides gets better. */
function squarify(parts, x, y, width, height) {
  const total = parts.reduce((sum, part) => sum + part.value, 0);
  const out = [];
  let begin = 0, left = total;
  while (begin < parts.length && left > 0 && width > 0 && height > 0) {
    const side = Math.min(width, height), area = width * height / left;
    let end = begin, sum = 0, worst = Infinity;
    while (end < parts.length) {
      const next = sum + parts[end].value;
      const thick = next * area / side;
      const ratio = Math.max(thick * thick / (parts[begin].value * area), parts[end].value * area / (thick * thick));
      if (ratio > worst) break;
      worst = ratio; sum = next; end += 1;
    }
    if (end === begin) end += 1, sum = parts[begin].value;
    const thick = sum * area / side;
    let at = 0;
    for (const part of parts.slice(begin, end)) {
      const long = sum ? part.value / sum * side : 0;
      out.push(width >= height ? [part, x, y + at, thick, long] : [part, x + at, y, long, thick]);
      at += long;
    }
    if (width >= height) x += thick, width -= thick; else y += thick, height -= thick;
    left -= sum; begin = end;
  }
  return out;
}

function treemap() {
  const root = hierarchy();
  const host = $("bytes"), crumbs = el("div", { class: "crumbs" });
  const picture = svg("svg", { class: "treemap", role: "group", "aria-label": "Treemap of the bytes" });
  const tip = el("p", { class: "tip" }, "Each area is the bytes of its tensors. Choose a group to look into it.");
  host.append(crumbs, picture, tip);
  let path = [root];
  function draw() {
    const width = Math.max(280, picture.clientWidth || 800), height = Math.round(Math.min(460, Math.max(300, width * 0.42)));
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("height", height);
    crumbs.replaceChildren(...path.map((node, at) => at === path.length - 1 ? el("span", null, `${node.label || node.key}: ${bytes(node.value)}`)
      : button({ onclick: () => { path = path.slice(0, at + 1); draw(); } }, (node.label || node.key) + " ›")));
    const nodes = [];
    const place = (node, depth, colour, x, y, w, h) => {
      if (w < 2 || h < 2 || nodes.length > 900) return;
      const go = () => {
        if (node.parts.length) { path = [...path, ...(chain(path.at(-1), node) || [node])]; draw(); picture.querySelector("g")?.focus?.(); }
        else choose(node.tensor, true);
      };
      const label = w > 46 && h > 17;
      const group = svg("g", { tabindex: 0, role: "button", "aria-label": `${node.label || node.key}, ${bytes(node.value)}`,
        onclick: (event) => { event.stopPropagation(); go(); },
        onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); go(); } },
        onpointerover: (event) => { event.stopPropagation(); tell(node); } },
        svg("rect", { x: x.toFixed(1), y: y.toFixed(1), width: w.toFixed(1), height: h.toFixed(1) }));
      group.firstChild.style.fill = `var(--c${colour})`;
      if (label) group.append(svg("text", { x: (x + 6).toFixed(1), y: (y + 14).toFixed(1) }, fitted(node.label || node.key, w - 12)));
      const size = bytes(node.value);
      if (label && !node.parts.length && h > 34 && w > 70) group.append(svg("text", { class: "size", x: (x + 6).toFixed(1), y: (y + 28).toFixed(1) }, size));
      nodes.push(group);
      if (node.parts.length && depth < 4 && w > 60 && h > 44) {
        for (const [part, px, py, pw, ph] of squarify(node.parts, x + 3, y + 20, w - 6, h - 23)) place(part, depth + 1, colour, px, py, pw, ph);
      }
    };
    const top = path.at(-1);
    squarify(top.parts, 0, 0, width, height).forEach(([part, x, y, w, h], at) => place(part, 1, Math.min(at, 7), x, y, w, h));
    picture.replaceChildren(...nodes);
    if (!nodes.length) tip.textContent = "No tensor has bytes here.";
  }
  const tell = (node) => {
    const share = root.value ? node.value / root.value : 0;
    tip.textContent = `${shown(node.tensor >= 0 ? data.tensors[node.tensor].name : node.label || node.key)}: ${bytes(node.value)}, ${percent(share)} of all`;
  };
  const chain = (from, to) => {
    for (const part of from.parts) {
      if (part === to) return [part];
      const rest = chain(part, to);
      if (rest) return [part, ...rest];
    }
    return null;
  };
  const fitted = (text, width) => { const most = Math.floor(width / 6.3); text = shown(text); return text.length <= most ? text : most > 3 ? text.slice(0, most - 1) + "…" : ""; };
  draw();
  let before = picture.clientWidth;
  new ResizeObserver(() => { if (Math.abs(picture.clientWidth - before) > 4) { before = picture.clientWidth; draw(); } }).observe(picture);
}

/* A table that keeps only the rows in view. ---------------------------------------------- */
function wholeName(name) {
  const text = shown(name);
  let tail = Math.max(0, text.length - 22);  // the end says most: keep it, from a separator on
  const mark = text.slice(tail).search(/[/.]/);
  if (tail && mark > 0 && mark < 14) tail += mark;
  return el("span", { class: "whole", title: text }, tail ? el("i", null, text.slice(0, tail)) : null, el("b", null, text.slice(tail)));
}
class Table {
  constructor(host, { kind, columns, rows, onchoose, sort, descending, second }) {
    Object.assign(this, { columns, rows, onchoose, second, chosen: null, view: rows.slice(), kind });
    this.filter = "";
    this.head = el("div", { class: `head cols-${kind}`, role: "row" });
    this.body = el("div", { class: "scroll", tabindex: 0, role: "rowgroup", "aria-label": "Rows; arrows move the choice" });
    this.space = el("div");
    this.body.append(this.space);
    this.node = el("div", { class: "table", role: "table" }, this.head, this.body);
    host.append(this.node);
    this.heads = columns.map((column) => {
      const node = button({ class: column.right ? "right" : null, onclick: () => this.sortBy(column) }, column.label);
      this.head.append(node);
      return node;
    });
    this.live = new Map();
    this.body.addEventListener("scroll", () => this.paint());
    this.body.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.paint(true)).observe(this.body);
    this.sortBy(columns.find((column) => column.key === sort) || columns[0], descending);
  }
  get rowHeight() { return matchMedia("(max-width: 680px)").matches ? 56 : 34; }
  sortBy(column, descending) {
    this.down = descending !== undefined ? descending : this.sorted === column ? !this.down : !!column.right;
    this.sorted = column;
    this.heads.forEach((node, at) => {
      const on = this.columns[at] === column;
      node.classList.toggle("on", on);
      node.textContent = this.columns[at].label + (on ? (this.down ? " ↓" : " ↑") : "");
      node.setAttribute("aria-sort", on ? (this.down ? "descending" : "ascending") : "none");
    });
    this.refresh();
  }
  search(text) { this.filter = text; this.refresh(); }
  refresh() {
    const words = this.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const value = this.sorted.value, sign = this.down ? -1 : 1;
    const keyed = [];
    for (const row of this.rows) {
      const text = row.words || (row.words = `${row.name} ${row.dtype || row.status || ""} ${row.shape ? row.shape.join("x") : ""}`.toLowerCase());
      if (words.every((word) => text.includes(word))) keyed.push([value(row), row]);
    }
    const rank = (v) => v === null || v === undefined ? -Infinity : v === "Infinity" ? Infinity : v;
    keyed.sort(([a], [b]) => {
      if (typeof a === "string" && typeof b === "string") return sign * (a < b ? -1 : a > b ? 1 : 0);
      const x = rank(a), y = rank(b);
      return sign * (x < y ? -1 : x > y ? 1 : 0);
    });
    this.view = keyed.map(([, row]) => row);
    this.body.scrollTop = 0;
    this.oncount?.(this.view.length);
    this.paint(true);
  }
  paint(anew) {
    const high = this.rowHeight, total = this.view.length * high;
    const short = total <= Math.min(innerHeight * 0.6, 600);
    this.body.classList.toggle("short", short);
    this.space.style.height = Math.max(total, this.view.length ? 0 : 80) + "px";
    const from = short ? 0 : Math.max(0, Math.floor(this.body.scrollTop / high) - 6);
    const to = short ? this.view.length : Math.min(this.view.length, Math.ceil((this.body.scrollTop + this.body.clientHeight) / high) + 6);
    if (anew) { for (const node of this.live.values()) node.remove(); this.live.clear(); this.nothing?.remove(); }
    for (const [at, node] of this.live) if (at < from || at >= to) { node.remove(); this.live.delete(at); }
    for (let at = from; at < to; at += 1) {
      if (this.live.has(at)) continue;
      const row = this.view[at];
      const node = el("div", { class: `row cols-${this.kind}` + (row === this.chosen ? " chosen" : ""), role: "row", onclick: () => this.pick(at) },
        this.columns.map((column) => column.cell(row)), this.second ? el("span", { class: "second" }, this.second(row)) : null);
      node.style.top = at * high + "px";
      this.live.set(at, node);
      this.body.append(node);
    }
    if (!this.view.length && (anew || !this.nothing)) { this.nothing = el("p", { class: "empty" }, "Nothing matches."); this.space.append(this.nothing); }
  }
  pick(at) {
    if (!this.view[at]) return;
    this.chosen = this.view[at];
    for (const [place, node] of this.live) node.classList.toggle("chosen", place === at);
    this.onchoose?.(this.chosen);
  }
  show(row, scroll) {
    let at = this.view.indexOf(row);
    if (at < 0) { this.onclear?.(); this.search(""); at = this.view.indexOf(row); }
    const high = this.rowHeight;
    if (scroll) this.body.scrollTop = Math.max(0, at * high - this.body.clientHeight / 2);
    this.paint();
    this.chosen = row;
    for (const [place, node] of this.live) node.classList.toggle("chosen", place === at);
  }
  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = Math.min(this.view.length - 1, Math.max(0, this.view.indexOf(this.chosen) + step));
    const high = this.rowHeight, top = at * high;
    if (top < this.body.scrollTop) this.body.scrollTop = top;
    if (top + high > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = top + high - this.body.clientHeight;
    this.paint();
    this.pick(at);
  }
}
/* A table with a search of its own, and without the state of an optimizer unless asked. */
function searched(host, what, options) {
  const input = el("input", { type: "search", placeholder: "Search names", "aria-label": `Search ${what}`, autocomplete: "off", spellcheck: "false" });
  const found = el("span", { class: "muted" }), tools = el("div", { class: "tools" }, input, found);
  const all = options.rows, weights = all.filter((row) => !isKept(row));
  const some = weights.length > 0 && weights.length < all.length;
  host.append(tools);
  const table = new Table(host, { ...options, rows: some ? weights : all });
  table.oncount = (n) => { found.textContent = `${count(n)} of ${count(all.length)}`; };
  table.oncount(table.view.length);
  input.addEventListener("input", () => table.search(input.value));
  if (some) {
    const box = el("input", { type: "checkbox" });
    box.addEventListener("change", () => { table.rows = box.checked ? all : weights; table.refresh(); });
    tools.append(el("label", null, box, "state of the optimizer"));
  }
}
const cell = (text, kind) => el("span", { class: kind }, text);

/* Histogram and heat map ----------------------------------------------------------------- */
function barsOf(row, width, height) {
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (!row.bars) return picture;
  const step = width / row.bars.length;
  let path = "";
  [...row.bars].forEach((letter, at) => {
    const h = Math.sqrt(HEIGHTS.indexOf(letter) / 63) * height;
    if (h > 0) path += `M${(at * step).toFixed(2)} ${height}v${-h.toFixed(2)}h${(step * 0.88).toFixed(2)}v${h.toFixed(2)}z`;
  });
  picture.append(svg("path", { class: "bars", d: path }));
  return picture;
}
const isDark = () => ({ dark: true, light: false })[document.documentElement.dataset.theme] ?? matchMedia("(prefers-color-scheme: dark)").matches;
const RAMPS = { /* from small to large, for light and dark pages; signed ones from − over 0 to + */
  plain: [["#f3f1ea", "#9ec3e0", "#2f74b5", "#0b2545"], ["#17191c", "#1f4a73", "#5f9fd6", "#eaf4ff"]],
  signed: [["#8c3b0c", "#e3a36b", "#f5f3ee", "#7fb0d8", "#124a86"], ["#ffb27a", "#a3541c", "#1d1f22", "#2c6199", "#a9d2ff"]],
};
function ramp(signed) {
  const stops = RAMPS[signed ? "signed" : "plain"][isDark() ? 1 : 0].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return (part) => {
    const place = Math.min(0.99999, Math.max(0, part)) * (stops.length - 1), at = Math.floor(place), rest = place - at;
    return stops[at].map((from, channel) => Math.round(from + (stops[at + 1][channel] - from) * rest));
  };
}
function heatOf(row) {
  const [rows, columns, scale, signed, codes] = row.heat;
  const raw = atob(codes), colour = ramp(signed);
  const canvas = el("canvas", { width: columns, height: rows, role: "img", "aria-label": "Heat map" });
  const paint = canvas.getContext("2d"), image = paint.createImageData(columns, rows);
  for (let at = 0; at < raw.length; at += 1) {
    const code = raw.charCodeAt(at);
    const [r, g, b] = code === 0 ? [222, 30, 110] : colour(signed ? (code - 1) / 254 : Math.max(0, code - 128) / 127);
    image.data.set([r, g, b, 255], at * 4);
  }
  paint.putImageData(image, 0, 0);
  canvas.style.aspectRatio = `${columns} / ${Math.max(rows, columns / 14)}`;
  canvas.style.maxHeight = "330px";
  const legend = el("canvas", { class: "ramp", width: 128, height: 1, "aria-hidden": "true" });
  const strip = legend.getContext("2d"), line = strip.createImageData(128, 1);
  for (let at = 0; at < 128; at += 1) line.data.set([...colour(at / 127), 255], at * 4);
  strip.putImageData(line, 0, 0);
  const ends = signed ? [num(-scale), "0", num(scale)] : ["0", num(scale)];
  const [high, wide] = row.shape.length < 2 ? [1, row.count] : [row.shape[0], row.count / row.shape[0]];
  const per = high * wide / rows / columns;
  const cells = signed ? "One cell for each element." : `${rows} × ${columns} cells; each is the root mean square of ${per < 1.5 ? "one or two" : "about " + count(Math.round(per))} elements.`;
  return [el("h4", null, row.shape.length > 1 ? "Heat map (rows down)" : "Heat map (line by line)"),
    canvas, legend, el("div", { class: "scale" }, ends.map((end) => el("span", null, end))),
    el("p", { class: "tip" }, cells + (raw.includes("\0") ? " Pink: not finite." : ""))];
}

/* Tensors -------------------------------------------------------------------------------- */
let tensorTable, detail, current = -1;
function tensors() {
  const host = $("tensors");
  const input = el("input", { type: "search", placeholder: "Search names, dtypes, shapes", "aria-label": "Search tensors", autocomplete: "off", spellcheck: "false" });
  const found = el("span", { class: "muted" });
  const split = el("div", { class: "split" }), left = el("div");
  detail = el("aside", { class: "detail", "aria-live": "polite", "aria-label": "Chosen tensor" }, el("p", { class: "muted" }, "Choose a tensor."));
  split.append(left, detail);
  host.append(el("div", { class: "tools" }, input, found), split);
  const broken = (row) => (row.nans || 0) + (row.infs || 0);
  tensorTable = new Table(left, {
    kind: "tensors", rows: data.tensors, sort: "bytes", descending: true, onchoose: (row) => choose(data.tensors.indexOf(row), false),
    second: (row) => `${row.dtype} · ${row.shape.join(" × ") || "scalar"} · ${bytes(row.bytes)}`,
    columns: [
      { key: "name", label: "Name", value: (row) => row.name, cell: (row) => wholeName(row.name) },
      { key: "dtype", label: "Dtype", value: (row) => row.dtype, cell: (row) => cell(row.dtype, "quiet") },
      { key: "shape", label: "Shape", value: (row) => row.count || 0, cell: (row) => cell(row.shape.join(" × ") || "scalar", "quiet") },
      { key: "bytes", label: "Size", right: true, value: (row) => row.bytes, cell: (row) => cell(bytes(row.bytes), "right") },
      { key: "mean", label: "Mean", right: true, value: (row) => row.mean, cell: (row) => broken(row) ? cell(row.nans ? "NaN" : "Inf", "right bad") : cell(num(row.mean), "right") },
      { key: "std", label: "Std", right: true, value: (row) => row.std, cell: (row) => cell(num(row.std), "right") },
      { key: "norm", label: "Norm", right: true, value: (row) => row.norm, cell: (row) => cell(num(row.norm), "right") },
      { key: "bars", label: "Values", value: (row) => row.max, cell: (row) => el("span", { class: "keep" }, barsOf(row, 72, 24)) },
    ],
  });
  const say = (n) => { found.textContent = n === data.tensors.length ? `${count(n)} tensors` : `${count(n)} of ${count(data.tensors.length)}`; };
  tensorTable.oncount = say;
  tensorTable.onclear = () => { input.value = ""; };
  say(data.tensors.length);
  input.addEventListener("input", () => tensorTable.search(input.value));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") detail.classList.remove("shown");
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName)) { event.preventDefault(); input.focus(); }
  });
  if (tensorTable.view.length && !matchMedia("(max-width: 1080px)").matches) {
    tensorTable.show(tensorTable.view[0], false);
    describe(data.tensors.indexOf(tensorTable.view[0]));
  }
}
function choose(at, scroll) {
  if (at === undefined || at < 0) return;
  if (scroll) {
    tensorTable.show(data.tensors[at], true);
    if (!matchMedia("(max-width: 1080px)").matches) $("tensors").scrollIntoView();
  }
  describe(at);
  detail.classList.add("shown");
}
function describe(at) {
  current = at;
  const row = data.tensors[at];
  const pair = (label, value, bad) => el("div", null, el("dt", null, label), el("dd", { class: bad ? "bad" : null }, value));
  const facts = [pair("dtype", row.dtype), pair("elements", count(row.count)), pair("size", bytes(row.bytes)), pair("text", row.stored === undefined ? "–" : bytes(row.stored)),
    pair("min", num(row.min)), pair("max", num(row.max)), pair("mean", num(row.mean)), pair("std", num(row.std)),
    pair("norm", num(row.norm)), pair("zeros", row.zeros ? percent(row.zeros / row.count) : "0"),
    pair("NaN", count(row.nans), row.nans), pair("infinite", count(row.infs), row.infs)];
  if (row.denormals) facts.push(pair("denormal", percent(row.denormals / row.count)));
  if (row.dead) facts.push(pair("dead rows", count(row.dead[0]), row.dead[0]), pair("dead columns", count(row.dead[1]), row.dead[1]));
  const parts = [button({ class: "close", "aria-label": "Close", onclick: () => detail.classList.remove("shown") }, "×"),
    el("h3", null, row.name),
    el("p", { class: "muted" }, (row.shape.join(" × ") || "scalar") + (row.of ? ", " + row.of : ""))];
  if (row.bars) {
    const picture = barsOf(row, 320, 84), span = row.to - row.from;
    picture.setAttribute("height", 84);
    if (row.from < 0 && row.to > 0) {
      const x = (-row.from / span * 320).toFixed(1);
      picture.append(svg("line", { class: "zero", x1: x, x2: x, y1: 0, y2: 84 }));
    }
    parts.push(el("h4", null, "Values (square-root scale)"), picture,
      el("div", { class: "scale" }, el("span", null, num(row.from)), el("span", null, num(row.to))));
  }
  if (row.heat) parts.push(...heatOf(row));
  parts.push(el("dl", null, facts));
  if (row.moments) {
    parts.push(el("h4", null, "Optimizer"), el("div", { class: "moments" },
      row.update !== null && row.update !== undefined ? el("p", null, `The last step moved it by about ${percent(row.update)} of its size.`) : null,
      Object.entries(row.moments).map(([kind, name]) => el("p", null, kind + ": ", link(name)))));
  }
  if (owner.has(row.name)) parts.push(el("h4", null, "Optimizer"), el("p", { class: "moments" }, "Kept for ", link(owner.get(row.name))));
  const curve = data.run?.norms[row.name];
  if (curve) parts.push(el("h4", null, "Norm over the steps"), lines(curve, 320, 70, true));
  detail.replaceChildren(...parts);
  detail.scrollTop = 0;
}

/* Curves --------------------------------------------------------------------------------- */
const steps = data.checkpoints.map((one, at) => (finite(one.step) ? one.step : at));
const stepName = data.checkpoints.every((one) => finite(one.step)) ? "step" : "checkpoint";
function lines(values, width, height, dots, xs = steps, axis = stepName) {
  const numbers = values.filter(finite);
  let low = Math.min(...numbers), high = Math.max(...numbers);
  if (!numbers.length) low = high = 0;
  const flat = high - low < 1e-12 * Math.max(Math.abs(high), 1e-300);
  const x0 = Math.min(...xs), x1 = Math.max(...xs);
  const x = (at) => (x1 > x0 ? (xs[at] - x0) / (x1 - x0) : 0.5) * (width - 8) + 4;
  const y = (value) => (flat ? 0.5 : 1 - (value - low) / (high - low)) * (height - 10) + 5;
  const picture = svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `from ${num(values[0])} to ${num(values.at(-1))}` });
  let path = "", pen = "M";
  values.forEach((value, at) => {
    if (!finite(value)) { pen = "M"; return; }
    path += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  picture.append(svg("path", { class: "curve", d: path }));
  if (dots && values.length <= 120) values.forEach((value, at) => {
    if (finite(value)) picture.append(svg("circle", { class: "point", cx: x(at).toFixed(1), cy: y(value).toFixed(1), r: values.length > 40 ? 1.2 : 2.6 },
      svg("title", null, `${axis} ${xs[at]}: ${num(value)}`)));
  });
  return picture;
}
function chart(label, values, xs = steps, axis = stepName) {
  const numbers = values.filter(finite);
  return el("figure", { class: "chart" },
    el("figcaption", null, el("span", { title: label }, label), el("b", null, num(values.at(-1)))),
    lines(values, 280, 96, true, xs, axis),
    el("div", { class: "scale" }, el("span", null, `${axis} ${xs[0]}`),
      el("span", null, numbers.length ? `${num(Math.min(...numbers))} to ${num(Math.max(...numbers))}` : "–"), el("span", null, String(xs.at(-1)))));
}
function run() {
  if (!data.run) return;
  const host = $("run");
  host.hidden = false;
  host.append(el("p", { class: "muted" }, `${data.checkpoints.length} checkpoints, ${stepName} ${steps[0]} to ${steps.at(-1)}.`));
  const values = Object.entries(data.run.values);
  if (values.length) host.append(el("h3", null, "Numbers of the state"), el("div", { class: "charts" }, values.map(([label, curve]) => chart(label, curve))));
  host.append(el("h3", null, "Norms by group"), el("div", { class: "charts" },
    Object.entries(data.run.groups).map(([label, curve]) => chart(label, curve)), chart("NaN and infinite elements", data.run.broken)));
  const rows = Object.entries(data.run.norms).map(([name, curve]) => {
    const known = curve.filter(finite), first = known[0], last = known.at(-1);
    return { name, curve, first, last, factor: first ? last / first : null };
  });
  host.append(el("h3", null, "Norms of all tensors"));
  searched(host, "norms", {
    kind: "norms", rows, sort: "factor", descending: true, onchoose: (row) => choose(byName.get(row.name), true),
    second: (row) => `${num(row.first)} → ${num(row.last)}`,
    columns: [
      { key: "name", label: "Name", value: (row) => row.name, cell: (row) => wholeName(row.name) },
      { key: "first", label: "First", right: true, value: (row) => row.first, cell: (row) => cell(num(row.first), "right") },
      { key: "last", label: "Last", right: true, value: (row) => row.last, cell: (row) => cell(num(row.last), "right") },
      { key: "factor", label: "Factor", right: true, value: (row) => row.factor, cell: (row) => cell(row.factor === null ? "–" : "× " + num(row.factor), "right") },
      { key: "curve", label: "Over the steps", value: (row) => row.last, cell: (row) => el("span", { class: "keep" }, lines(row.curve, 150, 24, false)) },
    ],
  });
}

/* Two checkpoints ------------------------------------------------------------------------ */
function compare() {
  if (!data.compare) return;
  const host = $("compare");
  host.hidden = false;
  const [one, two] = data.checkpoints;
  host.append(el("p", { class: "muted" }, "From ", el("span", { class: "mono" }, one.label), finite(one.step) ? ` (step ${one.step})` : "", " to ",
    el("span", { class: "mono" }, two.label), finite(two.step) ? ` (step ${two.step})` : "", "."));
  const tally = new Map();
  for (const row of data.compare.tensors) tally.set(row.status, (tally.get(row.status) || 0) + 1);
  const words = { changed: "tensors changed", same: "the same, bit for bit", added: "added", removed: "removed", reshaped: "of another shape or dtype" };
  host.append(el("p", { class: "sums" }, Object.entries(words).filter(([status]) => tally.has(status)).map(([status, text]) => el("span", null, el("b", null, count(tally.get(status))), " " + text)),
    el("span", null, el("b", null, count(data.compare.values.length)), " plain values changed")));
  const isWeight = (row) => byName.has(row.name) && !isKept(row) && data.tensors[byName.get(row.name)].dtype.includes("float");
  const most = data.compare.tensors.filter(isWeight).reduce((high, row) => (finite(row.relative) ? Math.max(high, row.relative) : high), 0) || 1;
  const track = (value) => {
    const picture = svg("svg", { viewBox: "0 0 120 24", preserveAspectRatio: "none" }, svg("rect", { class: "track", x: 0, y: 9, width: 120, height: 6, rx: 3 }));
    if (finite(value)) picture.append(svg("rect", { class: "fill", x: 0, y: 9, width: (120 * Math.min(1, value / most)).toFixed(1), height: 6, rx: 3 }));
    return picture;
  };
  host.append(el("h3", null, "How far each tensor moved"));
  searched(host, "changes", {
    kind: "changes", rows: data.compare.tensors, sort: "relative", descending: true, onchoose: (row) => choose(byName.get(row.name), true),
    second: (row) => `${row.status} · ${percent(row.relative)}`,
    columns: [
      { key: "name", label: "Name", value: (row) => row.name, cell: (row) => wholeName(row.name) },
      { key: "status", label: "Status", value: (row) => row.status, cell: (row) => cell(row.status, "quiet") },
      { key: "a", label: "Norm before", right: true, value: (row) => row.norms[0], cell: (row) => cell(num(row.norms[0]), "right") },
      { key: "b", label: "Norm after", right: true, value: (row) => row.norms[1], cell: (row) => cell(num(row.norms[1]), "right") },
      { key: "relative", label: "Change", right: true, value: (row) => row.relative, cell: (row) => cell(percent(row.relative), "right") },
      { key: "bar", label: "", value: (row) => row.relative, cell: (row) => el("span", { class: "keep" }, track(row.relative)) },
      { key: "cosine", label: "Cosine", right: true, value: (row) => row.cosine, cell: (row) => cell(row.cosine === null ? "–" : row.cosine.toFixed(5), "right") },
    ],
  });
  if (data.compare.values.length) {
    host.append(el("h3", null, "Plain values that changed"));
    new Table(host, {
      kind: "values", rows: data.compare.values.map(([name, before, after], at) => ({ name, before, after, at })), sort: "name", second: (row) => `${row.before} → ${row.after}`,
      columns: [
        { key: "name", label: "Path", value: (row) => row.at, cell: (row) => wholeName(row.name) },
        { key: "before", label: "Before", value: (row) => row.before, cell: (row) => cell(row.before, "mono") },
        { key: "after", label: "After", value: (row) => row.after, cell: (row) => cell(row.after, "mono") },
      ],
    });
  }
}

/* State ---------------------------------------------------------------------------------- */
function state() {
  const tree = data.tree, host = $("state");
  const end = new Array(tree.length).fill(tree.length), stack = [];
  tree.forEach(([depth], at) => {
    while (stack.length && tree[stack.at(-1)][0] >= depth) end[stack.pop()] = at;
    stack.push(at);
  });
  const box = el("div", { class: "tree", role: "tree", "aria-label": "State" });
  const below = (at) => {
    const out = [];
    for (let next = at + 1; next < end[at]; next = end[next]) out.push(next);
    return out;
  };
  function add(target, at) {
    const [depth, key, kind, text, tensor] = tree[at], has = end[at] > at + 1;
    const known = tensor && byName.has(tensor) ? data.tensors[byName.get(tensor)] : null;
    const what = known ? `${known.dtype} ${known.shape.join(" × ")}` : has ? `${text} ${text === "1" ? "member" : "members"}` : text;
    const turn = el("span", { class: "turn", "aria-hidden": "true" }, has ? "▸" : "");
    const name = known ? button({ class: "key link", onclick: () => choose(byName.get(tensor), true) }, key)
      : has ? button({ class: "key" }, key) : el("span", { class: "key" }, key);
    const node = el("div", { class: has ? "node open" : "node", role: "treeitem" }, turn, name,
      el("span", { class: "kind" }, kind), el("span", { class: "text", title: text || null }, what));
    node.style.paddingLeft = 12 + Math.min(depth, 24) * 16 + "px";
    target.append(node);
    if (!has) return;
    const group = el("div", { role: "group" });
    target.append(group);
    const set = (wanted) => {
      turn.textContent = wanted ? "▾" : "▸";
      node.setAttribute("aria-expanded", String(wanted));
      group.hidden = !wanted;
      if (wanted && !group.childNodes.length) more(group, below(at), 0);
    };
    node.style.cursor = "pointer";
    node.addEventListener("click", () => set(group.hidden));
    set(depth === 0 || (depth < 3 && below(at).length <= 12 && end[at] - at < 60));
  }
  function more(group, parts, from) {
    for (const at of parts.slice(from, from + 200)) add(group, at);
    if (from + 200 >= parts.length) return;
    const node = button({ class: "node link", onclick: () => { node.remove(); more(group, parts, from + 200); } },
      `${count(parts.length - from - 200)} more of ${count(parts.length)}`);
    group.append(node);
  }
  add(box, 0);
  host.append(box);
}

/* Navigation and theme ------------------------------------------------------------------- */
function navigation() {
  const host = $("nav"), bad = data.health.filter((one) => one.level === "bad").length, warn = data.health.filter((one) => one.level === "warn").length;
  const marks = { tensors: [count(data.tensors.length), ""], health: bad + warn ? [String(bad + warn), bad ? "bad" : "warn"] : null };
  const links = [...document.querySelectorAll("main > section:not([hidden])")].map((section) => {
    const mark = marks[section.id];
    const node = el("a", { href: "#" + section.id }, section.querySelector("h2").textContent, mark ? el("b", { class: mark[1] }, mark[0]) : null);
    host.append(node);
    return [section, node];
  });
  const mark = () => {
    let here = links[0];
    for (const pair of links) if (pair[0].getBoundingClientRect().top < innerHeight * 0.35) here = pair;
    for (const pair of links) pair[1].classList.toggle("here", pair === here);
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
  const again = () => { if (current >= 0) { const open = detail.classList.contains("shown"); describe(current); detail.classList.toggle("shown", open); } };
  $("theme").addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; again(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}

overview();
health();
treemap();
tensors();
compare();
run();
state();
navigation();
document.documentElement.dataset.ready = "yes";
})();
