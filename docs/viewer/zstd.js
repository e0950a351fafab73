/**
 * Zstandard (RFC 8878) in JavaScript: decompression only, no dictionaries.
 *
 * `decompress(frame, size)` decodes one whole frame. `FrameReader` decodes block by block, so that a
 * large file needs its window in memory and no more. Every fault of the input is a `ZstdError`.
 */

export class ZstdError extends Error {}

const MAGIC = 0xfd2fb528;
const LARGEST_BLOCK = 128 * 1024;
/** The largest window that is decoded, in bytes. */
export const LARGEST_WINDOW = 64 * 1024 * 1024;

const refuse = (message) => {
  throw new ZstdError(message);
};
const highBit = (value) => 31 - Math.clz32(value);

// --- frames and blocks (RFC 8878, section 3.1.1) ---

/** The longest header of a frame, in bytes. */
export const LONGEST_HEADER = 18;

/**
 * The header of the frame that begins at `at`.
 * @returns {{end: number, contentSize: number|null, window: number, checksum: boolean}}
 */
export function frameHeader(bytes, at = 0) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (at + 5 > bytes.length) refuse("a zstd frame ends inside its header");
  if (view.getUint32(at, true) !== MAGIC) refuse("no zstd frame begins here");
  const flags = bytes[at + 4];
  if (flags & 0x18) refuse("an unused or reserved bit of a zstd frame is set");
  const single = (flags >> 5) & 1;
  const idBytes = [0, 1, 2, 4][flags & 3];
  const sizeBytes = [single, 2, 4, 8][flags >> 6];
  let place = at + 5;
  const end = place + (single ? 0 : 1) + idBytes + sizeBytes;
  if (end > bytes.length) refuse("a zstd frame ends inside its header");
  let window = 0;
  if (!single) {
    const base = 2 ** (10 + (bytes[place] >> 3));
    window = base + (base / 8) * (bytes[place] & 7);
    place += 1;
  }
  for (let i = 0; i < idBytes; i++) {
    if (bytes[place + i]) refuse("a zstd frame needs a dictionary");
  }
  place += idBytes;
  let contentSize = null;
  if (sizeBytes === 1) contentSize = bytes[place];
  if (sizeBytes === 2) contentSize = view.getUint16(place, true) + 256;
  if (sizeBytes === 4) contentSize = view.getUint32(place, true);
  if (sizeBytes === 8) contentSize = Number(view.getBigUint64(place, true));
  if (single) window = contentSize;
  if (window > LARGEST_WINDOW) refuse("a zstd frame has a window of more than 64 MiB");
  return { end, contentSize, window, checksum: Boolean(flags & 4) };
}

/** The header of a block: three bytes at `at`. */
export function blockHeader(bytes, at, window) {
  if (at + 3 > bytes.length) refuse("a zstd frame ends inside a block's header");
  const word = bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16);
  const type = (word >> 1) & 3;
  const size = word >> 3;
  if (type === 3) refuse("a zstd block has a type that is reserved");
  if (size > Math.min(window, LARGEST_BLOCK)) refuse("a zstd block is too large");
  return { last: Boolean(word & 1), type, size, stored: type === 1 ? 1 : size };
}

/** Decodes the blocks of one frame into memory that the caller gives. */
export class BlockDecoder {
  constructor(window) {
    this.largest = Math.min(window, LARGEST_BLOCK);
    this.window = window;
    this.total = 0; // bytes decoded so far
    this.offsets = [1, 4, 8];
    this.huffman = null;
    this.tables = { literals: null, offsets: null, matches: null };
    this.literals = new Uint8Array(this.largest);
  }

  /** Decode one block to `out` at `to`. Returns where it ends. `from` is what lies before it. */
  block(header, bytes, out, to) {
    let end;
    if (header.type === 2) {
      end = this.compressed(bytes, out, to);
    } else {
      end = to + header.size;
      if (end > out.length) refuse("a zstd frame holds more than it says");
      if (header.type === 1) out.fill(bytes[0], to, end);
      else out.set(bytes, to);
    }
    this.total += end - to;
    return end;
  }

  compressed(bytes, out, to) {
    if (bytes.length < 2) refuse("a compressed zstd block is too short");
    const { size, at } = this.readLiterals(bytes);
    const sequences = this.readSequenceHead(bytes, at);
    return this.execute(bytes, sequences, size, out, to);
  }

  /** The literals section: fills `this.literals`. */
  readLiterals(bytes) {
    const type = bytes[0] & 3;
    const format = (bytes[0] >> 2) & 3;
    const word = bytes[0] | (bytes[1] << 8) | ((bytes[2] ?? 0) << 16);
    if (type < 2) {
      const [head, size] = [[1, word >> 3 & 31], [2, (word >> 4) & 0xfff], [1, word >> 3 & 31], [3, word >> 4]][format];
      const end = head + (type ? 1 : size);
      if (size > this.largest || end > bytes.length) refuse("the literals of a zstd block are too long");
      if (type) this.literals.fill(bytes[head], 0, size);
      else this.literals.set(bytes.subarray(head, end));
      return { size, at: end };
    }
    const [head, bits] = [[3, 10], [3, 10], [4, 14], [5, 18]][format];
    if (head > bytes.length) refuse("the literals of a zstd block are cut off");
    const mask = 2 ** bits;
    const all = Math.floor((word + (bytes[3] ?? 0) * 2 ** 24 + (head > 4 ? bytes[4] * 2 ** 32 : 0)) / 16);
    const size = all % mask;
    const stored = Math.floor(all / mask) % mask;
    const end = head + stored;
    if (size > this.largest || end > bytes.length) refuse("the literals of a zstd block are too long");
    let at = head;
    if (type === 2) {
      const tree = readHuffman(bytes, at, end);
      this.huffman = tree.table;
      at = tree.at;
    }
    if (!this.huffman) refuse("a zstd block repeats a Huffman table that there is not");
    this.readStreams(bytes, at, end, size, format === 0 ? 1 : 4);
    return { size, at: end };
  }

  readStreams(bytes, at, end, size, count) {
    if (count === 1) {
      huffmanStream(this.huffman, bytes, at, end, this.literals, 0, size);
      return;
    }
    if (at + 6 > end || size < 6) refuse("the literals of a zstd block are cut off");
    const part = (size + 3) >> 2;
    let place = at + 6;
    for (let i = 0; i < 4; i++) {
      const next = i < 3 ? place + (bytes[at + 2 * i] | (bytes[at + 2 * i + 1] << 8)) : end;
      if (next > end) refuse("the literals of a zstd block are cut off");
      const stop = i < 3 ? part * (i + 1) : size;
      if (stop > size) refuse("the literals of a zstd block are too short for four streams");
      huffmanStream(this.huffman, bytes, place, next, this.literals, part * i, stop);
      place = next;
    }
  }

  /** The head of the sequences section: how many, and the three tables. */
  readSequenceHead(bytes, start) {
    let at = start;
    if (at >= bytes.length) refuse("a zstd block has no sequences section");
    let count = bytes[at++];
    if (count === 255) {
      count = (bytes[at] | (bytes[at + 1] << 8)) + 0x7f00;
      at += 2;
    } else if (count > 127) {
      count = ((count - 128) << 8) | bytes[at++];
    }
    if (count === 0) {
      if (at !== bytes.length) refuse("bytes follow the sections of a zstd block");
      return { count, at };
    }
    if (at >= bytes.length) refuse("a zstd block ends in its sequences");
    const modes = bytes[at++];
    if (modes & 3) refuse("a reserved bit of a zstd block is set");
    at = this.readTable("literals", modes >> 6, bytes, at);
    at = this.readTable("offsets", (modes >> 4) & 3, bytes, at);
    at = this.readTable("matches", (modes >> 2) & 3, bytes, at);
    return { count, at };
  }

  readTable(kind, mode, bytes, at) {
    const rules = KINDS[kind];
    if (mode === 0) {
      this.tables[kind] = rules.predefined;
    } else if (mode === 1) {
      if (at >= bytes.length) refuse("a zstd block ends in its tables");
      if (bytes[at] > rules.largest) refuse("a code of a zstd block is out of range");
      this.tables[kind] = fseTable([...new Array(bytes[at]).fill(0), 1], 0);
      return at + 1;
    } else if (mode === 2) {
      const read = readDistribution(bytes, at, bytes.length, rules.log, rules.largest);
      this.tables[kind] = fseTable(read.counts, read.log);
      return read.at;
    } else if (!this.tables[kind]) {
      refuse("a zstd block repeats a table that there is not");
    }
    return at;
  }

  /** Copy literals and matches to `out`, from `to` on. */
  execute(bytes, { count, at }, size, out, to) {
    const { literals, offsets: recent } = this;
    const limit = Math.min(out.length, to + this.largest);
    let end = to;
    let used = 0;
    if (count) {
      const { literals: ll, offsets: of, matches: ml } = this.tables;
      const bits = new BackwardBits(bytes, at, bytes.length);
      let [l, o, m] = [bits.read(ll.log), bits.read(of.log), bits.read(ml.log)];
      for (let left = count; left > 0; left--) {
        const code = of.symbols[o];
        if (code > 27) refuse("an offset of a zstd block is beyond any window");
        const value = 2 ** code + bits.read(code);
        const mCode = ml.symbols[m];
        const matched = MATCH_BASE[mCode] + bits.read(MATCH_BITS[mCode]);
        const lCode = ll.symbols[l];
        const length = LITERAL_BASE[lCode] + bits.read(LITERAL_BITS[lCode]);
        const offset = nextOffset(recent, value, length === 0);
        if (used + length > size || end + length + matched > limit) refuse("a zstd block holds more than it may");
        out.set(literals.subarray(used, used + length), end);
        used += length;
        end += length;
        if (offset > this.total + (end - to) || offset > end || offset > Math.max(this.window, 1)) {
          refuse("an offset of a zstd block is beyond its data");
        }
        copyMatch(out, end, offset, matched);
        end += matched;
        if (left > 1) {
          l = ll.base[l] + bits.read(ll.bits[l]);
          m = ml.base[m] + bits.read(ml.bits[m]);
          o = of.base[o] + bits.read(of.bits[o]);
        }
      }
      if (bits.left !== 0) refuse("bits are left over in a zstd block");
    }
    if (end + size - used > limit) refuse("a zstd block holds more than it may");
    out.set(literals.subarray(used, size), end);
    return end + size - used;
  }
}

function copyMatch(out, to, offset, length) {
  if (offset >= length && length > 32) {
    out.copyWithin(to, to - offset, to - offset + length);
  } else {
    for (let i = to, stop = to + length; i < stop; i++) out[i] = out[i - offset];
  }
}

/** The offset of a sequence; moves the three recent ones. */
function nextOffset(recent, value, noLiterals) {
  if (value > 3) {
    recent[2] = recent[1];
    recent[1] = recent[0];
    recent[0] = value - 3;
    return recent[0];
  }
  const place = value - 1 + (noLiterals ? 1 : 0);
  if (place === 0) return recent[0];
  const offset = place === 3 ? recent[0] - 1 : recent[place];
  if (offset < 1) refuse("an offset of a zstd block is zero");
  if (place > 1) recent[2] = recent[1];
  recent[1] = recent[0];
  recent[0] = offset;
  return offset;
}

// --- bits, FSE and Huffman (RFC 8878, section 4) ---

/** Bits from the end of a range of bytes to its begin. */
class BackwardBits {
  constructor(bytes, start, end) {
    if (end <= start || bytes[end - 1] === 0) refuse("a bit stream of a zstd block has no end mark");
    this.bytes = bytes;
    this.start = start;
    this.left = (end - start - 1) * 8 + highBit(bytes[end - 1]);
  }

  read(count) {
    if (count > 16) return this.read(count - 16) * 65536 + this.read(16);
    this.left -= count;
    if (this.left < 0) refuse("a bit stream of a zstd block ends too early");
    const at = this.start + (this.left >> 3);
    const { bytes } = this;
    const word = bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16);
    return (word >>> (this.left & 7)) & ((1 << count) - 1);
  }

  /** The same, with zeros where the stream has ended. */
  readPadded(count) {
    if (this.left >= count) return this.read(count);
    const have = Math.max(this.left, 0);
    const missing = count - have;
    const value = have ? this.read(have) : 0;
    this.left = (have ? 0 : this.left) - missing;
    return value << missing;
  }
}

/** A distribution of probabilities as a table of FSE is described by. */
function readDistribution(bytes, start, end, largestLog, largestSymbol) {
  let place = start * 8;
  const stop = end * 8;
  const peek = (count) => {
    const at = place >> 3;
    const word = (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8) | ((bytes[at + 2] ?? 0) << 16);
    return (word >>> (place & 7)) & ((1 << count) - 1);
  };
  const log = peek(4) + 5;
  place += 4;
  if (log > largestLog) refuse("a table of a zstd block is too large");
  const counts = [];
  let left = 1 << log;
  while (left > 0) {
    if (counts.length > largestSymbol || place > stop) refuse("a table of a zstd block is not valid");
    const bits = highBit(left + 1) + 1;
    const small = (1 << (bits - 1)) - 1;
    const threshold = (1 << bits) - 2 - left;
    let value = peek(bits);
    if ((value & small) < threshold) {
      value &= small;
      place += bits - 1;
    } else {
      if (value > small) value -= threshold;
      place += bits;
    }
    counts.push(value - 1);
    left -= Math.abs(value - 1);
    for (let more = value === 1 ? 3 : 0; more === 3; ) {
      more = peek(2);
      place += 2;
      if (counts.length + more > largestSymbol + 1 || place > stop) refuse("a table of a zstd block is not valid");
      for (let i = 0; i < more; i++) counts.push(0);
    }
  }
  if (left < 0 || place > stop) refuse("a table of a zstd block is not valid");
  return { counts, log, at: (place + 7) >> 3 };
}

/** The decoding table of FSE: for each state a symbol, and how the next state is read. */
function fseTable(counts, log) {
  const size = 1 << log;
  const symbols = new Uint8Array(size);
  const bits = new Uint8Array(size);
  const base = new Uint16Array(size);
  const next = counts.map((count) => Math.abs(count));
  let high = size - 1;
  counts.forEach((count, symbol) => {
    if (count === -1) symbols[high--] = symbol;
  });
  const step = (size >> 1) + (size >> 3) + 3;
  let place = 0;
  counts.forEach((count, symbol) => {
    for (let i = 0; i < count; i++) {
      symbols[place] = symbol;
      do place = (place + step) & (size - 1);
      while (place > high);
    }
  });
  for (let state = 0; state < size; state++) {
    const number = next[symbols[state]]++;
    bits[state] = log - highBit(number);
    base[state] = (number << bits[state]) - size;
  }
  return { symbols, bits, base, log };
}

function readHuffman(bytes, start, end) {
  if (start >= end) refuse("a Huffman table of a zstd block is cut off");
  const head = bytes[start];
  const at = start + 1;
  const weights = [];
  let stop;
  if (head > 127) {
    stop = at + ((head - 126) >> 1);
    if (stop > end) refuse("a Huffman table of a zstd block is cut off");
    for (let i = 0; i < head - 127; i++) weights.push((bytes[at + (i >> 1)] >> (i & 1 ? 0 : 4)) & 15);
  } else {
    stop = at + head;
    if (stop > end) refuse("a Huffman table of a zstd block is cut off");
    const read = readDistribution(bytes, at, stop, 6, 15);
    readWeights(fseTable(read.counts, read.log), new BackwardBits(bytes, read.at, stop), weights);
  }
  return { table: huffmanTable(weights), at: stop };
}

function readWeights(table, bits, weights) {
  const states = [bits.readPadded(table.log), bits.readPadded(table.log)];
  if (bits.left < 0) refuse("a Huffman table of a zstd block is cut off");
  for (let turn = 0; ; turn ^= 1) {
    if (weights.length > 253) refuse("a Huffman table of a zstd block is too long");
    const state = states[turn];
    weights.push(table.symbols[state]);
    const count = table.bits[state];
    if (bits.left < count) {
      weights.push(table.symbols[states[turn ^ 1]]);
      return;
    }
    states[turn] = table.base[state] + bits.read(count);
  }
}

function huffmanTable(weights) {
  let sum = 0;
  for (const weight of weights) {
    if (weight > 11) refuse("a Huffman code of a zstd block is too long");
    sum += weight ? 1 << (weight - 1) : 0;
  }
  if (sum === 0) refuse("a Huffman table of a zstd block is empty");
  const log = highBit(sum) + 1;
  const left = (1 << log) - sum;
  if (log > 11 || (left & (left - 1)) !== 0) refuse("a Huffman table of a zstd block is not valid");
  const all = [...weights, highBit(left) + 1];
  const entries = new Uint16Array(1 << log); // the symbol, and the length of its code times 256
  let place = 0;
  for (let weight = 1; weight <= log; weight++) {
    all.forEach((own, symbol) => {
      if (own !== weight) return;
      const next = place + (1 << (weight - 1));
      entries.fill(symbol | ((log + 1 - weight) << 8), place, next);
      place = next;
    });
  }
  return { entries, log };
}

function huffmanStream({ entries, log }, bytes, start, end, out, from, to) {
  let { left } = new BackwardBits(bytes, start, end);
  const mask = (1 << log) - 1;
  for (let i = from; i < to; i++) {
    const low = left - log;
    let code;
    if (low >= 0) {
      const at = start + (low >> 3);
      code = ((bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16)) >>> (low & 7)) & mask;
    } else {
      code = ((bytes[start] | (bytes[start + 1] << 8)) << -low) & mask;
      if (left <= 0) refuse("the literals of a zstd block end too early");
    }
    const entry = entries[code];
    out[i] = entry;
    left -= entry >> 8;
  }
  if (left !== 0) refuse("the literals of a zstd block do not end where they should");
}

const expand = (first, count, steps) => {
  const [base, bits] = [[], []];
  let value = first;
  for (const width of [...new Array(count).fill(0), ...steps]) {
    base.push(value);
    bits.push(width);
    value += 2 ** width;
  }
  return [base, bits];
};
// The codes for lengths: a first value and a number of further bits each.
const [LITERAL_BASE, LITERAL_BITS] = expand(0, 16, [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
const [MATCH_BASE, MATCH_BITS] = expand(3, 32, [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);

const ones = (count, value = 1) => new Array(count).fill(value);
const KINDS = {
  literals: {
    largest: 35,
    log: 9,
    predefined: fseTable([4, 3, ...ones(11, 2), 1, 1, 1, ...ones(9, 2), 3, 2, ...ones(5), ...ones(4, -1)], 6),
  },
  offsets: { largest: 31, log: 8, predefined: fseTable([...ones(6), 2, 2, 2, ...ones(15), ...ones(5, -1)], 5) },
  matches: {
    largest: 52,
    log: 9,
    predefined: fseTable([1, 4, 3, ...ones(6, 2), ...ones(37), ...ones(7, -1)], 6),
  },
};

// --- the content checksum: the low half of XXH64 with seed 0 ---

const P64 = [0x9e3779b185ebca87n, 0xc2b2ae3d27d4eb4fn, 0x165667b19e3779f9n, 0x85ebca77c2b2ae63n, 0x27d4eb2f165667c5n];

/** XXH64 of bytes that come in pieces. */
export class Xxh64 {
  constructor() {
    const [a, b] = P64;
    this.lanes = new Uint32Array(8); // low and high halves of four lanes
    [a + b, b, 0n, -a].forEach((lane, i) => {
      this.lanes[2 * i] = Number(BigInt.asUintN(32, lane));
      this.lanes[2 * i + 1] = Number(BigInt.asUintN(32, lane >> 32n));
    });
    this.rest = new Uint8Array(32);
    this.kept = 0;
    this.total = 0;
  }

  update(bytes) {
    let at = 0;
    this.total += bytes.length;
    if (this.kept) {
      at = Math.min(32 - this.kept, bytes.length);
      this.rest.set(bytes.subarray(0, at), this.kept);
      this.kept += at;
      if (this.kept < 32) return;
      this.stripes(this.rest, 0, 32);
      this.kept = 0;
    }
    const stop = at + Math.floor((bytes.length - at) / 32) * 32;
    this.stripes(bytes, at, stop);
    this.rest.set(bytes.subarray(stop));
    this.kept = bytes.length - stop;
  }

  stripes(bytes, start, stop) {
    const { lanes } = this;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = start; at < stop; at += 32) {
      for (let i = 0; i < 8; i += 2) {
        // lane = rotate(lane + word * P2, 31) * P1, in halves of 32 bits
        const [low, high] = times(view.getUint32(at + 4 * i, true), view.getUint32(at + 4 * i + 4, true), 0x27d4eb4f, 0xc2b2ae3d);
        const sum = lanes[i] + low;
        const top = (lanes[i + 1] + high + (sum > 0xffffffff ? 1 : 0)) >>> 0;
        const bottom = sum >>> 0;
        const product = times(((bottom << 31) | (top >>> 1)) >>> 0, ((top << 31) | (bottom >>> 1)) >>> 0, 0x85ebca87, 0x9e3779b1);
        lanes[i] = product[0];
        lanes[i + 1] = product[1];
      }
    }
  }

  /** The low 32 bits. */
  low() {
    const [p1, p2, p3, p4, p5] = P64;
    const wide = (value) => BigInt.asUintN(64, value);
    const rotate = (value, by) => wide(value << BigInt(by)) | (value >> BigInt(64 - by));
    const round = (lane, word) => wide(rotate(wide(lane + word * p2), 31) * p1);
    const lane = (i) => (BigInt(this.lanes[2 * i + 1]) << 32n) | BigInt(this.lanes[2 * i]);
    let hash = p5;
    if (this.total >= 32) {
      hash = wide([1, 7, 12, 18].reduce((sum, by, i) => sum + rotate(lane(i), by), 0n));
      for (let i = 0; i < 4; i++) hash = wide((hash ^ round(0n, lane(i))) * p1 + p4);
    }
    hash = wide(hash + BigInt(this.total));
    const view = new DataView(this.rest.buffer);
    let at = 0;
    for (; at + 8 <= this.kept; at += 8) hash = wide(rotate(hash ^ round(0n, view.getBigUint64(at, true)), 27) * p1 + p4);
    if (at + 4 <= this.kept) {
      hash = wide(rotate(hash ^ wide(BigInt(view.getUint32(at, true)) * p1), 23) * p2 + p3);
      at += 4;
    }
    for (; at < this.kept; at++) hash = wide(rotate(hash ^ wide(BigInt(this.rest[at]) * p5), 11) * p1);
    hash = wide((hash ^ (hash >> 33n)) * p2);
    hash = wide((hash ^ (hash >> 29n)) * p3);
    return Number((hash ^ (hash >> 32n)) & 0xffffffffn);
  }
}

/** The low 64 bits of a product of two numbers of 64 bits, each as halves of 32. */
function times(aLow, aHigh, bLow, bHigh) {
  const [a0, a1, b0, b1] = [aLow & 0xffff, aLow >>> 16, bLow & 0xffff, bLow >>> 16];
  const [p01, p10] = [Math.imul(a0, b1) >>> 0, Math.imul(a1, b0) >>> 0];
  const middle = (Math.imul(a0, b0) >>> 16) + (p01 & 0xffff) + (p10 & 0xffff);
  const high = Math.imul(a1, b1) + (p01 >>> 16) + (p10 >>> 16) + (middle >>> 16);
  return [Math.imul(aLow, bLow) >>> 0, (high + Math.imul(aLow, bHigh) + Math.imul(aHigh, bLow)) >>> 0];
}

// --- whole frames, and frames in pieces ---

/**
 * Decode one frame that is all of `bytes` and states that it holds `size` bytes.
 * @returns {Uint8Array}
 */
export function decompress(bytes, size) {
  const head = frameHeader(bytes);
  if (head.contentSize !== size) refuse(`a zstd frame says ${head.contentSize} bytes, not ${size}`);
  const out = new Uint8Array(size);
  const decoder = new BlockDecoder(head.window);
  let at = head.end;
  let to = 0;
  for (let last = false; !last; ) {
    const header = blockHeader(bytes, at, head.window);
    at += 3;
    if (at + header.stored > bytes.length) refuse("a zstd frame is cut off");
    to = decoder.block(header, bytes.subarray(at, at + header.stored), out, to);
    at += header.stored;
    last = header.last;
  }
  if (to !== size) refuse(`a zstd frame holds ${to} bytes, not ${size}`);
  if (head.checksum) {
    const sum = new Xxh64();
    sum.update(out);
    checkSum(bytes, at, sum);
    at += 4;
  }
  if (at !== bytes.length) refuse("bytes follow a zstd frame");
  return out;
}

function checkSum(bytes, at, sum) {
  if (at + 4 > bytes.length) refuse("a zstd frame is cut off");
  const stated = new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
  if (stated !== sum.low()) refuse("the checksum of a zstd frame does not match");
}

/**
 * Decodes one frame of a file, piece by piece.
 *
 * `read(offset, length)` is an asynchronous function that gives bytes of the file. `next()` gives the next
 * piece, which is valid until the next call, and null at the end; then `end` is where the frame ends.
 */
export class FrameReader {
  static async open(read, start, fileSize) {
    const bytes = await read(start, Math.min(LONGEST_HEADER, fileSize - start));
    return new FrameReader(read, start, fileSize, frameHeader(bytes));
  }

  constructor(read, start, fileSize, head) {
    this.read = read;
    this.fileSize = fileSize;
    this.head = head;
    this.end = start + head.end;
    this.decoder = new BlockDecoder(head.window);
    this.sum = head.checksum ? new Xxh64() : null;
    this.out = new Uint8Array(Math.min(head.window, LARGEST_BLOCK) + LARGEST_BLOCK);
    this.to = 0;
    this.finished = false;
  }

  async next() {
    if (this.finished) return null;
    const header = blockHeader(await this.read(this.end, Math.min(3, this.fileSize - this.end)), 0, this.head.window);
    this.end += 3;
    if (this.end + header.stored > this.fileSize) refuse("a zstd frame is cut off");
    const bytes = await this.read(this.end, header.stored);
    this.end += header.stored;
    this.makeRoom();
    const from = this.to;
    this.to = this.decoder.block(header, bytes, this.out, from);
    const piece = this.out.subarray(from, this.to);
    this.sum?.update(piece);
    const { contentSize } = this.head;
    const { total } = this.decoder;
    if (contentSize !== null && (header.last ? total !== contentSize : total > contentSize)) {
      refuse("a zstd frame does not hold what it says");
    }
    if (header.last) await this.finish();
    return piece;
  }

  async finish() {
    this.finished = true;
    if (!this.sum) return;
    checkSum(await this.read(this.end, Math.min(4, this.fileSize - this.end)), 0, this.sum);
    this.end += 4;
  }

  /** Room for one more block behind the last `window` bytes. */
  makeRoom() {
    if (this.to + LARGEST_BLOCK <= this.out.length) return;
    const keep = Math.min(this.to, this.head.window);
    const target = keep + LARGEST_BLOCK > this.out.length / 2 ? new Uint8Array(2 * keep + 2 * LARGEST_BLOCK) : this.out;
    target.set(this.out.subarray(this.to - keep, this.to));
    this.out = target;
    this.to = keep;
  }
}
