/** The table of tensors. Only the rows in sight are in the page, so that 10,000 tensors cost what 30 do. */

import { about, byId, count, element, size, visible } from "./dom.js";

const COLUMNS = [
  { key: "name", title: "Name", text: (row) => visible(row.name) || "(the state itself)" },
  { key: "dtype", title: "Dtype", text: (row) => row.dtype },
  { key: "shape", title: "Shape", text: (row) => `[${row.shape.join(", ")}]` },
  { key: "numel", title: "Elements", text: (row) => (row.numel < 1e6 ? count(row.numel) : about(row.numel)), number: true },
  { key: "nbytes", title: "Bytes", text: (row) => (row.own ? size(row.nbytes) : row.label), number: true },
];
const ORDERS = {
  name: (a, b) => NATURAL.compare(a.name, b.name),
  dtype: (a, b) => (a.dtype < b.dtype ? -1 : a.dtype > b.dtype ? 1 : 0),
  shape: (a, b) => a.shape.length - b.shape.length || compareShapes(a.shape, b.shape),
  numel: (a, b) => a.numel - b.numel,
  nbytes: (a, b) => a.nbytes - b.nbytes,
};
const NATURAL = new Intl.Collator("en", { numeric: true });
const compareShapes = (a, b) => {
  const at = a.findIndex((value, i) => value !== b[i]);
  return at < 0 ? 0 : Number(a[at]) - Number(b[at]);
};
const EXTRA = 8;

export class Table {
  constructor(choose) {
    this.choose = choose;
    this.view = byId("rows");
    this.space = byId("rows-space");
    this.rows = [];
    this.shown = [];
    this.active = -1;
    this.chosen = null;
    this.sorting = { key: "place", down: false };
    this.search = byId("search");
    this.search.addEventListener("input", () => this.filter());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" && this.shown.length) {
        this.view.focus();
        this.move(0);
        event.preventDefault();
      }
    });
    this.view.addEventListener("scroll", () => this.draw(), { passive: true });
    this.view.addEventListener("keydown", (event) => this.key(event));
    this.view.addEventListener("click", (event) => this.click(event));
    new ResizeObserver(() => this.draw()).observe(this.view);
    this.heads = new Map(COLUMNS.map((column) => [column.key, this.head(column)]));
    byId("columns").replaceChildren(...this.heads.values());
  }

  head({ key, title, number }) {
    const button = element("button", { type: "button", onclick: () => this.sort(key) }, title);
    return element("div", { role: "columnheader", class: `cell ${key}${number ? " number" : ""}`, "aria-sort": "none" }, button);
  }

  fill(rows) {
    this.rows = rows.map((row, place) => ({ ...row, place, text: `${row.name} ${row.dtype} [${row.shape.join(", ")}]`.toLowerCase() }));
    this.search.value = "";
    this.sorting = { key: "place", down: false };
    this.chosen = null;
    this.filter();
  }

  sort(key) {
    const again = this.sorting.key === key;
    const first = key === "numel" || key === "nbytes"; // the largest first
    this.sorting = again && this.sorting.down !== first ? { key: "place", down: false } : { key, down: again ? !first : first };
    this.filter();
  }

  /** Show the rows that have all words of the search, in the order that is chosen. */
  filter() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.shown = words.length ? this.rows.filter(({ text }) => words.every((word) => text.includes(word))) : [...this.rows];
    const { key, down } = this.sorting;
    const order = ORDERS[key];
    if (order) this.shown.sort((a, b) => (down ? order(b, a) : order(a, b)) || a.place - b.place);
    for (const [name, head] of this.heads) head.setAttribute("aria-sort", name !== key ? "none" : down ? "descending" : "ascending");
    this.active = this.shown.findIndex((row) => row.name === this.chosen);
    this.view.scrollTop = 0;
    const bytes = this.shown.reduce((sum, row) => sum + (row.own ? row.nbytes : 0), 0);
    const all = this.shown.length === this.rows.length;
    byId("found").textContent = `${all ? count(this.shown.length) : `${count(this.shown.length)} of ${count(this.rows.length)}`} · ${size(bytes)}`;
    this.draw();
  }

  get height() {
    return parseFloat(getComputedStyle(this.view).getPropertyValue("--row")) || 34;
  }

  draw() {
    const { height, view } = this;
    this.space.style.height = `${this.shown.length * height}px`;
    const first = Math.max(0, Math.floor(view.scrollTop / height) - EXTRA);
    const last = Math.min(this.shown.length, Math.ceil((view.scrollTop + view.clientHeight) / height) + EXTRA);
    const rows = [];
    for (let i = first; i < last; i++) rows.push(this.row(this.shown[i], i, height));
    this.space.replaceChildren(...rows);
    view.setAttribute("aria-rowcount", this.shown.length);
    const isDrawn = this.active >= first && this.active < last;
    if (isDrawn) view.setAttribute("aria-activedescendant", `row-${this.active}`);
    else view.removeAttribute("aria-activedescendant");
  }

  row(row, place, height) {
    const cells = COLUMNS.map((column) => {
      const text = column.text(row);
      const title = text.length > 20 ? text.slice(0, 1100) : null;
      return element("div", { role: "gridcell", class: `cell ${column.key}${column.number ? " number" : ""}`, title }, text.slice(0, 1100));
    });
    const made = element("div", {
      role: "row", id: `row-${place}`, class: `row${place === this.active ? " active" : ""}`, "aria-rowindex": place + 1,
      "aria-selected": String(row.name === this.chosen), "data-place": place,
    }, cells);
    made.style.transform = `translateY(${place * height}px)`;
    return made;
  }

  click(event) {
    const row = event.target.closest(".row");
    if (row) this.pick(Number(row.dataset.place));
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.view.clientHeight / this.height) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps) this.move(this.active < 0 && steps[event.key] > 0 ? 0 : this.active + steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.pick(this.active);
    else return;
    event.preventDefault();
  }

  move(place) {
    if (!this.shown.length) return;
    this.active = Math.min(Math.max(place, 0), this.shown.length - 1);
    const { height, view } = this;
    const top = this.active * height;
    if (top < view.scrollTop) view.scrollTop = top;
    if (top + height > view.scrollTop + view.clientHeight) view.scrollTop = top + height - view.clientHeight;
    this.draw();
  }

  pick(place) {
    const row = this.shown[place];
    if (!row) return;
    this.active = place;
    this.chosen = row.name;
    this.draw();
    this.choose(row.name);
  }

  /** Choose a tensor by name, from elsewhere. */
  show(name) {
    if (!this.shown.some((row) => row.name === name)) {
      this.search.value = "";
      this.filter();
    }
    const place = this.shown.findIndex((row) => row.name === name);
    this.move(place);
    this.pick(place);
  }
}
