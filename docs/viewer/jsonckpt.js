/**
 * Reads jsonckpt checkpoints (docs/format.md) in a browser and in Node. No dependencies.
 *
 *     import { open } from "./jsonckpt.js";
 *     const checkpoint = await open("model.json"); // Node: a path. Browser: a File, or the Files of a directory.
 *     checkpoint.state;                             // the state tree; objects are Maps
 *     const { shape, data } = await checkpoint.tensor("/model/weight");
 *
 * Only what is asked for is read. Everything that is returned was checked against its checksum. Every fault of a
 * file is a `FormatError`.
 */

import { DTYPES, listBytes, numberText } from "./dtypes.js";
import { ALGORITHMS } from "./hashes.js";
import { Float, FormatError, Span, ascii, parse, stringify } from "./json.js";
import { BlobSource, ZstdSource, readRanges } from "./sources.js";
import { ZstdError, decompress } from "./zstd.js";

export { DTYPES, Float, FormatError, numberText, parse, stringify };

const MIB = 1024 * 1024;
const LARGEST_CHUNK = 64 * MIB;
const LARGEST_SKELETON = 64 * MIB;
const LARGEST_EDITED = 1024 * MIB;
const MOST_RECORDS = 500_000;
const MOST_CHUNKS = 4_000_000;
const MOST_SHARDS = 100_000;
const ENCODINGS = new Set(["base64", "list"]);
const COMPRESSIONS = new Set(["none", "zstd"]);
const FILTERS = new Set(["none", "shuffle"]);

function need(condition, message) {
  if (!condition) throw new FormatError(message);
}
const isCount = (value) => typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
const isText = (value) => typeof value === "string";
const joined = (parts) => {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
};

// --- what a checkpoint is made of ---

/** One tensor of a checkpoint, as its record says. */
class Entry {
  constructor(facts, codec, place) {
    const [name, dtype, shape] = ["name", "dtype", "shape"].map((key) => facts.get(key));
    need(isText(name) && /^(\/.*|\$storage\/.*|\$region\/((0|[1-9]\d*)(,(0|[1-9]\d*))*)?(\/.*)?|)$/su.test(name) && !/[\0-\x1f\x7f]/.test(name), `${place}: a name is not valid`);
    need(new TextEncoder().encode(name).length <= 1024, `${place}: a name has more than 1024 bytes`);
    need(DTYPES.has(dtype), `${place}: ${name} has the dtype ${dtype}, which this reader does not know`);
    this.name = name;
    this.dtype = dtype;
    this.item = DTYPES.get(dtype).item;
    this.shape = checkedShape(shape, name);
    this.numel = Number(this.shape.reduce((product, size) => product * BigInt(size), 1n));
    this.nbytes = this.numel * this.item;
    need(Number.isSafeInteger(this.nbytes), `${name}: the tensor is too large`);
    this.device = facts.get("device") ?? "cpu";
    need(isText(this.device) && /^[a-z]{1,20}(:[0-9]{1,5})?$/.test(this.device), `${name}: the device is not valid`);
    this.stride = facts.get("stride") ?? null;
    this.storage = facts.get("storage") ?? null;
    checkStride(this);
    checkStorage(this);
    this.encoding = codec.get("encoding");
    this.compression = codec.get("compression");
    this.filter = codec.get("filter");
    this.chunkBytes = codec.get("chunk_bytes");
    checkCodec(this);
    checkRequires(facts, name);
    if (name.startsWith(REGION)) checkRegion(this, facts);
    this.chunkCount = Math.ceil(this.nbytes / this.chunkBytes);
    this.chunks = []; // [offset, length] of each payload
    this.checksums = [];
    this.digest = null;
    this.text = null; // an asynchronous function that gives the text of its file
  }

  /** The number of raw bytes of a chunk. */
  chunkSize(number) {
    return Math.min(this.chunkBytes, this.nbytes - number * this.chunkBytes);
  }

  /** The bytes of its payloads. */
  get storedBytes() {
    return this.chunks.reduce((sum, [, length]) => sum + length, 0);
  }
}

/** A tensor in regions, put together from several records (section 6.5). */
class Whole {
  constructor(body, records, place) {
    need(body instanceof Map, `${place}: a $regions is no object`);
    const [name, dtype, shape, parts] = ["name", "dtype", "shape", "parts"].map((key) => body.get(key));
    need(isText(name) && /^(\/.*|)$/su.test(name), `${place}: a name is not valid`);
    need(!records.has(name), `${name}: two tensors have this name`);
    need(DTYPES.has(dtype), `${place}: ${name} has the dtype ${dtype}, which this reader does not know`);
    need(Array.isArray(parts) && parts.length > 0, `${name}: parts is not valid`);
    this.name = name;
    this.dtype = dtype;
    this.item = DTYPES.get(dtype).item;
    this.shape = checkedShape(shape, name);
    this.numel = Number(this.shape.reduce((product, size) => product * BigInt(size), 1n));
    this.nbytes = this.numel * this.item;
    this.device = body.get("device") ?? "cpu";
    need(isText(this.device) && /^[a-z]{1,20}(:[0-9]{1,5})?$/.test(this.device), `${name}: the device is not valid`);
    this.stride = null;
    this.storage = null;
    this.parts = parts.map((part) => partOf(part, this, records));
    need(new Set(this.parts.map(({ entry }) => entry.name)).size === parts.length, `${name}: two parts have one offset`);
    need(tiles(this.shape, this.parts), `${name}: its parts do not cover each element once`);
    need(Number.isSafeInteger(this.nbytes), `${name}: the tensor is too large`);
    const [{ entry: first }] = this.parts;
    for (const key of ["encoding", "compression", "filter", "chunkBytes"]) this[key] = first[key];
    this.chunkCount = Math.ceil(this.nbytes / this.chunkBytes);
    this.checksums = this.parts.flatMap(({ entry }) => entry.checksums);
    this.said = stringify(body);
  }

  chunkSize(number) {
    return Math.min(this.chunkBytes, this.nbytes - number * this.chunkBytes);
  }

  get storedBytes() {
    return this.parts.reduce((sum, { entry }) => sum + entry.storedBytes, 0);
  }
}

const REGION = "$region/";

function checkRegion({ name, shape, stride, storage }, facts) {
  const offsets = name.slice(REGION.length).split("/")[0];
  need((offsets ? offsets.split(",").length : 0) === shape.length, `${name}: the name has not as many offsets as the shape has sizes`);
  need(stride === null && storage === null, `${name}: a region has neither stride nor storage`);
  if (facts.has("chunks") && facts.has("encoding")) need(facts.get("requires")?.includes("regions"), `${name}: requires must name regions`);
}

function partOf(part, { name, dtype, shape }, records) {
  const offset = part instanceof Map ? part.get("offset") : null;
  const isValid = Array.isArray(offset) && offset.length === shape.length && offset.every(isCount);
  need(isValid && part.get("of") === `${REGION}${offset.join(",")}${name}`, `${name}: a part is not valid`);
  const entry = records.get(part.get("of"));
  need(entry, `${name}: there is no record ${part.get("of")}`);
  need(entry.dtype === dtype, `${name}: ${entry.name} has another dtype`);
  need(offset.every((start, i) => BigInt(start) + BigInt(entry.shape[i]) <= BigInt(shape[i])), `${name}: ${entry.name} leaves the tensor`);
  return { entry, offset };
}

/** Whether boxes cover each element once: both polynomials have one value at a random point (section 6.5). */
function tiles(shape, parts) {
  const prime = (1n << 127n) - 1n;
  const known = shape.map(() => new Map());
  const random = () => globalThis.crypto.getRandomValues(new BigUint64Array(2)).reduce((sum, word) => (sum << 64n) + word, 0n) % prime;
  const at = (dimension, place) => {
    const values = known[dimension];
    if (!values.has(place)) values.set(place, random());
    return values.get(place);
  };
  const value = (offset, size) =>
    size.reduce((product, length, i) => (product * (at(i, BigInt(offset[i])) - at(i, BigInt(offset[i]) + BigInt(length)))) % prime, 1n);
  const sum = parts.reduce((total, { offset, entry }) => total + value(offset, entry.shape), 0n);
  return (sum - value(shape.map(() => 0), shape)) % prime === 0n;
}

function checkedShape(shape, name) {
  need(Array.isArray(shape) && shape.length <= 64, `${name}: the shape is not valid`);
  let product = 1n;
  for (const size of shape) {
    need((isCount(size) || typeof size === "bigint") && size >= 0 && size < 2n ** 63n, `${name}: the shape is not valid`);
    product *= size ? BigInt(size) : 1n;
  }
  need(product < 2n ** 63n, `${name}: the shape is not valid`);
  return shape;
}

function checkStride({ name, shape, stride, item }) {
  if (stride === null) return;
  need(Array.isArray(stride) && stride.length === shape.length, `${name}: the stride is not valid`);
  for (const step of stride) {
    need((isCount(step) || typeof step === "bigint") && step >= 0 && BigInt(step) * BigInt(item) < 2n ** 63n, `${name}: the stride is not valid`);
  }
  const dims = shape.map((size, i) => [BigInt(stride[i]), BigInt(size)]).filter(([, size]) => size > 1n);
  let expected = 1n;
  for (const [step, size] of dims.sort((a, b) => (a[0] < b[0] ? -1 : 1))) {
    need(step === expected, `${name}: the stride is not that of a dense tensor`);
    expected *= size;
  }
}

function checkStorage({ name, storage, item, nbytes }) {
  if (storage === null) return;
  need(Array.isArray(storage) && storage.length === 3 && storage.every(isCount), `${name}: storage is not valid`);
  const [, offset, size] = storage;
  need(nbytes > 0 && offset % item === 0 && offset + nbytes <= size, `${name}: storage is not valid`);
}

function checkCodec({ name, encoding, compression, filter, chunkBytes, item }) {
  const known = ENCODINGS.has(encoding) && COMPRESSIONS.has(compression) && FILTERS.has(filter);
  need(known, `${name}: the codec ${encoding}, ${compression}, ${filter} is unknown`);
  need(encoding !== "list" || (compression === "none" && filter === "none"), `${name}: a list is neither compressed nor filtered`);
  need(isCount(chunkBytes) && chunkBytes > 0 && chunkBytes % item === 0, `${name}: chunk_bytes is not valid`);
}

function checkRequires(facts, place) {
  const required = facts.get("requires") ?? [];
  need(Array.isArray(required) && required.every(isText), `${place}: requires is not valid`);
  const unknown = required.find((name) => name !== "regions");
  need(unknown === undefined, `${place}: needs ${unknown}, which this reader does not know`);
}

/** The most bytes that a payload may have. */
function largestPayload(entry, number) {
  const raw = entry.chunkSize(number);
  if (entry.encoding === "list") {
    const dtype = DTYPES.get(entry.dtype);
    return 64 + (2 * dtype.width * raw) / dtype.part;
  }
  const encoded = entry.compression === "zstd" ? raw + Math.floor(raw / 128) + 1024 : raw;
  return 4 * Math.ceil(encoded / 3);
}

function setChunks(entry, chunks, checksums, algorithm, size, edited = false) {
  const { name } = entry;
  need(Array.isArray(chunks) && chunks.length === entry.chunkCount, `${name}: the number of chunks is not that of the shape`);
  need(Array.isArray(checksums) && checksums.length === chunks.length, `${name}: the number of checksums is not that of the chunks`);
  const digits = new RegExp(`^[0-9a-f]{${algorithm.digits}}$`);
  let at = 0;
  chunks.forEach((range, number) => {
    need(Array.isArray(range) && range.length === 2 && range.every(isCount), `${name}: the range of a chunk is not valid`);
    need(range[0] >= at && range[0] + range[1] <= size, `${name}: the range of a chunk is outside of its file`);
    need(entry.chunkSize(number) <= LARGEST_CHUNK, `${name}: a chunk has more than 64 MiB`);
    const most = largestPayload(entry, number) * (edited ? (entry.encoding === "list" ? 16 : 6) : 1);
    need(range[1] <= most, `${name}: a payload is too long`);
    need(isText(checksums[number]) && digits.test(checksums[number]), `${name}: a checksum is not valid`);
    at = range[0] + range[1];
  });
  entry.chunks = chunks;
  entry.checksums = checksums;
}

// --- the head members that all files have ---

function algorithmOf(name, place) {
  const found = ALGORITHMS.get(name);
  need(found, `${place}: the checksum ${name} is unknown`);
  return found;
}

function checkHead(document, format, place) {
  need(document instanceof Map, `${place}: the text is no object`);
  const found = document.get("format");
  need(found === format, `${place}: no checkpoint of jsonckpt (format ${stringify(found ?? null).slice(0, 60)})`);
  const version = document.get("version");
  const since = document.get("readable_by");
  const way = isText(since) ? `; ${since.slice(0, 80)} reads it` : "";
  need(version === 1, `${place}: version ${stringify(version ?? null).slice(0, 30)} of the format is unknown${way}`);
  checkRequires(document, place);
  need(isText(document.get("save_id")) && /^[0-9a-f]{32}$/.test(document.get("save_id")), `${place}: save_id is not valid`);
}

function checkSeal(seal, covered, place, only = null) {
  need(isText(seal), `${place}: the seal is missing`);
  const [name, digits] = [seal.slice(0, seal.indexOf(":")), seal.slice(seal.indexOf(":") + 1)];
  need(only === null || name === only, `${place}: the seal has another algorithm than the chunks`);
  const matches = algorithmOf(name, place).sum(covered) === digits;
  need(matches, `${place}: the seal does not match. The file was changed after it was written`);
}

// --- files of records (sections 3 and 3.3) ---

const TRAILER = /"index_offset":( {0,19}\d{1,19})\}\n$/;
const HEAD_END = 'tensors":[\n';

/** The text of a file, compressed or not. */
async function textOf(blobSource, progress) {
  const start = await blobSource.read(0, Math.min(4, blobSource.size));
  const isZstd = start.length === 4 && start[0] === 0x28 && start[1] === 0xb5 && start[2] === 0x2f && start[3] === 0xfd;
  return isZstd ? ZstdSource.open(blobSource, progress) : blobSource;
}

async function lookAt(text) {
  const start = ascii(await text.read(0, Math.min(200, text.size)), 0, Math.min(200, text.size));
  need(!start.startsWith("version https://git-lfs"), `${text.name}: a pointer of Git LFS, not the file. Run git lfs pull`);
  need(!start.startsWith("PK"), `${text.name}: a zip archive, such as torch.save makes. jsonckpt convert makes a checkpoint of it`);
  need(/^[\s]*\{/.test(start), `${text.name}: no JSON object, so no checkpoint of jsonckpt`);
  const tail = Math.min(64, text.size);
  return ascii(await text.read(text.size - tail, tail), 0, tail);
}

/** A file of records: its members, its entries in order, and what was checked. */
async function readRecords(text, progress) {
  const end = await lookAt(text);
  const match = TRAILER.exec(end);
  if (match) {
    const found = await readLayout(text, Number(match[1]), progress);
    if (found) return found;
  }
  need(!/\}\r\n$/.test(end), `${text.name}: its line feeds became CRLF, as git does with core.autocrlf. Turn them back first`);
  return readAnyLayout(text);
}

/** A file in the layout of a writer. Null where its seal is null: then nothing may rely on the layout. */
async function readLayout(text, indexOffset, progress) {
  const { name, size } = text;
  need(indexOffset < size, `${name}: index_offset is outside of the file`);
  need(size - indexOffset <= LARGEST_SKELETON, `${name}: the index is too large`);
  const tail = await text.read(indexOffset, size - indexOffset);
  if (/"seal":null,/.test(ascii(tail, Math.max(0, tail.length - 120), tail.length))) return null;
  const trailer = parse(joined([new TextEncoder().encode('{"index":'), tail]));
  const index = trailer.get("index");
  const { gaps, shapes } = gapsOf(index, text, indexOffset);
  const parts = await readRanges(text, gaps, progress);
  checkLayout(parts, shapes, name);
  const skeleton = joined(parts);
  const document = parse(skeleton);
  checkHead(document, "jsonckpt.shard", name);
  const comma = lastIndexOf(skeleton, ',"seal":"');
  need(comma >= 0, `${name}: the seal is missing`);
  checkSeal(document.get("seal"), skeleton.subarray(0, comma), name, document.get("checksum"));
  need([...document.keys()].slice(-3).join() === "index,seal,index_offset", `${name}: the last line is not the trailer`);
  need(document.get("tensors").length === index.length, `${name}: the index does not agree with the records`);
  const ranges = index.map(([, , chunks]) => chunks);
  return { document, entries: entriesOf(document, ranges, text), edited: false };
}

function lastIndexOf(bytes, text) {
  const first = text.charCodeAt(0);
  for (let at = bytes.lastIndexOf(first); at >= 0; at = at ? bytes.lastIndexOf(first, at - 1) : -1) {
    if (ascii(bytes, at, at + text.length) === text) return at;
  }
  return -1;
}

/** The ranges of a file that are no payloads, and how many there are in each record. */
function gapsOf(index, text, indexOffset) {
  const { name } = text;
  need(Array.isArray(index) && index.length <= MOST_RECORDS, `${name}: the index is not valid`);
  const gaps = [];
  const shapes = [];
  let [at, sum, chunks] = [0, 0, 0];
  const gap = (start, end) => {
    need(start <= end && end <= text.size, `${name}: the index is not in order`);
    gaps.push([start, end]);
    sum += end - start;
  };
  for (const row of index) {
    need(Array.isArray(row) && row.length === 3 && isCount(row[0]) && isCount(row[1]) && Array.isArray(row[2]), `${name}: the index is not valid`);
    const [offset, length, payloads] = row;
    gap(at, offset);
    at = offset;
    for (const range of payloads) {
      need(Array.isArray(range) && range.length === 2 && range.every(isCount), `${name}: the index is not valid`);
      gap(at, range[0]);
      at = range[0] + range[1];
    }
    gap(at, offset + length);
    at = offset + length;
    shapes.push(payloads.length);
    chunks += payloads.length;
  }
  need(at <= indexOffset, `${name}: the index is not in order`);
  gap(at, text.size);
  const mostChunks = Math.min(MOST_CHUNKS, Math.max(50_000, text.diskSize / 32));
  need(chunks <= mostChunks && sum <= LARGEST_SKELETON, `${name}: the text without its payloads is larger than a reader takes`);
  return { gaps, shapes };
}

/** Whether the pieces between payloads are what the layout says. */
function checkLayout(parts, shapes, name) {
  const wrong = `${name}: the layout is not that of a checkpoint, or the index does not agree with it`;
  const text = (part) => ascii(part, 0, part.length);
  const ends = (part, ending) => text(part.subarray(Math.max(0, part.length - ending.length))) === ending;
  let at = 0;
  let before = HEAD_END;
  for (const count of shapes) {
    need(before === HEAD_END ? ends(parts[at], `"${HEAD_END}`) : text(parts[at]) === before, wrong);
    at += 1;
    let open = '"';
    if (count) {
      const head = parts[at];
      open = String.fromCharCode(head.at(-1));
      need((open === '"' || open === "[") && ends(head, `"chunks":[\n${open}`), wrong);
      need(head[0] === 123 && head.indexOf(10) === head.length - 2, wrong);
    }
    const close = open === "[" ? "]" : open;
    for (let i = 1; i < count; i++) need(text(parts[at + i]) === `${close},\n${open}`, wrong);
    const tail = text(parts[at + count]);
    need(count ? tail.startsWith(`${close}\n],`) && tail.indexOf("\n", 2) < 0 : /^\{[^\n]*"chunks":\[\n\],[^\n]*$/.test(tail), wrong);
    need(tail.endsWith("}"), wrong);
    at += count + 1;
    before = ",\n";
  }
  const last = text(parts[at]);
  need(shapes.length ? /^\n\],"index":[^\n]*\n$/.test(last) : last.includes(`"${HEAD_END}],"index":`), wrong);
}

/** A file that was edited: any layout, and a seal of null. */
async function readAnyLayout(text) {
  const { name, size } = text;
  need(size <= LARGEST_EDITED, `${name}: no trailer ends the file, so it is cut off, or was edited. Edited files of more than 1 GiB are not read here`);
  const bytes = await text.read(0, size);
  const document = parse(bytes, { spans: true });
  checkHead(document, "jsonckpt.shard", name);
  need(document.get("seal") === null, `${name}: the layout is not that of a checkpoint. Whoever edits a file sets its seal to null`);
  const records = document.get("tensors");
  need(Array.isArray(records) && records.length <= MOST_RECORDS, `${name}: tensors is not valid`);
  const ranges = records.map((record) => {
    const chunks = record instanceof Map ? record.get("chunks") : null;
    need(Array.isArray(chunks), `${name}: a record has no chunks`);
    return chunks.map((span) => {
      need(span instanceof Span, `${name}: a chunk is not valid`);
      return [span.start + 1, span.end - span.start - 2];
    });
  });
  return { document, entries: entriesOf(document, ranges, text, true), edited: true };
}

function entriesOf(document, ranges, text, edited = false) {
  const place = text.name;
  const algorithm = algorithmOf(document.get("checksum"), place);
  return document.get("tensors").map((record, number) => {
    need(record instanceof Map, `${place}: a record is no object`);
    const entry = new Entry(record, record, place);
    setChunks(entry, ranges[number], record.get(document.get("checksum")), algorithm, text.size, edited);
    const others = [...ALGORITHMS.keys()].filter((name) => record.has(name));
    need(others.length === 1, `${entry.name}: checksums of two algorithms`);
    entry.digest = record.get("digest");
    entry.edited = edited;
    need(isText(entry.digest), `${entry.name}: the digest is missing`);
    entry.text = async () => text;
    return entry;
  });
}

// --- chunks (section 4) ---

const SIXBIT = new Uint8Array(256).fill(255);
[..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].forEach((c, i) => {
  SIXBIT[c.charCodeAt(0)] = i;
});

/** Base64 in its one spelling. */
export function decodeBase64(text) {
  const length = text.length;
  need(length % 4 === 0, "base64 has a wrong length");
  const padding = length && text[length - 1] === 61 ? (text[length - 2] === 61 ? 2 : 1) : 0;
  const out = new Uint8Array((length / 4) * 3 - padding);
  const whole = padding ? length - 4 : length;
  let to = 0;
  let seen = 0;
  for (let at = 0; at < whole; at += 4) {
    const a = SIXBIT[text[at]];
    const b = SIXBIT[text[at + 1]];
    const c = SIXBIT[text[at + 2]];
    const d = SIXBIT[text[at + 3]];
    seen |= a | b | c | d;
    out[to] = (a << 2) | (b >> 4);
    out[to + 1] = (b << 4) | (c >> 2);
    out[to + 2] = (c << 6) | d;
    to += 3;
  }
  if (padding) {
    const [a, b] = [SIXBIT[text[whole]], SIXBIT[text[whole + 1]]];
    const c = padding === 2 ? 0 : SIXBIT[text[whole + 2]];
    seen |= a | b | c;
    need((padding === 2 ? b & 15 : c & 3) === 0, "base64 has bits left over");
    out[to] = (a << 2) | (b >> 4);
    if (padding === 1) out[to + 1] = (b << 4) | (c >> 2);
  }
  need(seen < 64, "base64 has a character that it may not have");
  return out;
}

function unshuffle(bytes, item) {
  if (item === 1) return bytes;
  const out = new Uint8Array(bytes.length);
  const count = bytes.length / item;
  for (let j = 0; j < item; j++) {
    const plane = j * count;
    for (let i = 0, to = j; i < count; i++, to += item) out[to] = bytes[plane + i];
  }
  return out;
}

function decodePayload(payload, entry, number) {
  const size = entry.chunkSize(number);
  if (entry.encoding === "list") return listBytes(payload, DTYPES.get(entry.dtype), size);
  const text = entry.edited && payload.includes(92) ? unescaped(payload) : payload;
  let bytes = decodeBase64(text);
  if (entry.compression === "zstd") bytes = decompress(bytes, size);
  need(bytes.length === size, `a chunk has ${bytes.length} bytes, not ${size}`);
  if (entry.filter === "shuffle") bytes = unshuffle(bytes, entry.item);
  return bytes;
}

function unescaped(payload) {
  const quote = Uint8Array.of(34);
  return Uint8Array.from(parse(joined([quote, payload, quote])), (character) => character.charCodeAt(0));
}

/** The raw bytes of a chunk, checked. */
async function readChunk(entry, number, algorithm) {
  const [offset, length] = entry.chunks[number];
  const text = await entry.text();
  try {
    const bytes = decodePayload(await text.read(offset, length), entry, number);
    need(algorithm.sum(bytes) === entry.checksums[number], "its checksum does not match");
    need(entry.dtype !== "bool" || bytes.every((byte) => byte < 2), "a bool is neither 0 nor 1");
    return bytes;
  } catch (error) {
    if (!(error instanceof FormatError || error instanceof ZstdError)) throw error;
    throw new FormatError(`${entry.name}, chunk ${number}: ${error.message}`);
  }
}

/** The text that a record's digest covers, as bytes. */
function identity(entry) {
  const lines = [entry.name, entry.dtype, entry.shape.join(","), entry.device, entry.encoding, entry.compression, entry.filter, entry.chunkBytes, ...entry.checksums];
  return new TextEncoder().encode(lines.map((line) => `${line}\n`).join(""));
}

// --- a checkpoint ---

/** An open checkpoint. See `open`. */
export class Checkpoint {
  constructor({ name, kind, document, entries, edited, warnings = [] }) {
    this.name = name;
    /** `"directory"`, `"file"` or `"shard"`. */
    this.kind = kind;
    /** Whether its seal is null: nothing covers the state, then. */
    this.edited = edited;
    this.warnings = warnings;
    this.checksum = document.get("checksum");
    this.algorithm = algorithmOf(this.checksum, name);
    this.seal = document.get("seal");
    this.saveId = document.get("save_id");
    this.createdAt = document.get("created_at") ?? null;
    this.createdBy = document.get("created_by") ?? null;
    this.metadata = document.get("metadata") ?? new Map();
    this.hasState = document.has("state");
    this.state = document.get("state") ?? null;
    this.totals = document.get("totals") ?? null;
    this.shards = document.get("shards") ?? null;
    /** The tensors: records, and what regions make together. */
    this.entries = new Map();
    for (const entry of entries) {
      need(!this.entries.has(entry.name), `${name}: the name ${entry.name} stands twice`);
      this.entries.set(entry.name, entry);
    }
    checkStorages(entries);
    this.checkTotals(entries);
    if (this.hasState && entries.some((entry) => entry.name.startsWith(REGION))) {
      need(document.get("requires")?.includes("regions"), `${name}: requires must name regions`);
      this.entries = withWholes(this.state, this.entries, name);
    }
    /** Tied tensors and views: name to what the state says of them. */
    this.references = new Map();
    if (this.hasState) walkReferences(this.state, this);
    this.checkedHeads = new Set();
  }

  get names() {
    return [...this.entries.keys()];
  }

  get nbytes() {
    return [...this.entries.values()].reduce((sum, entry) => sum + entry.nbytes, 0);
  }

  checkTotals(entries) {
    if (!(this.totals instanceof Map)) return;
    need(this.totals.get("tensors") === entries.length, `${this.name}: totals does not agree with the tensors`);
    need(this.totals.get("bytes") === this.nbytes, `${this.name}: totals does not agree with the bytes`);
  }

  entry(name) {
    const found = this.entries.get(name);
    need(found, `${this.name}: no tensor ${name}`);
    return found;
  }

  /** The raw bytes of chunk `number`, checked against its checksum. */
  async chunk(name, number) {
    const entry = this.entry(name);
    need(Number.isInteger(number) && number >= 0 && number < entry.chunkCount, `${name}: no chunk ${number}`);
    const start = number * entry.chunkBytes;
    if (entry instanceof Whole) return this.bytes(name, start, start + entry.chunkSize(number));
    await this.checkRecord(entry);
    return readChunk(entry, number, this.algorithm);
  }

  /** The raw bytes of a record from `start` to `end`, in row-major order, little-endian. */
  async bytes(name, start = 0, end = this.entry(name).nbytes) {
    const entry = this.entry(name);
    need(start >= 0 && start <= end && end <= entry.nbytes, `${name}: no bytes ${start} to ${end}`);
    const out = new Uint8Array(end - start);
    if (entry instanceof Whole) {
      for (const part of entry.parts) await this.gather(entry, part, start, end, out);
      return out;
    }
    await this.checkRecord(entry);
    for (let number = Math.floor(start / entry.chunkBytes); number * entry.chunkBytes < end && number < entry.chunkCount; number++) {
      const from = number * entry.chunkBytes;
      const chunk = await readChunk(entry, number, this.algorithm);
      out.set(chunk.subarray(Math.max(0, start - from), Math.min(chunk.length, end - from)), Math.max(0, from - start));
    }
    return out;
  }

  /** Copy what a part has of the bytes of a whole tensor from `start` to `end`, run by run. */
  async gather(whole, { entry, offset }, start, end, out) {
    if (!entry.nbytes) return;
    await this.checkRecord(entry);
    const [steps, sizes] = [rowMajor(whole.shape), entry.shape.map(Number)];
    let inner = Math.max(0, sizes.length - 1); // a run has a range of this dimension, and all of those after it
    while (inner > 0 && sizes[inner] === Number(whole.shape[inner])) inner -= 1;
    const run = sizes.slice(inner).reduce((product, size) => product * size, 1) * entry.item;
    const base = offset.reduce((sum, first, i) => sum + first * steps[i], 0);
    const place = new Array(inner).fill(0);
    let [held, number] = [null, -1];
    for (let from = 0; from < entry.nbytes; from += run) {
      const to = (base + place.reduce((sum, index, i) => sum + index * steps[i], 0)) * entry.item;
      for (let at = Math.max(to, start); at < Math.min(to + run, end); ) {
        const inside = from + at - to;
        if (Math.floor(inside / entry.chunkBytes) !== number) {
          number = Math.floor(inside / entry.chunkBytes);
          held = await readChunk(entry, number, this.algorithm);
        }
        const first = inside - number * entry.chunkBytes;
        const piece = held.subarray(first, Math.min(held.length, first + Math.min(to + run, end) - at));
        out.set(piece, at - start);
        at += piece.length;
      }
      for (let dimension = inner - 1; dimension >= 0; dimension--) {
        place[dimension] += 1;
        if (place[dimension] < sizes[dimension]) break;
        place[dimension] = 0;
      }
    }
  }

  /** What a name stands for: `{of, dtype, shape, stride, offset}`; of a record the strides are row-major. */
  layout(name) {
    const reference = this.references.get(name);
    if (reference?.tag === "$view") return { ...reference, view: true };
    const { name: of, dtype, shape } = this.entry(reference?.of ?? name);
    return { of, dtype, shape, stride: rowMajor(shape), offset: 0, view: false };
  }

  /**
   * A tensor by its name: of a record, a tied tensor or a view.
   * @returns {Promise<{dtype: string, shape: number[], data: *}>} `data` is a typed array in row-major order. A complex
   * number is two elements, `float4_e2m1fn_x2` too; 64-bit integers are BigInts.
   */
  async tensor(name) {
    const { of, dtype, shape, stride, offset, view } = this.layout(name);
    const { item, values } = DTYPES.get(dtype);
    if (!view) return { dtype, shape, data: values(await this.bytes(of)) };
    const numel = Number(shape.reduce((product, size) => product * BigInt(size), 1n));
    need(numel * item <= 1024 * MIB, `${name}: the view has more than 1 GiB`);
    const out = new Uint8Array(numel * item);
    if (!numel) return { dtype, shape, data: values(out) };
    const last = offset + shape.reduce((sum, size, i) => sum + (size - 1) * stride[i], 0);
    const memory = await this.bytes(of, offset * item, (last + 1) * item);
    strideCopy(memory, out, shape, stride, item);
    need(dtype !== "bool" || out.every((byte) => byte < 2), `${name}: a bool is neither 0 nor 1`);
    return { dtype, shape, data: values(out) };
  }

  /** Check all chunks and the digest of a record. `progress` gets numbers up to 1. */
  async verify(name, progress = () => {}) {
    const entry = this.entry(name);
    const records = entry instanceof Whole ? entry.parts.map((part) => part.entry) : [entry];
    const count = records.reduce((sum, { chunkCount }) => sum + chunkCount, 0);
    let done = 0;
    for (const record of records) {
      await this.checkRecord(record);
      for (let number = 0; number < record.chunkCount; number++) {
        await readChunk(record, number, this.algorithm);
        progress(++done / count);
      }
    }
  }

  /** Check once that the record in its file is what the manifest says, and its digest. */
  async checkRecord(entry) {
    if (this.checkedHeads.has(entry)) return;
    if (entry.record) await checkAgainstRecord(entry, this.checksum);
    need(this.algorithm.sum(identity(entry)) === entry.digest, `${entry.name}: the digest does not match`);
    this.checkedHeads.add(entry);
  }

  /** The value of the state at a path of keys and positions, as `/optimizer/param_groups/0/lr`; tags are passed. */
  get(pointer) {
    let node = this.state;
    for (const part of pointer.split("/").slice(1)) {
      const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
      const found = children(node)?.find((child) => child.key === key);
      need(found, `${this.name}: the state has no ${pointer}`);
      node = found.value;
    }
    return node;
  }
}

function rowMajor(shape) {
  const stride = new Array(shape.length);
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    stride[i] = step;
    step *= Math.max(1, Number(shape[i]));
  }
  return stride;
}

function strideCopy(memory, out, shape, stride, item) {
  const place = new Array(shape.length).fill(0);
  let from = 0;
  for (let to = 0; to < out.length; to += item) {
    for (let k = 0; k < item; k++) out[to + k] = memory[from * item + k];
    for (let dim = shape.length - 1; dim >= 0; dim--) {
      place[dim] += 1;
      from += stride[dim];
      if (place[dim] < shape[dim]) break;
      from -= stride[dim] * shape[dim];
      place[dim] = 0;
    }
  }
}

function checkStorages(entries) {
  const placed = entries.filter((entry) => entry.storage);
  placed.sort((a, b) => a.storage[0] - b.storage[0] || a.storage[1] - b.storage[1]);
  placed.forEach((entry, i) => {
    const before = placed[i - 1];
    if (before?.storage[0] !== entry.storage[0]) return;
    need(before.storage[2] === entry.storage[2], `${entry.name}: its storage has two sizes`);
    need(before.storage[1] + before.nbytes <= entry.storage[1], `${entry.name}: it lies on ${before.name}`);
  });
}

/** The one tag of a node, or null. */
export function tagOf(node) {
  if (!(node instanceof Map) || node.size !== 1) return null;
  const [name] = node.keys();
  return name.startsWith("$") ? name : null;
}

/** The tensors of a state by name: those in regions in the place of their first record. */
function withWholes(state, records, place) {
  const wholes = new Map();
  const todo = [state];
  while (todo.length) {
    const node = todo.pop();
    if (Array.isArray(node)) for (const element of node) todo.push(element);
    if (!(node instanceof Map)) continue;
    const body = tagOf(node) === "$regions" ? node.get("$regions") : null;
    if (body === null) {
      for (const member of node.values()) todo.push(member);
      continue;
    }
    const known = body instanceof Map ? wholes.get(body.get("name")) : null;
    need(!known || known.said === stringify(body), `${place}: two tensors have one name`);
    if (known) continue;
    const whole = new Whole(body, records, place);
    wholes.set(whole.name, whole);
  }
  const owner = new Map();
  for (const whole of wholes.values()) for (const { entry } of whole.parts) owner.set(entry.name, whole);
  return new Map([...records].map(([name, entry]) => [owner.get(name)?.name ?? name, owner.get(name) ?? entry]));
}

/** Find `$tensor`, `$regions`, `$tied` and `$view` in a state, and check that they have records. */
function walkReferences(state, checkpoint) {
  const { entries, references, name: place } = checkpoint;
  const todo = [state];
  while (todo.length) {
    const node = todo.pop();
    if (Array.isArray(node)) for (const element of node) todo.push(element);
    if (!(node instanceof Map)) continue;
    const tag = tagOf(node);
    const body = tag && node.get(tag);
    if (tag === "$tensor" || tag === "$regions") {
      const name = tag === "$tensor" ? body : body instanceof Map ? body.get("name") : null;
      need(entries.has(name), `${place}: the state has a tensor ${stringify(name ?? null).slice(0, 200)}, which has no record`);
    } else if (tag === "$tied" || tag === "$view") {
      addReference(tag, body, entries, references, place);
    } else {
      for (const member of node.values()) todo.push(member);
    }
  }
}

function addReference(tag, body, entries, references, place) {
  const isValid = body instanceof Map && isText(body.get("name")) && entries.has(body.get("of"));
  need(isValid, `${place}: a ${tag} of the state refers to no record`);
  const found = { tag, ...Object.fromEntries(["name", "of", "dtype", "shape", "stride", "offset"].map((key) => [key, body.get(key)])) };
  if (tag === "$view") checkView(found, entries.get(found.of));
  const known = references.get(found.name);
  need(!entries.has(found.name) && (!known || stringify(Object.values(known)) === stringify(Object.values(found))), `${found.name}: two tensors have this name`);
  references.set(found.name, found);
}

function checkView({ name, dtype, shape, stride, offset }, entry) {
  need(DTYPES.has(dtype), `${name}: the dtype ${dtype} is unknown`);
  checkedShape(shape, name);
  const isValid = Array.isArray(stride) && stride.length === shape.length && stride.every(isCount) && isCount(offset);
  need(isValid, `${name}: the view is not valid`);
  const { item } = DTYPES.get(dtype);
  const empty = shape.some((size) => !size);
  const last = shape.reduce((sum, size, i) => sum + (BigInt(size) - 1n) * BigInt(stride[i]), BigInt(offset));
  need(empty || (last + 1n) * BigInt(item) <= BigInt(entry.nbytes), `${name}: the view leaves the memory of ${entry.name}`);
  const order = rowMajor(entry.shape);
  const dense = !entry.stride || entry.shape.every((size, i) => size < 2 || entry.stride[i] === order[i]);
  need(dense, `${name}: the record of a view must be row-major`);
}

/** The record in its shard, against what the manifest says. */
async function checkAgainstRecord(entry, checksum) {
  const text = await entry.text();
  const [offset, length] = entry.record;
  const first = entry.chunks[0]?.[0] ?? offset + length;
  const behind = entry.chunks.length ? entry.chunks.at(-1)[0] + entry.chunks.at(-1)[1] : offset + length;
  need(first - offset < 2 * MIB && offset + length - behind < 64 * MIB, `${entry.name}: the record is too large`);
  const head = await text.read(offset, first - offset);
  const tail = await text.read(behind, offset + length - behind);
  const record = parse(joined([head, tail]));
  need(record instanceof Map, `${entry.name}: no record is where the manifest says`);
  const said = new Entry(record, record, text.name);
  const wrong = `${entry.name}: the record differs from what the manifest says`;
  for (const key of ["name", "dtype", "device", "encoding", "compression", "filter", "chunkBytes"]) need(said[key] === entry[key], wrong);
  for (const key of ["shape", "stride", "storage"]) need(stringify(said[key]) === stringify(entry[key]), wrong);
  need(stringify(record.get(checksum) ?? null) === stringify(entry.checksums), wrong);
  entry.digest = record.get("digest");
}

// --- manifests (section 5) ---

const SHARD_NAME = /^shard-[0-9a-z-]{1,100}\.json(\.zst)?$/;

function readManifest(bytes, name) {
  const document = parse(bytes);
  checkHead(document, "jsonckpt.manifest", name);
  need(document.has("seal"), `${name}: the seal is missing`);
  const edited = document.get("seal") === null;
  if (!edited) {
    const comma = lastIndexOf(bytes, ',\n"seal":');
    const isLast = comma >= 0 && [...document.keys()].at(-1) === "seal" && /^,\n"seal":"[^"\n]*"\}\s*$/.test(ascii(bytes, comma, bytes.length));
    need(isLast, `${name}: the seal is not the last member on a line of its own`);
    checkSeal(document.get("seal"), bytes.subarray(0, comma), name);
  }
  return { document, edited };
}

function manifestEntries(document, place, shardText) {
  const [shards, codecs, rows] = ["shards", "codecs", "tensors"].map((key) => document.get(key));
  need([shards, codecs, rows].every(Array.isArray), `${place}: the manifest is not whole`);
  need(shards.length <= MOST_SHARDS && rows.length <= MOST_RECORDS, `${place}: the manifest has more than a reader takes`);
  for (const shard of shards) {
    const isValid = shard instanceof Map && SHARD_NAME.test(shard.get("file")) && isCount(shard.get("bytes")) && isCount(shard.get("text_bytes"));
    need(isValid, `${place}: a shard is not valid`);
  }
  const algorithm = algorithmOf(document.get("checksum"), place);
  const ends = new Array(shards.length).fill(0);
  let count = 0;
  return rows.map((row) => {
    need(row instanceof Map && shards[row.get("shard")] && codecs[row.get("codec")] instanceof Map, `${place}: an entry of tensors is not valid`);
    const number = row.get("shard");
    const entry = new Entry(row, codecs[row.get("codec")], place);
    entry.record = [row.get("offset"), row.get("length")];
    const size = shards[number].get("text_bytes");
    need(entry.record.every(isCount) && entry.record[0] >= ends[number] && entry.record[0] + entry.record[1] <= size, `${entry.name}: the record's range is not valid`);
    const chunks = row.get("chunks");
    need(Array.isArray(chunks) && chunks.every((chunk) => Array.isArray(chunk) && chunk.length === 3), `${entry.name}: chunks is not valid`);
    setChunks(entry, chunks.map((chunk) => chunk.slice(0, 2)), chunks.map((chunk) => chunk[2]), algorithm, size);
    const [begin, end] = [entry.chunks[0]?.[0] ?? size, entry.chunks.at(-1)];
    need(begin >= entry.record[0] && (!end || end[0] + end[1] <= entry.record[0] + entry.record[1]), `${entry.name}: a chunk is outside of its record`);
    ends[number] = entry.record[0] + entry.record[1];
    count += entry.chunkCount;
    need(count <= MOST_CHUNKS, `${place}: the manifest has more chunks than a reader takes`);
    entry.shard = shards[number].get("file");
    entry.text = () => shardText(shards[number]);
    return entry;
  });
}

// --- the state tree for people and programs (section 6) ---

const PAIRS = new Set(["$dict"]);
const ITEMS = new Set(["$counter", "$namespace", "$simple_namespace"]);
const WITH_ITEMS = new Set(["$ordered_dict", "$defaultdict", "$deque"]);
const LISTS = new Set(["$tuple", "$set", "$frozenset", "$size", "$range", "$slice"]);

/** The children of a node as `{key, value}`, its tag passed; null where it is a leaf. */
export function children(node) {
  if (Array.isArray(node)) return node.map((value, i) => ({ key: String(i), value }));
  if (!(node instanceof Map)) return null;
  const tag = tagOf(node);
  if (!tag) return Array.from(node, ([key, value]) => ({ key, value }));
  const body = node.get(tag);
  if (LISTS.has(tag)) return children(Array.isArray(body) ? body : []);
  if (PAIRS.has(tag) || ITEMS.has(tag)) return itemsOf(body);
  if (WITH_ITEMS.has(tag) && body instanceof Map) return itemsOf(body.get("items"));
  if (tag === "$parameter" && body instanceof Map) return children(body.get("data"));
  if (tag === "$requires_grad") return children(body);
  if ((tag === "$sparse" || tag === "$quantized") && body instanceof Map) return Array.from(body, ([key, value]) => ({ key, value }));
  return null;
}

function itemsOf(items) {
  if (items instanceof Map) return Array.from(items, ([key, value]) => ({ key, value }));
  if (!Array.isArray(items)) return [];
  return items.map((pair) => (Array.isArray(pair) ? { key: keyText(pair[0]), value: pair[1] } : { key: String(pair), value: pair }));
}

const keyText = (key) => (isText(key) ? key : key === null ? "None" : key === true ? "True" : key === false ? "False" : stringify(key));

// --- opening ---

async function openFile(blobSource, progress) {
  const text = await textOf(blobSource, progress);
  const found = await readRecords(text, progress);
  const kind = found.document.has("state") ? "file" : "shard";
  const checkpoint = new Checkpoint({ name: blobSource.name, kind, ...found });
  checkpoint.textBytes = text.size;
  checkpoint.diskBytes = blobSource.size;
  return checkpoint;
}

/** A directory: `source(name)` gives the file of that name beside the manifest, or null. */
async function openDirectory(name, source, progress) {
  const manifest = await source("manifest.json");
  need(manifest, `${name}: no manifest.json, so no checkpoint`);
  need(manifest.size <= LARGEST_SKELETON, `${name}: the manifest has more than 64 MiB`);
  const { document, edited } = readManifest(await manifest.read(0, manifest.size), manifest.name);
  const texts = new Map();
  const shardText = (shard) => {
    const file = shard.get("file");
    if (!texts.has(file)) {
      const opened = openShard(shard, source, name);
      texts.set(file, opened);
      opened.catch(() => texts.delete(file)); // it may be given later
    }
    return texts.get(file);
  };
  const entries = manifestEntries(document, manifest.name, shardText);
  const checkpoint = new Checkpoint({ name, kind: "directory", document, entries, edited });
  checkpoint.missing = [];
  for (const shard of checkpoint.shards) if (!(await source(shard.get("file")))) checkpoint.missing.push(shard.get("file"));
  checkpoint.textBytes = checkpoint.shards.reduce((sum, shard) => sum + shard.get("text_bytes"), manifest.size);
  checkpoint.diskBytes = checkpoint.shards.reduce((sum, shard) => sum + shard.get("bytes"), manifest.size);
  progress(1);
  return checkpoint;
}

async function openShard(shard, source, name) {
  const file = shard.get("file");
  const found = await source(file);
  need(found, `${name}: the shard ${file} was not given. Open the directory as a whole`);
  need(found.size === shard.get("bytes"), `${file}: the file has ${found.size} bytes, the manifest says ${shard.get("bytes")}`);
  const text = await textOf(found, () => {});
  need(text.size === shard.get("text_bytes"), `${file}: the text has ${text.size} bytes, the manifest says ${shard.get("text_bytes")}`);
  return text;
}

/**
 * Open a checkpoint.
 *
 * @param {string|Blob|Map<string, Blob>} input in Node the path of a directory or file; else a `File`, or the files
 *   of a directory by name.
 * @param {{progress?: function(number)}} options
 * @returns {Promise<Checkpoint>}
 * @throws {FormatError} the input is no checkpoint, or a damaged one.
 */
export async function open(input, { progress = () => {}, name } = {}) {
  if (isText(input)) {
    const disk = await import("./node.js");
    return disk.isDirectory(input) ? openDirectory(input, disk.directory(input), progress) : openFile(disk.file(input), progress);
  }
  if (input instanceof Map) {
    const source = async (file) => (input.has(file) ? new BlobSource(input.get(file), file) : null);
    return openDirectory(name ?? "the directory", source, progress);
  }
  const source = new BlobSource(input, name ?? input.name);
  if (source.name === "manifest.json") return openDirectory("manifest.json", async (file) => (file === "manifest.json" ? source : null), progress);
  return openFile(source, progress);
}
