/**
 * Strict JSON from bytes, for texts of any size: no string holds more than one value of the text.
 *
 * Objects become `Map`s. Integers that a JavaScript number cannot hold become `BigInt`s. A number with a
 * point or an exponent becomes a `Float`, so that `1.0` and `1` stay apart.
 */

/** The input is not as the format says. */
export class FormatError extends Error {}

/** A number that was written with a point or an exponent. */
export class Float {
  constructor(value) {
    this.value = value;
  }

  valueOf() {
    return this.value;
  }

  toString() {
    if (Object.is(this.value, -0)) return "-0.0";
    const text = String(this.value);
    return /^-?\d+$/.test(text) ? `${text}.0` : text;
  }
}

/** Where a payload is in the text: from its quote or bracket up to behind the closing one. */
export class Span {
  constructor(start, end) {
    this.start = start;
    this.end = end;
  }
}

const LARGEST_DEPTH = 200;
const LONGEST_NUMBER = 1000;
const MOST_NODES = 10_000_000;
const SPACE = new Uint8Array(256);
for (const code of [9, 10, 13, 32]) SPACE[code] = 1;
const PLAIN = new Uint8Array(256).fill(1, 32, 127); // characters of a string that stand for themselves
PLAIN[34] = PLAIN[92] = 0;
const IN_NUMBER = new Uint8Array(256);
for (const character of "0123456789+-.eE") IN_NUMBER[character.charCodeAt(0)] = 1;
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/;
const ESCAPES = new Map(Object.entries({ '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" }));
const DECODER = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The text of UTF-8 bytes; other bytes are refused. */
export function decodeUtf8(bytes) {
  try {
    return DECODER.decode(bytes);
  } catch {
    throw new FormatError("the text is not UTF-8");
  }
}

/** ASCII as a string. */
export function ascii(bytes, start, end) {
  let text = "";
  for (let at = start; at < end; at += 4096) {
    text += String.fromCharCode.apply(null, bytes.subarray(at, Math.min(end, at + 4096)));
  }
  return text;
}

/**
 * The value of a JSON text.
 * @param {Uint8Array} bytes
 * @param {{spans?: boolean}} options with `spans` the elements of `tensors[…].chunks` become `Span`s.
 */
export function parse(bytes, { spans = false } = {}) {
  return new Parser(bytes).document(spans ? "document" : "");
}

/** What members are when payloads are not read: see `parse`. */
const INSIDE = { document: ["tensors", "records"], record: ["chunks", "payloads"] };
const ELEMENTS = { records: "record", payloads: "payload" };

class Parser {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
    this.nodes = 0;
  }

  fail(message) {
    throw new FormatError(`${message} (byte ${this.at})`);
  }

  document(role) {
    this.space();
    const value = this.value(0, role);
    this.space();
    if (this.at !== this.bytes.length) this.fail("bytes follow the JSON text");
    return value;
  }

  space() {
    while (SPACE[this.bytes[this.at]]) this.at++;
  }

  value(depth, role) {
    const code = this.bytes[this.at];
    if (role === "payload") return this.payload(code);
    if (code === 34) return this.string();
    if (code === 123) return this.object(depth + 1, role);
    if (code === 91) return this.array(depth + 1, role);
    if (code === 116) return this.word("true", true);
    if (code === 102) return this.word("false", false);
    if (code === 110) return this.word("null", null);
    return this.number();
  }

  open(depth, weight) {
    if (depth > LARGEST_DEPTH) this.fail(`the text is nested deeper than ${LARGEST_DEPTH}`);
    this.count(weight);
    this.at++;
    this.space();
  }

  count(weight = 1) {
    this.nodes += weight;
    if (this.nodes > MOST_NODES) this.fail(`the text has more than ${MOST_NODES} brackets and strings`);
  }

  object(depth, role) {
    const found = new Map();
    const [special, next] = INSIDE[role] ?? [];
    this.open(depth, 4); // a Map takes about four times the memory of an array
    if (this.skip(125)) return found;
    do {
      this.space();
      if (this.bytes[this.at] !== 34) this.fail("a member has no name");
      const name = this.string();
      if (found.has(name)) this.fail("a member name stands twice in one object");
      this.space();
      if (!this.skip(58)) this.fail("a colon is missing");
      this.space();
      found.set(name, this.value(depth, name === special ? next : ""));
      this.space();
    } while (this.skip(44));
    if (!this.skip(125)) this.fail("an object does not end");
    return found;
  }

  array(depth, role) {
    const found = [];
    this.open(depth, 1);
    if (this.skip(93)) return found;
    do {
      this.space();
      found.push(this.value(depth, ELEMENTS[role] ?? ""));
      this.space();
    } while (this.skip(44));
    if (!this.skip(93)) this.fail("an array does not end");
    return found;
  }

  skip(code) {
    if (this.bytes[this.at] !== code) return false;
    this.at++;
    return true;
  }

  word(text, value) {
    if (ascii(this.bytes, this.at, this.at + text.length) !== text) this.fail("no JSON value begins here");
    this.at += text.length;
    return value;
  }

  number() {
    const start = this.at;
    while (IN_NUMBER[this.bytes[this.at]]) this.at++;
    if (this.at === start) this.fail("no JSON value begins here");
    if (this.at - start > LONGEST_NUMBER) this.fail(`a number has more than ${LONGEST_NUMBER} characters`);
    const text = ascii(this.bytes, start, this.at);
    const match = NUMBER.exec(text);
    if (!match) this.fail("a number is not as JSON has it");
    const value = Number(text);
    if (match[2] === undefined && match[3] === undefined) {
      return Number.isSafeInteger(value) ? value + 0 : BigInt(text);
    }
    if (!Number.isFinite(value)) this.fail("a number overflows");
    return new Float(value);
  }

  string() {
    this.count();
    const { bytes } = this;
    const start = this.at + 1;
    let at = start;
    while (PLAIN[bytes[at]]) at++;
    if (bytes[at] === 34) {
      this.at = at + 1;
      return ascii(bytes, start, at);
    }
    return this.longString(start, at);
  }

  longString(start, from) {
    const { bytes } = this;
    const parts = [];
    let begin = start;
    let at = from;
    for (;;) {
      const code = bytes[at];
      if (code === undefined || code < 32) {
        this.at = at;
        this.fail(code === undefined ? "a string does not end" : "a control character is in a string");
      }
      if (code === 34 || code === 92) {
        if (at > begin) parts.push(decodeUtf8(bytes.subarray(begin, at)));
        if (code === 34) break;
        this.at = at + 1;
        parts.push(this.escape());
        at = begin = this.at;
      } else {
        at++;
      }
    }
    this.at = at + 1;
    return parts.join("");
  }

  escape() {
    const character = String.fromCharCode(this.bytes[this.at] ?? 0);
    this.at++;
    if (character !== "u") return ESCAPES.get(character) ?? this.fail("an escape is not as JSON has it");
    const first = this.unit();
    if (first < 0xd800 || first > 0xdfff) return String.fromCharCode(first);
    const paired = first < 0xdc00 && this.skip(92) && this.skip(117);
    const second = paired ? this.unit() : 0;
    if (second < 0xdc00 || second > 0xdfff) this.fail("a surrogate is alone");
    return String.fromCharCode(first, second);
  }

  unit() {
    const text = ascii(this.bytes, this.at, Math.min(this.at + 4, this.bytes.length));
    if (!/^[0-9a-fA-F]{4}$/.test(text)) this.fail("an escape is not as JSON has it");
    this.at += 4;
    return parseInt(text, 16);
  }

  payload(code) {
    const start = this.at;
    const { bytes } = this;
    if (code !== 34 && code !== 91) this.fail("a chunk is neither a string nor an array");
    const end = bytes.indexOf(code === 34 ? 34 : 93, start + 1);
    if (end < 0) this.fail("a chunk does not end");
    this.at = end + 1;
    return new Span(start, end + 1);
  }
}

/** JSON of what `parse` returns: the same values, number by number. */
export function stringify(value) {
  if (value instanceof Map) {
    return `{${Array.from(value, ([name, member]) => `${JSON.stringify(name)}:${stringify(member)}`).join(",")}}`;
  }
  if (Array.isArray(value)) return `[${value.map(stringify).join(",")}]`;
  if (value instanceof Float || typeof value === "bigint") return String(value);
  return JSON.stringify(value);
}
