/** Raw bytes of tensors as numbers, and the numbers of `list` payloads as raw bytes (format, section 4). */

import { FormatError, ascii } from "./json.js";

const refuse = (message) => {
  throw new FormatError(message);
};

/**
 * A float of few bits: how many are exponent and mantissa, the bias, the pattern of the largest finite
 * number and of the canonical NaN, whether there are infinities, and whether only one NaN and no -0.
 */
const small = (exponent, mantissa, bias, largest, nan, infinite = false, fnuz = false) => ({
  exponent, mantissa, bias, largest, nan, infinite, fnuz,
  sign: 1 << (exponent + mantissa),
});
const SMALL = {
  float16: small(5, 10, 15, 0x7bff, 0x7e00, true),
  bfloat16: small(8, 7, 127, 0x7f7f, 0x7fc0, true),
  float8_e4m3fn: small(4, 3, 7, 0x7e, 0x7f),
  float8_e4m3fnuz: small(4, 3, 8, 0x7f, 0x80, false, true),
  float8_e5m2: small(5, 2, 15, 0x7b, 0x7e, true),
  float8_e5m2fnuz: small(5, 2, 16, 0x7f, 0x80, false, true),
  float4_e2m1fn: small(2, 1, 1, 0x7, -1),
};

/** The value of a bit pattern. */
function smallValue(code, rules) {
  const { mantissa, bias, largest, infinite, fnuz, sign } = rules;
  const magnitude = code & (sign - 1);
  if (fnuz && code === sign) return NaN;
  if (magnitude > largest) return infinite && magnitude === largest + 1 ? (code & sign ? -Infinity : Infinity) : NaN;
  const exponent = magnitude >> mantissa;
  const fraction = magnitude & ((1 << mantissa) - 1);
  const value = exponent ? (2 ** mantissa + fraction) * 2 ** (exponent - bias - mantissa) : fraction * 2 ** (1 - bias - mantissa);
  return code & sign ? -value : value;
}

const parts = new DataView(new ArrayBuffer(8));
const floorLog2 = (value) => {
  parts.setFloat64(0, value);
  return ((parts.getUint16(0) >> 4) & 0x7ff) - 1023;
};

/** The bit pattern nearest to a finite number, ties to even. */
function smallBits(number, rules) {
  const value = Math.fround(number);
  const { mantissa, bias, largest, fnuz, sign } = rules;
  const magnitude = Math.abs(value);
  const exponent = Math.max(magnitude ? floorLog2(magnitude) : -Infinity, 1 - bias);
  const scaled = magnitude / 2 ** (exponent - mantissa);
  let steps = Math.floor(scaled);
  const rest = scaled - steps;
  if (rest > 0.5 || (rest === 0.5 && steps % 2 === 1)) steps++;
  const code = (exponent - 1 + bias) * 2 ** mantissa + steps;
  if (!(code <= largest)) refuse("a number is too large for its dtype");
  const negative = value < 0 || Object.is(value, -0);
  if (fnuz && negative && code === 0) refuse("the dtype has no minus zero");
  return negative ? code | sign : code;
}

/** The exponent, with a bias of 127, of the nearest power of two. */
function powerBits(value) {
  if (!(value > 0)) refuse("the dtype has only powers of two");
  if (value < 2 ** -127 * 0.5) refuse("a number is too small for its dtype");
  const exponent = value < 2 ** -1022 ? -1023 : floorLog2(value);
  const fraction = value / 2 ** exponent; // from 1 up to 2
  const code = exponent + 127 + (fraction > 1.5 || (fraction === 1.5 && (exponent + 127) % 2 !== 0) ? 1 : 0);
  if (code < 0 || code > 254) refuse("a number is out of the range of its dtype");
  return code;
}

/** A table of all values of a small float. */
const tables = new Map();
function tableOf(name) {
  if (!tables.has(name)) {
    const rules = SMALL[name];
    const value = rules ? (code) => smallValue(code, rules) : (code) => (code === 255 ? NaN : 2 ** (code - 127));
    tables.set(name, Float32Array.from({ length: rules ? 2 * rules.sign : 256 }, (_, code) => value(code)));
  }
  return tables.get(name);
}

const aligned = (bytes, size) => (bytes.byteOffset % size ? bytes.slice() : bytes);
const typed = (Kind) => (bytes) => {
  const from = aligned(bytes, Kind.BYTES_PER_ELEMENT);
  return new Kind(from.buffer, from.byteOffset, from.byteLength / Kind.BYTES_PER_ELEMENT);
};
const looked = (name, Kind) => (bytes) => {
  const table = tableOf(name);
  const codes = typed(Kind)(bytes);
  const out = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) out[i] = table[codes[i]];
  return out;
};
const halves = (bytes) => {
  const table = tableOf("float4_e2m1fn");
  const out = new Float32Array(2 * bytes.length);
  for (let i = 0; i < bytes.length; i++) {
    out[2 * i] = table[bytes[i] & 15];
    out[2 * i + 1] = table[bytes[i] >> 4];
  }
  return out;
};

// --- numbers of `list` ---

const TOKEN = /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/;

/** Calls `put(text, quoted)` for each element of an array on one line (or on several). */
function eachToken(bytes, start, end, put) {
  let at = start;
  const space = () => {
    while (bytes[at] === 32 || (bytes[at] >= 9 && bytes[at] <= 13)) at++;
  };
  space();
  if (at >= end) return;
  for (;;) {
    const from = at;
    while (at < end && bytes[at] !== 44 && bytes[at] !== 32 && bytes[at] > 13) at++;
    if (at - from > 66) refuse("a number of a list has more than 64 characters");
    const text = ascii(bytes, from, at);
    const quoted = /^"[^"\\]*"$/.test(text);
    if (!quoted && !TOKEN.test(text)) refuse("a list holds something that is no number");
    put(quoted ? text.slice(1, -1) : text, quoted);
    space();
    if (at >= end) return;
    if (bytes[at] !== 44) refuse("a comma is missing in a list");
    at++;
    space();
  }
}

const specialBits = (text, rules, digits) => {
  if (text === "NaN" && rules.nan >= 0) return rules.nan;
  if (rules.infinite && /^-?Infinity$/.test(text)) return (rules.largest + 1) | (text[0] === "-" ? rules.sign : 0);
  if (!new RegExp(`^0x[0-9a-f]{${digits}}$`).test(text)) refuse("a string of a list is no number of the dtype");
  const code = parseInt(text, 16);
  if (code === rules.nan || !Number.isNaN(smallValue(code, rules))) refuse("a bit pattern of a list is no other NaN");
  return code;
};

const putSmall = (name, item) => (view, at, text, quoted) => {
  const rules = SMALL[name];
  const code = quoted ? specialBits(text, rules, 2 * item) : smallBits(Number(text), rules);
  if (item === 1) view.setUint8(at, code);
  else view.setUint16(at, code, true);
};

const putPower = (view, at, text, quoted) => {
  if (quoted && text !== "NaN") refuse("a string of a list is no number of the dtype");
  view.setUint8(at, quoted ? 255 : powerBits(Number(text)));
};

/** float32 and float64: the words of a NaN, from the most significant on. */
const putWide = (item, canonical) => (view, at, text, quoted) => {
  if (quoted && !/^-?Infinity$/.test(text)) {
    const digits = text === "NaN" ? canonical : text.slice(2);
    if (text !== "NaN" && !new RegExp(`^0x[0-9a-f]{${2 * item}}$`).test(text)) refuse("a string of a list is no number of the dtype");
    if (text !== "NaN" && digits === canonical) refuse("a bit pattern of a list is no other NaN");
    for (let i = 0; i < item; i++) view.setUint8(at + i, parseInt(digits.slice(2 * (item - 1 - i), 2 * (item - i)), 16));
    const value = item === 4 ? view.getFloat32(at, true) : view.getFloat64(at, true);
    if (!Number.isNaN(value)) refuse("a bit pattern of a list is no other NaN");
    return;
  }
  const value = item === 4 ? Math.fround(Number(text)) : Number(text);
  if (!quoted && !Number.isFinite(value)) refuse("a number is too large for its dtype");
  if (item === 4) view.setFloat32(at, value, true);
  else view.setFloat64(at, value, true);
};

const putInteger = (low, high, set) => (view, at, text, quoted) => {
  if (quoted || /[.eE]/.test(text)) refuse("an element of a list is no integer");
  const value = Number(text);
  if (!(value >= low && value <= high)) refuse("an integer is out of the range of its dtype");
  view[set](at, value, true);
};

const putLong = (low, high, set) => (view, at, text, quoted) => {
  if (quoted || /[.eE]/.test(text)) refuse("an element of a list is no integer");
  const value = BigInt(text);
  if (value < low || value > high) refuse("an integer is out of the range of its dtype");
  view[set](at, value, true);
};

/**
 * By name: `item` bytes of an element, `parts` numbers in it, `values(bytes)` a typed array of these, `put` writes
 * the number of a `list`, `width` the most characters of one, `part` the bytes that `put` writes.
 */
export const DTYPES = new Map();
const add = (name, item, values, put, width, more = {}) => {
  DTYPES.set(name, { name, item, values, put, width, parts: 1, part: item, kind: "float", ...more });
};

const BYTE = putInteger(0, 255, "setUint8");
add("bool", 1, typed(Uint8Array), putInteger(0, 1, "setUint8"), 2, { kind: "bool" });
add("uint8", 1, typed(Uint8Array), BYTE, 4, { kind: "int" });
add("uint16", 2, typed(Uint16Array), putInteger(0, 65535, "setUint16"), 6, { kind: "int" });
add("uint32", 4, typed(Uint32Array), putInteger(0, 2 ** 32 - 1, "setUint32"), 11, { kind: "int" });
add("uint64", 8, typed(BigUint64Array), putLong(0n, 2n ** 64n - 1n, "setBigUint64"), 21, { kind: "int" });
add("int8", 1, typed(Int8Array), putInteger(-128, 127, "setInt8"), 5, { kind: "int" });
add("int16", 2, typed(Int16Array), putInteger(-32768, 32767, "setInt16"), 7, { kind: "int" });
add("int32", 4, typed(Int32Array), putInteger(-(2 ** 31), 2 ** 31 - 1, "setInt32"), 12, { kind: "int" });
add("int64", 8, typed(BigInt64Array), putLong(-(2n ** 63n), 2n ** 63n - 1n, "setBigInt64"), 21, { kind: "int" });
add("float64", 8, typed(Float64Array), putWide(8, "7ff8000000000000"), 26);
add("float32", 4, typed(Float32Array), putWide(4, "7fc00000"), 21);
add("float16", 2, looked("float16", Uint16Array), putSmall("float16", 2), 13);
add("bfloat16", 2, looked("bfloat16", Uint16Array), putSmall("bfloat16", 2), 21);
for (const name of ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]) {
  add(name, 1, looked(name, Uint8Array), putSmall(name, 1), 13);
}
add("float8_e8m0fnu", 1, looked("float8_e8m0fnu", Uint8Array), putPower, 21);
const NIBBLE = (view, at, text, quoted) => {
  if (quoted) refuse("a string of a list is no number of the dtype");
  const code = smallBits(Number(text), SMALL.float4_e2m1fn);
  const byte = Math.floor(at);
  view.setUint8(byte, at === byte ? code : view.getUint8(byte) | (code << 4));
};
add("float4_e2m1fn_x2", 1, halves, NIBBLE, 5, { parts: 2, part: 0.5 });
for (const [name, item, real] of [["complex32", 4, "float16"], ["complex64", 8, "float32"], ["complex128", 16, "float64"]]) {
  const { values, put, width, part } = DTYPES.get(real);
  add(name, item, values, put, width, { parts: 2, part, kind: "complex" });
}
for (let bits = 1; bits < 8; bits++) {
  add(`uint${bits}`, 1, typed(Uint8Array), BYTE, 4, { kind: "raw" });
  add(`int${bits}`, 1, typed(Uint8Array), BYTE, 4, { kind: "raw" });
}
for (const name of ["bits8", "bits1x8", "bits2x4", "bits4x2"]) add(name, 1, typed(Uint8Array), BYTE, 4, { kind: "raw" });
add("bits16", 2, typed(Uint16Array), putInteger(0, 65535, "setUint16"), 6, { kind: "raw" });

/** The raw bytes of a `list` payload of `size` raw bytes. */
export function listBytes(payload, dtype, size) {
  const out = new Uint8Array(size);
  const view = new DataView(out.buffer);
  let at = 0;
  eachToken(payload, 0, payload.length, (text, quoted) => {
    if (at >= size) refuse("a list has too many elements");
    dtype.put(view, at, text, quoted);
    at += dtype.part;
  });
  if (at !== size) refuse("a list has too few elements");
  return out;
}

/** The text of a number as people read it: as short as the dtype allows. */
export function numberText(value, dtype) {
  if (typeof value === "bigint" || dtype.kind !== "float" && dtype.kind !== "complex") return String(value);
  if (Object.is(value, -0)) return "-0";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value < 0 ? "-∞" : "∞";
  if (dtype.name === "float64" || dtype.name === "complex128") return String(value);
  for (let digits = 1; digits < 9; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return String(Number(text));
  }
  return String(Number(value.toPrecision(9)));
}
