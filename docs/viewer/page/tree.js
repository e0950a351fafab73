/** The state tree: every plain value, tags by their meaning, long lists in a line. */

import { Float, children, stringify, tagOf } from "../jsonckpt.js";
import { count, element, plural, shortened, visible } from "./dom.js";

const AT_ONCE = 200;
const isTensor = (tag) => tag === "$tensor" || tag === "$regions" || tag === "$tied" || tag === "$view";
const WORDS = { $ordered_dict: "OrderedDict", $defaultdict: "defaultdict", $counter: "Counter", $namespace: "Namespace", $simple_namespace: "SimpleNamespace", $dict: "dict" };

/** The name of the tensor that a node stands for, or null. */
export function tensorName(node) {
  const tag = tagOf(node);
  if (tag === "$parameter") return tensorName(node.get(tag) instanceof Map ? node.get(tag).get("data") : null);
  if (tag === "$requires_grad") return tensorName(node.get(tag));
  if (tag === "$ndarray") return tensorName(node.get(tag) instanceof Map ? node.get(tag).get("data") : null);
  if (!isTensor(tag)) return null;
  const body = node.get(tag);
  return typeof body === "string" ? body : body.get("name");
}

/** A value in a line: its text and its class. */
export function summary(node) {
  const tag = tagOf(node);
  if (tag) return tagged(tag, node.get(tag), node);
  if (Array.isArray(node)) return list("list", node);
  if (node instanceof Map) return { text: preview(node) ?? `dict, ${plural(node.size, "member")}`, kind: "group" };
  if (typeof node === "string") return { text: visible(shortened(JSON.stringify(node), 500)), kind: "string" };
  if (node === null) return { text: "None", kind: "word" };
  if (typeof node === "boolean") return { text: node ? "True" : "False", kind: "word" };
  return { text: shortened(String(node), 120), kind: "number" };
}

/** A few plain members in a line, or which random generator a state is of; else null. */
function preview(members) {
  const generator = members.get("bit_generator");
  if (typeof generator === "string") return `${visible(shortened(generator, 40))}, random generator`;
  const plain = (value) => !(value instanceof Map || Array.isArray(value)) || tagOf(value) === "$float";
  if (!members.size || members.size > 6 || ![...members.values()].every(plain)) return null;
  const parts = Array.from(members, ([key, value]) => `${visible(shortened(key, 30))} ${shortened(brief(value), 48)}`);
  return `{${parts.join(", ")}}`;
}

/** A plain value with at most six digits. */
const brief = (value) => (value instanceof Float && Number.isFinite(value.value) ? String(Number(value.value.toPrecision(6))) : summary(value).text);

function list(word, items) {
  const [version, words] = items;
  if (word === "tuple" && items.length === 3 && version === 3 && children(words)?.length === 625) return { text: "Mersenne Twister, random generator", kind: "group" };
  const numbers = items.length > 8 && items.every((item) => typeof item === "number" || typeof item === "bigint");
  const of = numbers ? "integer" : "item";
  const some = numbers ? `: ${items.slice(0, 4).join(", ")}, …` : "";
  return { text: `${word}, ${plural(items.length, of)}${some}`, kind: "group" };
}

function tagged(tag, body, node) {
  const name = tensorName(node);
  if (name !== null) {
    const word = { $parameter: "Parameter", $tied: "tied tensor", $view: "view", $ndarray: "NumPy array" }[tag] ?? "tensor";
    return { text: word, kind: "tensor", name };
  }
  const word = tag.slice(1);
  const inside = children(node);
  if (inside && Array.isArray(body)) return tag === "$dict" ? { text: `dict, ${plural(inside.length, "member")}`, kind: "group" } : list(word, body);
  if (inside) return { text: `${WORDS[tag] ?? word}, ${plural(inside.length, "member")}`, kind: "group" };
  if (tag === "$bytes" || tag === "$bytearray") return { text: `${word}, ${count(Math.floor((String(body).length * 3) / 4))} bytes`, kind: "string" };
  if (tag === "$int") return { text: shortened(integer(body), 120), kind: "number" };
  if (tag === "$float") return { text: visible(String(body)), kind: "number" };
  const value = body instanceof Map || Array.isArray(body) ? stringify(body) : typeof body === "string" ? body : String(body);
  return { text: `${word} ${visible(shortened(value, 300))}`, kind: "word" };
}

function integer(digits) {
  const match = /^(-?)(0x[0-9a-f]+)$/i.exec(digits);
  return match ? match[1] + BigInt(match[2]) : visible(String(digits));
}

/** One line of the tree, with its children as soon as it is opened. */
export function treeItem(key, value, path, actions, open = false) {
  const { text, kind, name } = summary(value);
  const inside = kind === "group" ? children(value) : null;
  const label = element("span", { class: "key" }, visible(shortened(key, 200)));
  const shown = name === undefined ? element("span", { class: `value ${kind}` }, text) : tensorLink(name, text, actions);
  const item = element("li", {});
  if (!inside?.length) {
    item.append(element("div", { class: "line leaf" }, label, shown));
    return item;
  }
  const button = element("button", { type: "button", class: "line", "aria-expanded": "false" }, label, shown);
  button.addEventListener("click", () => toggle(item, button, inside, path, actions));
  item.append(button);
  if (open) toggle(item, button, inside, path, actions);
  return item;
}

function tensorLink(name, text, actions) {
  const facts = actions.facts(name);
  return element("button", { type: "button", class: "value tensor", title: visible(name).slice(0, 1100), onclick: () => actions.show(name) }, facts ? `${text} ${facts}` : text);
}

function toggle(item, button, inside, path, actions) {
  const isOpen = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!isOpen));
  if (isOpen) {
    item.lastElementChild.remove();
    return;
  }
  const group = element("ul", {});
  const more = (from) => {
    for (const child of inside.slice(from, from + AT_ONCE)) group.append(treeItem(child.key, child.value, [...path, child.key], actions));
    const left = inside.length - from - AT_ONCE;
    if (left <= 0) return;
    const next = element("li", {}, element("button", { type: "button", class: "more", onclick: () => { next.remove(); more(from + AT_ONCE); } }, `Show ${count(Math.min(left, AT_ONCE))} more of ${count(left)}`));
    group.append(next);
  };
  more(0);
  item.append(group);
}

const NOTED = ["epoch", "step", "global_step", "iteration", "lr", "learning_rate", "loss", "train_loss", "best_loss", "val_loss", "best_val_loss", "weight_decay", "last_epoch", "batch_size"];

/** Plain values that people look for first: `[key, text]`. */
export function highlights(state) {
  const found = new Map();
  let level = [state];
  for (let depth = 0, seen = 0; depth < 6 && seen < 20_000; depth++) {
    const next = [];
    for (const node of level) {
      // Of a list, such as a history, the last item is the newest.
      for (const { key, value } of Array.isArray(node) ? children(node).slice(-200).reverse() : (children(node) ?? []).slice(0, 2000)) {
        seen++;
        const { kind, text } = summary(value);
        if (NOTED.includes(key) && !found.has(key) && kind !== "group") found.set(key, brief(value));
        if (kind === "group") next.push(value);
      }
    }
    level = next;
  }
  return NOTED.filter((key) => found.has(key)).map((key) => [key, found.get(key)]);
}
