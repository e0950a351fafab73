/** Small helpers of the page. Text becomes text nodes only: nothing of a checkpoint is ever parsed as HTML. */

/** An element with attributes, listeners (`onclick`) and children; strings become text. */
export function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...content.flat().filter((part) => part !== null && part !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, attributes = {}, ...content) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

export const byId = (id) => document.getElementById(id);

// Controls, and characters that are invisible or turn the direction of what follows.
const HIDDEN = /[\0-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\ufff9-\ufffb]/g;

/** A text with such characters as escapes, so that it looks like what it is. */
export const visible = (text) => text.replace(HIDDEN, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A text that is not longer than `most`. */
export const shortened = (text, most = 200) => (text.length > most ? `${text.slice(0, most)}… (${text.length.toLocaleString("en")} characters)` : text);

/** A size in bytes as people read it: decimal units, three digits. */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let [value, unit] = [bytes, 0];
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return unit === 0 ? `${value} B` : `${value.toPrecision(3)} ${units[unit]}`;
}

export const count = (number) => Number(number).toLocaleString("en");

/** A count as people say it: `1.24 M`. */
export function about(number) {
  const units = ["", " k", " M", " G", " T"];
  let [value, unit] = [number, 0];
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return unit === 0 ? String(value) : value.toPrecision(3) + units[unit];
}

/** A number of a statistic. */
export function figure(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value < 0 ? "-∞" : "∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return count(value || 0);
  const text = value.toPrecision(4);
  return String(Number(text));
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
