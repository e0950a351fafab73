/** The page: opens what is chosen or dropped, and shows it. */

import { DTYPES, open } from "../jsonckpt.js";
import { about, byId, count, element, plural, size, visible } from "./dom.js";
import { checkpointsAmong, chosenFiles, droppedFiles } from "./files.js";
import { Panel } from "./panel.js";
import { Table } from "./table.js";
import { highlights, treeItem } from "./tree.js";

let current = null; // {checkpoint, input}

const table = new Table((name) => panel.show(current.checkpoint, name));
const panel = new Panel();
const actions = {
  show(name) {
    selectTab("tensors");
    table.show(name);
  },
  facts(name) {
    const { checkpoint } = current;
    if (!checkpoint.entries.has(name) && !checkpoint.references.has(name)) return "";
    const { dtype, shape } = checkpoint.layout(name);
    return `${dtype} [${shape.join(", ")}]`;
  },
};

function say(text, bad = false) {
  const place = byId("message");
  place.textContent = visible(text);
  place.hidden = !text;
  place.classList.toggle("bad", bad);
}

// --- opening ---

async function take(files) {
  if (!files.length) return;
  const { checkpoints, shards } = checkpointsAmong(files);
  if (!checkpoints.length && shards.length && current?.checkpoint.missing?.length) {
    const pathOf = (name) => current.checkpoint.missing.find((path) => path.split("/").pop() === name) ?? name;
    for (const { input } of shards) current.input.set(pathOf(input.name), input);
    await start(current.input, current.checkpoint.name);
    return;
  }
  const found = checkpoints.length ? checkpoints : shards;
  if (!found.length) {
    say(`No checkpoint is among ${plural(files.length, "file")}: one is a directory with manifest.json, or a .json or .json.zst file.`, true);
    return;
  }
  byId("choices").hidden = found.length < 2;
  if (found.length > 1) offer(found);
  else await start(found[0].input, found[0].name);
}

function offer(found) {
  const date = (time) => new Date(time).toISOString().slice(0, 16).replace("T", " ");
  const items = found.slice(0, 500).map(({ name, input, bytes, changed }) => element("li", {}, element("button", { type: "button", onclick: () => start(input, name) },
    element("span", { class: "name" }, visible(name).slice(0, 1100)), element("span", { class: "quiet" }, `${size(bytes)} · ${date(changed)}`))));
  byId("choices").replaceChildren(element("h2", {}, `${plural(found.length, "checkpoint")} found`), element("ul", {}, items));
  byId("start").hidden = true;
  byId("checkpoint").hidden = true;
  say("");
}

async function start(input, name) {
  say(`Reading ${name} …`);
  try {
    const began = performance.now();
    const files = input instanceof Map ? input : input.name === "manifest.json" ? new Map([["manifest.json", input]]) : input;
    const checkpoint = await open(files, { name, progress: (share) => say(`Reading ${name} … ${Math.round(100 * share)} %`) });
    current = { checkpoint, input: files };
    show(checkpoint);
    say("");
    document.body.dataset.opened = `${Math.round(performance.now() - began)} ms`;
  } catch (error) {
    say(`${error.message ?? error}`, true);
    byId("message").scrollIntoView?.({ block: "nearest" });
  }
}

// --- the overview ---

function rowsOf(checkpoint) {
  const rows = [...checkpoint.entries.values()].map(({ name, dtype, shape, numel, nbytes }) => ({ name, dtype, shape, numel, nbytes, own: true }));
  for (const { name, tag, of } of checkpoint.references.values()) {
    const { dtype, shape } = checkpoint.layout(name);
    const numel = shape.reduce((product, one) => product * Number(one), 1);
    rows.push({ name, dtype, shape, numel, nbytes: numel * DTYPES.get(dtype).item, own: false, label: tag === "$tied" ? "tied" : "view", of });
  }
  return rows;
}

function show(checkpoint) {
  panel.hide();
  for (const id of ["start", "choices"]) byId(id).hidden = true;
  byId("checkpoint").hidden = false;
  document.body.classList.add("open");
  const name = visible(checkpoint.name);
  document.title = `${name.split("/").at(-1).slice(0, 80)} – jsonckpt viewer`;
  byId("title").textContent = name;
  byId("badges").replaceChildren(...badges(checkpoint));
  byId("facts").replaceChildren(...facts(checkpoint).map(([key, text, title]) => element("div", { title }, element("dt", {}, key), element("dd", {}, text))));
  groups(checkpoint);
  table.fill(rowsOf(checkpoint));
  const notes = checkpoint.hasState ? highlights(checkpoint.state) : [];
  byId("highlights").replaceChildren(...notes.map(([key, text]) => element("span", { class: "chip" }, element("b", {}, key), ` ${text}`)));
  byId("highlights").hidden = !notes.length;
  const root = checkpoint.hasState ? treeItem("state", checkpoint.state, [], actions, true) : element("li", {}, "A shard alone has no state: open its directory.");
  const more = checkpoint.metadata.size ? [treeItem("metadata", checkpoint.metadata, [], actions, true)] : [];
  byId("tree").replaceChildren(root, ...more);
  selectTab(checkpoint.entries.size ? "tensors" : "state");
}

function badges(checkpoint) {
  const { edited, missing = [], kind } = checkpoint;
  const found = [];
  if (edited) found.push(element("span", { class: "badge warn", title: "The seal is null: nothing covers the state" }, "edited by hand"));
  else if (kind !== "shard") found.push(element("span", { class: "badge good", title: "The seal matches: the text beside the tensors is as it was written" }, "✓ seal"));
  if (kind === "shard") found.push(element("span", { class: "badge warn" }, "a shard alone"));
  if (missing.length) {
    const list = missing.slice(0, 20).join(", ");
    found.push(element("span", { class: "badge bad", title: list }, `${plural(missing.length, "shard")} not given`));
  }
  const button = element("button", { type: "button", class: "badge" }, "Check all");
  button.addEventListener("click", () => checkAll(checkpoint, button));
  if (checkpoint.entries.size && !missing.length) found.push(button);
  return found;
}

async function checkAll(checkpoint, button) {
  button.disabled = true;
  let done = 0;
  try {
    for (const entry of checkpoint.entries.values()) {
      await checkpoint.verify(entry.name, (share) => {
        button.textContent = `Checking ${Math.round((100 * (done + share * entry.nbytes)) / Math.max(checkpoint.nbytes, 1))} %`;
      });
      done += entry.nbytes;
    }
    button.textContent = `✓ all ${plural(checkpoint.entries.size, "tensor")}`;
    button.classList.add("good");
  } catch (error) {
    button.textContent = "✗ damaged";
    button.classList.add("bad");
    say(error.message, true);
  }
}

function facts(checkpoint) {
  const { createdAt, createdBy, checksum, seal, saveId, shards } = checkpoint;
  const entries = [...checkpoint.entries.values()];
  const elements = entries.reduce((sum, entry) => sum + entry.numel * DTYPES.get(entry.dtype).parts / (DTYPES.get(entry.dtype).kind === "complex" ? 2 : 1), 0);
  const ties = checkpoint.references.size;
  const rows = [
    ["Tensors", ties ? [`${count(entries.length)} `, element("small", {}, `+ ${count(ties)} shared`)] : count(entries.length)],
    ["Elements", about(elements), count(elements)],
    ["Bytes", size(checkpoint.nbytes), `${count(checkpoint.nbytes)} bytes`],
    ["On disk", shards ? [`${size(checkpoint.diskBytes)} `, element("small", {}, plural(shards.length + 1, "file"))] : size(checkpoint.diskBytes), `${count(checkpoint.diskBytes)} bytes; the text has ${count(checkpoint.textBytes)}`],
  ];
  if (createdAt) {
    const [day, time] = visible(String(createdAt)).slice(0, 40).split("T");
    rows.push(["Saved", [`${day} `, element("small", {}, (time ?? "").replace("Z", " UTC"))], createdAt]);
  }
  if (createdBy) rows.push(["By", visible(String(createdBy)).slice(0, 100)]);
  rows.push(["Checksum", checksum, `save_id ${saveId}`]);
  if (typeof seal === "string") rows.push(["Seal", seal.split(":")[1].slice(0, 10), seal]);
  return rows;
}

/** Where the bytes are: by the first part of the names. */
function groups(checkpoint) {
  const sums = new Map();
  for (const { name, nbytes } of checkpoint.entries.values()) {
    const key = name.startsWith("$storage/") ? "$storage" : name.split("/")[1] ?? "";
    sums.set(key, (sums.get(key) ?? 0) + nbytes);
  }
  const all = [...sums].sort((a, b) => b[1] - a[1]);
  const shown = all.slice(0, 6);
  const rest = all.slice(6).reduce((sum, [, bytes]) => sum + bytes, 0);
  if (rest) shown.push([`${plural(all.length - 6, "more")}`.replace("mores", "more"), rest]);
  const total = Math.max(checkpoint.nbytes, 1);
  const bar = element("div", { class: "bar", "aria-hidden": "true" });
  const legend = element("ul", {});
  shown.forEach(([key, bytes], i) => {
    const part = element("i", { class: `c${i}` });
    part.style.flexGrow = String(bytes / total);
    bar.append(part);
    const pick = () => {
      selectTab("tensors");
      byId("search").value = `/${key}`;
      table.filter();
    };
    legend.append(element("li", {}, element("button", { type: "button", onclick: i < 6 ? pick : null, disabled: i >= 6 }, element("i", { class: `c${i}` }), element("span", { class: "name" }, visible(key).slice(0, 60) || "(root)"), element("span", { class: "quiet" }, `${size(bytes)}`))));
  });
  byId("groups").replaceChildren(bar, legend);
  byId("groups").hidden = all.length < 2;
}

// --- tabs, theme, files ---

const TABS = ["tensors", "state"];

function selectTab(name) {
  for (const tab of TABS) {
    const button = byId(`tab-${tab}`);
    button.setAttribute("aria-selected", String(tab === name));
    button.tabIndex = tab === name ? 0 : -1;
    byId(`panel-${tab}`).hidden = tab !== name;
  }
  if (name === "tensors") table.draw();
}

for (const [i, tab] of TABS.entries()) {
  byId(`tab-${tab}`).addEventListener("click", () => selectTab(tab));
  byId(`tab-${tab}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = TABS[(i + 1) % TABS.length];
    selectTab(other);
    byId(`tab-${other}`).focus();
  });
}

byId("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  for (const canvas of document.querySelectorAll("canvas.heat")) canvas.repaint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const canvas of document.querySelectorAll("canvas.heat")) canvas.repaint();
});

for (const kind of ["file", "folder"]) {
  const input = byId(`${kind}-input`);
  for (const button of document.querySelectorAll(`.open-${kind}`)) button.addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    await take(chosenFiles(input.files));
    input.value = "";
  });
}

let inside = 0;
addEventListener("dragenter", (event) => {
  inside++;
  document.body.classList.add("dragging");
  event.preventDefault();
});
addEventListener("dragleave", () => {
  inside--;
  if (inside <= 0) document.body.classList.remove("dragging");
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dragging");
  try {
    await take(await droppedFiles(event.dataTransfer));
  } catch (error) {
    say(`The files cannot be read: ${error.message ?? error}`, true);
  }
});
addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "/" && !typing && current) {
    selectTab("tensors");
    byId("search").focus();
    event.preventDefault();
  }
  if (event.key === "Escape" && !byId("panel").hidden) panel.hide();
});
