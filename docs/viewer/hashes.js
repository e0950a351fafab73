/** Checksums of byte strings as lower-case hexadecimal: XXH3 (128 bits, seed 0), SHA-256, BLAKE3. */

const hex = (value, digits) => value.toString(16).padStart(digits, "0");
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

// --- XXH3, 128 bits ---

const SECRET = Uint8Array.from(
  (
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f" +
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c" +
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8" +
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364" +
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e" +
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
  )
    .match(/../g)
    .map((digits) => parseInt(digits, 16)),
);
const SECRET_VIEW = viewOf(SECRET);
const secret64 = (at) => SECRET_VIEW.getBigUint64(at, true);
const [P32_1, P32_2, P32_3] = [0x9e3779b1n, 0x85ebca77n, 0xc2b2ae3dn];
const [P64_1, P64_2, P64_3] = [0x9e3779b185ebca87n, 0xc2b2ae3d27d4eb4fn, 0x165667b19e3779f9n];
const [P64_4, P64_5] = [0x85ebca77c2b2ae63n, 0x27d4eb2f165667c5n];
const u64 = (value) => BigInt.asUintN(64, value);
const swap64 = (value) => BigInt(`0x${hex(value, 16).match(/../g).reverse().join("")}`);
const fold = (a, b) => u64(a * b) ^ ((a * b) >> 64n);
const xxh64Mix = (value) => {
  const one = u64((value ^ (value >> 33n)) * P64_2);
  const two = u64((one ^ (one >> 29n)) * P64_3);
  return two ^ (two >> 32n);
};
const avalanche = (value) => {
  const mixed = u64((value ^ (value >> 37n)) * 0x165667919e3779f9n);
  return mixed ^ (mixed >> 32n);
};

/** XXH3 of 128 bits in its canonical spelling. */
export function xxh3_128(bytes) {
  const size = bytes.length;
  const rule = XXH3_RULES.find(([most]) => size <= most);
  const [high, low] = rule[1](bytes, size);
  return hex(high, 16) + hex(low, 16);
}

const XXH3_RULES = [
  [0, () => [xxh64Mix(secret64(80) ^ secret64(88)), xxh64Mix(secret64(64) ^ secret64(72))]],
  [3, xxh3Shortest],
  [8, xxh3UpTo8],
  [16, xxh3UpTo16],
  [240, xxh3UpTo240],
  [Infinity, xxh3Long],
];

function xxh3Shortest(bytes, size) {
  const low = ((bytes[0] << 16) | (bytes[size >> 1] << 24) | bytes[size - 1] | (size << 8)) >>> 0;
  const swapped = viewOf(Uint8Array.of(low, low >>> 8, low >>> 16, low >>> 24)).getUint32(0);
  const high = ((swapped << 13) | (swapped >>> 19)) >>> 0;
  const flip = (at) => BigInt((SECRET_VIEW.getUint32(at, true) ^ SECRET_VIEW.getUint32(at + 4, true)) >>> 0);
  return [xxh64Mix(BigInt(high) ^ flip(8)), xxh64Mix(BigInt(low) ^ flip(0))];
}

function xxh3UpTo8(bytes, size) {
  const view = viewOf(bytes);
  const word = BigInt(view.getUint32(0, true)) + (BigInt(view.getUint32(size - 4, true)) << 32n);
  const product = (word ^ secret64(16) ^ secret64(24)) * (P64_1 + BigInt(size << 2));
  let low = u64(product);
  const high = u64((product >> 64n) + (low << 1n));
  low ^= high >> 3n;
  low = u64((low ^ (low >> 35n)) * 0x9fb21c651e98df25n);
  return [avalanche(high), low ^ (low >> 28n)];
}

function xxh3UpTo16(bytes, size) {
  const view = viewOf(bytes);
  const [first, last] = [view.getBigUint64(0, true), view.getBigUint64(size - 8, true)];
  const product = (first ^ last ^ secret64(32) ^ secret64(40)) * P64_1;
  const flipped = last ^ secret64(48) ^ secret64(56);
  const low = u64(product + (BigInt(size - 1) << 54n));
  const high = u64(((product >> 64n) & 0xffffffffffffffffn) + flipped + (flipped & 0xffffffffn) * (P32_2 - 1n));
  const next = (low ^ swap64(high)) * P64_2;
  return [avalanche(u64((next >> 64n) + high * P64_2)), avalanche(u64(next))];
}

function xxh3UpTo240(bytes, size) {
  const view = viewOf(bytes);
  const word = (at) => view.getBigUint64(at, true);
  const mix = (at, key) => fold(word(at) ^ secret64(key), word(at + 8) ^ secret64(key + 8));
  let low = u64(BigInt(size) * P64_1);
  let high = 0n;
  const step = (one, two, key) => {
    low = u64(low + mix(one, key)) ^ u64(word(two) + word(two + 8));
    high = u64(high + mix(two, key + 16)) ^ u64(word(one) + word(one + 8));
  };
  if (size <= 128) {
    for (let i = (size - 1) >> 5; i >= 0; i--) step(16 * i, size - 16 * (i + 1), 32 * i);
  } else {
    for (let at = 0; at < 128; at += 32) step(at, at + 16, at);
    [low, high] = [avalanche(low), avalanche(high)];
    for (let at = 128; at + 32 <= size; at += 32) step(at, at + 16, at - 125);
    step(size - 16, size - 32, 103);
  }
  const last = u64(low * P64_1 + high * P64_4 + BigInt(size) * P64_2);
  return [u64(-avalanche(last)), avalanche(u64(low + high))];
}

/** The product of two numbers of 32 bits: the high half. */
function highHalf(a, b) {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const b0 = b & 0xffff;
  const b1 = b >>> 16;
  const p01 = Math.imul(a0, b1) >>> 0;
  const p10 = Math.imul(a1, b0) >>> 0;
  const middle = (Math.imul(a0, b0) >>> 16) + (p01 & 0xffff) + (p10 & 0xffff);
  return Math.imul(a1, b1) + (p01 >>> 16) + (p10 >>> 16) + (middle >>> 16);
}

/** Adds stripes of 64 bytes. All numbers are halves of 32 bits, the low one first. */
function accumulate(lanes, words, at, count, keys, keyAt) {
  for (let stripe = 0; stripe < count; stripe++) {
    for (let i = 0; i < 16; i += 2) {
      const low = words[at + 16 * stripe + i];
      const high = words[at + 16 * stripe + i + 1];
      const other = i ^ 2;
      let sum = lanes[other] + low;
      lanes[other] = sum;
      lanes[other + 1] += high + (sum > 0xffffffff ? 1 : 0);
      const keyLow = (low ^ keys[keyAt + 2 * stripe + i]) >>> 0;
      const keyHigh = (high ^ keys[keyAt + 2 * stripe + i + 1]) >>> 0;
      sum = lanes[i] + (Math.imul(keyLow, keyHigh) >>> 0);
      lanes[i] = sum;
      lanes[i + 1] += highHalf(keyLow, keyHigh) + (sum > 0xffffffff ? 1 : 0);
    }
  }
}

function scramble(lanes, keys) {
  for (let i = 0; i < 16; i += 2) {
    const low = (lanes[i] ^ (lanes[i + 1] >>> 15) ^ keys[32 + i]) >>> 0;
    const high = (lanes[i + 1] ^ keys[33 + i]) >>> 0;
    lanes[i + 1] = highHalf(low, 0x9e3779b1) + Math.imul(high, 0x9e3779b1);
    lanes[i] = Math.imul(low, 0x9e3779b1);
  }
}

function xxh3Long(bytes, size) {
  const lanes = new Uint32Array(16);
  [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1].forEach((lane, i) => {
    lanes[2 * i] = Number(lane & 0xffffffffn);
    lanes[2 * i + 1] = Number(lane >> 32n);
  });
  const keys = new Uint32Array(SECRET.buffer, 0, 48);
  const blocks = Math.floor((size - 1) / 1024);
  const aligned = bytes.byteOffset % 4 === 0;
  const words = aligned ? new Uint32Array(bytes.buffer, bytes.byteOffset, size >> 2) : new Uint32Array(256);
  const copy = new Uint8Array(words.buffer);
  for (let block = 0; block <= blocks; block++) {
    const at = 1024 * block;
    const stripes = block < blocks ? 16 : Math.floor((size - 1 - at) / 64);
    if (!aligned) copy.set(bytes.subarray(at, at + 64 * stripes));
    accumulate(lanes, words, aligned ? at / 4 : 0, stripes, keys, 0);
    if (block < blocks) scramble(lanes, keys);
  }
  const last = new Uint32Array(bytes.slice(size - 64).buffer);
  accumulate(lanes, last, 0, 1, new Uint32Array(SECRET.slice(121, 185).buffer), 0);
  const merge = (start, keyAt) => {
    let sum = start;
    for (let i = 0; i < 4; i++) {
      const lane = (k) => (BigInt(lanes[k + 1]) << 32n) | BigInt(lanes[k]);
      sum += fold(lane(4 * i) ^ secret64(keyAt + 16 * i), lane(4 * i + 2) ^ secret64(keyAt + 16 * i + 8));
    }
    return avalanche(u64(sum));
  };
  const length = BigInt(size);
  return [merge(u64(~(length * P64_2)), 117), merge(u64(length * P64_1), 11)];
}

// --- SHA-256 ---

const primes = (count) => {
  const found = [];
  for (let n = 2; found.length < count; n++) if (found.every((p) => n % p)) found.push(n);
  return found;
};
/** The first 32 bits behind the point of a root of a prime, by exact integers. */
const rootBits = (prime, degree) => {
  const target = BigInt(prime) << BigInt(32 * degree);
  let root = BigInt(Math.floor(prime ** (1 / degree) * 2 ** 32));
  while (root ** BigInt(degree) > target) root--;
  while ((root + 1n) ** BigInt(degree) <= target) root++;
  return Number(root & 0xffffffffn);
};
const SHA_START = primes(8).map((prime) => rootBits(prime, 2));
const SHA_KEYS = Int32Array.from(primes(64), (prime) => rootBits(prime, 3));

/** SHA-256. */
export function sha256(bytes) {
  const state = Int32Array.from(SHA_START);
  const words = new Int32Array(64);
  const view = viewOf(bytes);
  const whole = bytes.length - (bytes.length % 64);
  for (let at = 0; at < whole; at += 64) shaBlock(state, words, view, at);
  const rest = new Uint8Array(bytes.length % 64 < 56 ? 64 : 128);
  rest.set(bytes.subarray(whole));
  rest[bytes.length % 64] = 0x80;
  viewOf(rest).setBigUint64(rest.length - 8, BigInt(bytes.length) * 8n);
  for (let at = 0; at < rest.length; at += 64) shaBlock(state, words, viewOf(rest), at);
  return Array.from(state, (word) => hex(word >>> 0, 8)).join("");
}

const right = (word, by) => (word >>> by) | (word << (32 - by));

function shaBlock(state, w, view, at) {
  for (let i = 0; i < 16; i++) w[i] = view.getInt32(at + 4 * i);
  for (let i = 16; i < 64; i++) {
    const [x, y] = [w[i - 15], w[i - 2]];
    const one = right(x, 7) ^ right(x, 18) ^ (x >>> 3);
    const two = right(y, 17) ^ right(y, 19) ^ (y >>> 10);
    w[i] = w[i - 16] + one + w[i - 7] + two;
  }
  let a = state[0], b = state[1], c = state[2], d = state[3];
  let e = state[4], f = state[5], g = state[6], h = state[7];
  for (let i = 0; i < 64; i++) {
    const one = (h + (right(e, 6) ^ right(e, 11) ^ right(e, 25)) + ((e & f) ^ (~e & g)) + SHA_KEYS[i] + w[i]) | 0;
    const two = ((right(a, 2) ^ right(a, 13) ^ right(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + one) | 0;
    d = c;
    c = b;
    b = a;
    a = (one + two) | 0;
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}

// --- BLAKE3 ---

const B3_ORDER = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
const B3_CELLS = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 5, 10, 15, 1, 6, 11, 12, 2, 7, 8, 13, 3, 4, 9, 14];
const [B3_FIRST, B3_LAST, B3_PARENT, B3_ROOT] = [1, 2, 4, 8];

/** One compression: the chaining value, a block of 16 words, and what it is. */
function b3Compress(chain, block, counter, size, flags) {
  const v = Int32Array.of(...chain, ...SHA_START.slice(0, 4), counter | 0, Math.floor(counter / 2 ** 32), size, flags);
  let m = block;
  for (let round = 0; round < 7; round++) {
    for (let i = 0; i < 8; i++) {
      const [a, b, c, d] = [B3_CELLS[4 * i], B3_CELLS[4 * i + 1], B3_CELLS[4 * i + 2], B3_CELLS[4 * i + 3]];
      v[a] += v[b] + m[2 * i];
      v[d] = right(v[d] ^ v[a], 16);
      v[c] += v[d];
      v[b] = right(v[b] ^ v[c], 12);
      v[a] += v[b] + m[2 * i + 1];
      v[d] = right(v[d] ^ v[a], 8);
      v[c] += v[d];
      v[b] = right(v[b] ^ v[c], 7);
    }
    m = B3_ORDER.map((place) => m[place]);
  }
  return Int32Array.from({ length: 8 }, (_, i) => v[i] ^ v[i + 8]);
}

function b3Chunk(bytes, number, flags) {
  let chain = Int32Array.from(SHA_START);
  const blocks = Math.max(1, Math.ceil(bytes.length / 64));
  for (let i = 0; i < blocks; i++) {
    const part = bytes.subarray(64 * i, 64 * (i + 1));
    const padded = new Uint8Array(64);
    padded.set(part);
    const mark = (i === 0 ? B3_FIRST : 0) | (i === blocks - 1 ? B3_LAST | flags : 0);
    chain = b3Compress(chain, new Int32Array(padded.buffer), number, part.length, mark);
  }
  return chain;
}

function b3Tree(bytes, number, flags) {
  const chunks = Math.ceil(bytes.length / 1024);
  if (chunks <= 1) return b3Chunk(bytes, number, flags);
  const left = 2 ** Math.ceil(Math.log2(chunks) - 1);
  const halves = [
    b3Tree(bytes.subarray(0, 1024 * left), number, 0),
    b3Tree(bytes.subarray(1024 * left), number + left, 0),
  ];
  return b3Compress(SHA_START, Int32Array.of(...halves[0], ...halves[1]), 0, 64, B3_PARENT | flags);
}

/** BLAKE3 with 32 bytes. */
export function blake3(bytes) {
  const words = b3Tree(bytes, 0, B3_ROOT);
  return Array.from(new Uint8Array(words.buffer), (byte) => hex(byte, 2)).join("");
}

/** By the names that a checkpoint gives them. */
export const ALGORITHMS = new Map([
  ["xxh3_128", { digits: 32, sum: xxh3_128 }],
  ["sha256", { digits: 64, sum: sha256 }],
  ["blake3", { digits: 64, sum: blake3 }],
]);
