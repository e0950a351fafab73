/** What the page says about the tensor that was chosen: facts, values, statistics, plots, checksums. */

import { DTYPES, numberText } from "../jsonckpt.js";
import { byId, count, element, figure, plural, size, visible } from "./dom.js";
import { heatPlot, histogramPlot } from "./plots.js";
import { gridOf, summarize } from "./statistics.js";

/** Smaller tensors are computed at once; larger ones when asked. */
const AT_ONCE = 32 * 1024 * 1024;
const LARGEST_VIEW = 256 * 1024 * 1024;
const [ROWS, COLUMNS] = [12, 8];

export class Panel {
  constructor(report) {
    this.report = report;
    this.body = byId("tensor");
    this.work = null;
    byId("close").addEventListener("click", () => this.hide());
  }

  hide() {
    this.work?.abort();
    byId("panel").hidden = true;
    byId("workbench").classList.remove("split");
    byId("rows").focus({ preventScroll: true });
  }

  async show(checkpoint, name) {
    this.work?.abort();
    this.work = new AbortController();
    const { signal } = this.work;
    byId("panel").hidden = false;
    byId("workbench").classList.add("split");
    byId("panel").scrollTop = 0;
    this.checkpoint = checkpoint;
    this.name = name;
    const layout = checkpoint.layout(name);
    const entry = checkpoint.entry(layout.of);
    const values = element("section", { class: "values" });
    const numbers = element("section", { class: "numbers" });
    const check = element("section", { class: "check" });
    this.body.replaceChildren(element("h3", { class: "name" }, visible(name) || "(the state itself)"), this.facts(layout, entry), numbers, values, check);
    const bytes = layout.view ? entry.nbytes : entry.nbytes;
    this.offerStatistics(numbers, bytes, signal);
    this.offerCheck(check, entry, signal);
    await this.guard(values, signal, () => this.showValues(values, layout, signal));
  }

  /** Run something, and say in `place` what went wrong. */
  async guard(place, signal, work) {
    try {
      await work();
    } catch (error) {
      if (signal.aborted) return;
      place.replaceChildren(element("p", { class: "bad", role: "alert" }, visible(String(error.message ?? error))));
    }
  }

  facts({ dtype, shape, view, of, stride, offset }, entry) {
    const tied = this.checkpoint.references.get(this.name);
    const rows = [["Dtype", dtype], ["Shape", `[${shape.join(", ")}]`], ["Elements", count(shape.reduce((product, one) => product * Number(one), 1))]];
    if (tied) rows.push([view ? "View of" : "Tied to", visible(of)]);
    if (view) rows.push(["Strides, offset", `[${stride.join(", ")}], ${offset}`]);
    if (!view) rows.push(["Bytes", size(entry.nbytes)]);
    rows.push(["In the file", `${size(entry.storedBytes)}, ${plural(entry.chunkCount, "chunk")}`]);
    rows.push(["Encoding", [entry.encoding, entry.compression, entry.filter].filter((word) => word !== "none").join(" + ")]);
    if (entry.device !== "cpu") rows.push(["Saved from", entry.device]);
    if (entry.stride) rows.push(["Strides", `[${entry.stride.join(", ")}]`]);
    if (entry.parts) rows.push(["Regions", count(entry.parts.length)]);
    if (entry.shard) rows.push(["Shard", entry.shard]);
    return element("dl", { class: "pairs" }, rows.map(([key, value]) => element("div", {}, element("dt", {}, key), element("dd", {}, value))));
  }

  offerStatistics(place, bytes, signal) {
    const run = () => this.guard(place, signal, () => this.showStatistics(place, signal));
    if (!bytes) return;
    if (bytes <= AT_ONCE) run();
    else if (this.checkpoint.layout(this.name).view && bytes > LARGEST_VIEW) place.append(element("p", { class: "quiet" }, "Statistics of so large a view are not computed here."));
    else place.append(element("button", { type: "button", onclick: run }, `Statistics (reads ${size(bytes)})`));
  }

  async showStatistics(place, signal) {
    const bar = element("progress", { max: 1, value: 0, "aria-label": "Reading the tensor" });
    place.replaceChildren(bar);
    const { checkpoint, name } = this;
    const found = await summarize(checkpoint, name, { signal, progress: (share) => { bar.value = share; } });
    const { dtype, shape } = checkpoint.layout(name);
    const { kind, parts } = DTYPES.get(dtype);
    const { moments } = found;
    const total = moments.count + moments.nan + moments.infinite;
    const share = (number) => (number ? `${count(number)} (${figure((100 * number) / total)} %)` : "none");
    const rows = [
      ["Min", figure(moments.min)], ["Max", figure(moments.max)], ["Mean", figure(moments.mean)], ["Std", figure(moments.std)],
      ["Norm", figure(moments.norm)], ["Zeros", share(moments.zeros)], ["NaN", share(moments.nan), moments.nan], ["Inf", share(moments.infinite), moments.infinite],
    ];
    const note = kind === "complex" ? element("p", { class: "quiet" }, "Of the absolute values.") : kind === "raw" ? element("p", { class: "quiet" }, "Of the raw bytes.") : null;
    const tiles = element("dl", { class: "tiles" }, rows.map(([key, text, bad]) => element("div", bad ? { class: "bad" } : {}, element("dt", {}, key), element("dd", {}, text))));
    place.replaceChildren(tiles);
    if (note) place.append(note);
    if (moments.count && moments.max > moments.min) place.append(histogramPlot(found));
    const grid = gridOf(shape, kind === "complex" ? 1 : parts);
    if (grid.columns && moments.max > moments.min) place.append(heatPlot(found.heat, grid));
  }

  /** A window of values: the last two dimensions; the others are chosen by number. */
  async showValues(place, layout, signal) {
    const { shape, dtype } = layout;
    if (shape.some((one) => !Number(one))) {
      place.replaceChildren(element("p", { class: "quiet" }, "The tensor has no elements."));
      return;
    }
    const sizes = shape.map(Number);
    const lead = sizes.slice(0, -2);
    const [height, width] = [sizes.at(-2) ?? 1, sizes.at(-1) ?? 1];
    const view = { lead: lead.map(() => 0), row: 0, column: 0 };
    const table = element("div", { class: "grid", tabindex: 0, role: "region", "aria-label": "Values" });
    const draw = () => this.guard(table, signal, () => this.drawValues(table, layout, view, { height, width }));
    const field = (label, most, set) => {
      const input = element("input", { type: "number", min: 0, max: Math.max(most - 1, 0), value: 0, "aria-label": label });
      input.addEventListener("input", () => {
        set(Math.min(Math.max(Math.floor(Number(input.value) || 0), 0), most - 1));
        draw();
      });
      return element("label", {}, label, input);
    };
    const fields = lead.map((most, i) => (most > 1 ? field(`dim ${i}`, most, (value) => { view.lead[i] = value; }) : null));
    if (height > ROWS) fields.push(field("from row", height, (value) => { view.row = value; }));
    if (width > COLUMNS) fields.push(field("from column", width, (value) => { view.column = value; }));
    place.replaceChildren(element("div", { class: "fields" }, element("h4", {}, "Values"), fields.filter(Boolean), element("span", { class: "quiet" }, dtype)), table);
    await draw();
  }

  async drawValues(table, layout, view, { height, width }) {
    const sizes = layout.shape.map(Number);
    const place = this.name;
    const [rows, columns] = [Math.min(ROWS, height - view.row), Math.min(COLUMNS, width - view.column)];
    let base = 0;
    view.lead.forEach((index, i) => { base = base * sizes[i] + index; });
    const read = await this.reader(layout, place);
    const lines = [];
    for (let r = 0; r < rows; r++) {
      const start = (base * height + view.row + r) * width + view.column;
      lines.push(await read(start, columns));
    }
    if (place !== this.name) return;
    const head = element("tr", {}, element("th", {}), Array.from({ length: columns }, (_, c) => element("th", { scope: "col" }, String(view.column + c))));
    const body = lines.map((line, r) => element("tr", {}, element("th", { scope: "row" }, String(view.row + r)), line.map((text) => element("td", {}, text))));
    table.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, body)));
  }

  /** A function that gives the texts of some elements in row-major order. */
  async reader({ of, dtype, view }, name) {
    const rules = DTYPES.get(dtype);
    const { item, parts, values } = rules;
    const texts = (data) => {
      const out = [];
      for (let i = 0; i < data.length; i += parts) out.push(elementText(data, i, rules));
      return out;
    };
    if (view) {
      const { data } = await this.checkpoint.tensor(name);
      return async (start, length) => texts(data.slice(start * parts, (start + length) * parts));
    }
    return async (start, length) => texts(values(await this.checkpoint.bytes(of, start * item, (start + length) * item)));
  }

  offerCheck(place, entry, signal) {
    const { checkpoint } = this;
    const button = element("button", { type: "button" }, `Check ${checkpoint.checksum}`);
    const answer = element("span", { role: "status" });
    button.addEventListener("click", () => this.guard(answer, signal, async () => {
      button.disabled = true;
      await checkpoint.verify(entry.name, (share) => { answer.textContent = `${Math.round(100 * share)} %`; });
      answer.replaceChildren(element("span", { class: "good" }, `✓ ${plural(entry.chunkCount, "chunk")} and the digest match`));
    }));
    const sums = entry.checksums.slice(0, 3).map((sum) => element("code", {}, sum));
    place.replaceChildren(element("div", { class: "line" }, button, answer), ...sums, entry.chunkCount > 3 ? element("p", { class: "quiet" }, `and ${count(entry.chunkCount - 3)} more`) : "");
  }
}

function elementText(data, at, rules) {
  if (rules.kind === "bool") return data[at] ? "True" : "False";
  if (rules.kind === "raw") return `0x${data[at].toString(16).padStart(2 * rules.item, "0")}`;
  if (rules.parts === 1) return numberText(data[at], rules);
  const [one, two] = [numberText(data[at], rules), numberText(data[at + 1], rules)];
  return rules.kind === "complex" ? `${one}${two.startsWith("-") ? "" : "+"}${two}j` : `${one}, ${two}`;
}
