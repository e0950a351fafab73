/** Statistics, a histogram and a heat map of a tensor, in slices: no more than a few chunks are in memory. */

import { DTYPES } from "../dtypes.js";

const SLICE = 1 << 18; // numbers between two breaks
/** The most raw bytes that stay in memory between the two passes. */
const KEPT = 128 * 1024 * 1024;

/** Gives the numbers of a tensor piece by piece, as typed arrays. */
export async function* pieces(checkpoint, name) {
  const { of, dtype, view } = checkpoint.layout(name);
  const { values } = DTYPES.get(dtype);
  if (view) {
    yield (await checkpoint.tensor(name)).data;
    return;
  }
  const { chunkCount } = checkpoint.entry(of);
  for (let number = 0; number < chunkCount; number++) yield values(await checkpoint.chunk(of, number));
}

/** Numbers to compute with: 64-bit integers become floats, complex numbers their absolute values. */
function comparable(data, kind) {
  if (data instanceof BigInt64Array || data instanceof BigUint64Array) return Float64Array.from(data, Number);
  if (kind !== "complex") return data;
  const out = new Float64Array(data.length / 2);
  for (let i = 0; i < out.length; i++) out[i] = Math.hypot(data[2 * i], data[2 * i + 1]);
  return out;
}

/** How the numbers lie in two dimensions: the first one, and all others. */
export function gridOf(shape, parts = 1) {
  const sizes = shape.map(Number);
  const numel = sizes.reduce((product, size) => product * size, parts);
  const rows = sizes.length > 1 ? sizes[0] : 1;
  return { rows, columns: rows ? numel / rows : 0 };
}

class Moments {
  constructor() {
    Object.assign(this, { count: 0, nan: 0, infinite: 0, zeros: 0, min: Infinity, max: -Infinity, mean: 0, squares: 0 });
  }

  add(data, from, to) {
    let [count, sum, nan, infinite, zeros] = [0, 0, 0, 0, 0];
    let { min, max } = this;
    for (let i = from; i < to; i++) {
      const value = data[i];
      if (value - value !== 0) {
        if (Number.isNaN(value)) nan++;
        else infinite++;
        continue;
      }
      if (value < min) min = value;
      if (value > max) max = value;
      if (value === 0) zeros++;
      sum += value;
      count++;
    }
    this.min = min;
    this.max = max;
    this.nan += nan;
    this.infinite += infinite;
    this.zeros += zeros;
    if (!count) return;
    const mean = sum / count;
    let squares = 0;
    for (let i = from; i < to; i++) {
      const apart = data[i] - mean;
      if (apart - apart === 0) squares += apart * apart;
    }
    // Two parts are joined by their means and squared distances: nothing cancels.
    const all = this.count + count;
    const apart = mean - this.mean;
    this.squares += squares + (apart * apart * this.count * count) / all;
    this.mean += (apart * count) / all;
    this.count = all;
  }

  get result() {
    const { count, mean, squares } = this;
    return {
      count, mean: count ? mean : NaN, nan: this.nan, infinite: this.infinite, zeros: this.zeros,
      min: count ? this.min : NaN,
      max: count ? this.max : NaN,
      std: count ? Math.sqrt(squares / count) : NaN,
      norm: Math.sqrt(squares + count * mean * mean),
    };
  }
}

/**
 * Everything about the numbers of a tensor.
 *
 * @param {{bins?: number, side?: number, progress?: function(number), signal?: AbortSignal}} options
 * @returns {Promise<{moments: object, histogram: Float64Array, heat: {rows: number, columns: number, means: Float32Array}}>}
 */
export async function summarize(checkpoint, name, { bins = 60, side = 160, progress = () => {}, signal } = {}) {
  const { dtype, shape } = checkpoint.layout(name);
  const { kind, parts } = DTYPES.get(dtype);
  const numel = shape.reduce((product, size) => product * Number(size), kind === "complex" ? 1 : parts);
  const moments = new Moments();
  const kept = [];
  let bytes = 0;
  const pass = async (work, again) => {
    let at = 0;
    const source = again && kept.length && bytes <= KEPT ? kept : pieces(checkpoint, name);
    for await (const piece of source) {
      const data = again && source === kept ? piece : comparable(piece, kind);
      bytes += again ? 0 : data.byteLength;
      if (!again && bytes <= KEPT) kept.push(data);
      for (let from = 0; from < data.length; from += SLICE) {
        const to = Math.min(from + SLICE, data.length);
        work(data, from, to, at + from);
        progress((again ? 0.5 : 0) + (at + to) / numel / 2);
        await pause();
        signal?.throwIfAborted();
      }
      at += data.length;
    }
  };
  await pass((data, from, to) => moments.add(data, from, to), false);
  const histogram = new Float64Array(bins);
  const heat = new Heat(gridOf(shape, kind === "complex" ? 1 : parts), side);
  const { min, max } = moments;
  const scale = max > min ? bins / (max - min) : 0;
  await pass((data, from, to, at) => {
    for (let i = from; i < to; i++) {
      const place = (data[i] - min) * scale;
      if (place - place === 0) histogram[place >= bins ? bins - 1 : place | 0]++;
    }
    heat.add(data, from, to, at);
  }, true);
  return { moments: moments.result, histogram, heat: heat.result };
}

/** Means of rectangles of a grid. */
class Heat {
  constructor({ rows, columns }, side) {
    this.columns = Math.max(columns, 1);
    this.high = Math.min(rows, side);
    this.wide = Math.min(columns, side);
    this.rowScale = rows ? this.high / rows : 0;
    this.columnScale = columns ? this.wide / columns : 0;
    this.sums = new Float64Array(this.high * this.wide);
    this.counts = new Float64Array(this.high * this.wide);
    this.broken = new Uint8Array(this.high * this.wide);
  }

  add(data, from, to, at) {
    let row = Math.floor(at / this.columns);
    let column = at % this.columns;
    let base = Math.floor(row * this.rowScale) * this.wide;
    for (let i = from; i < to; i++) {
      const cell = base + Math.floor(column * this.columnScale);
      const value = data[i];
      if (value - value === 0) {
        this.sums[cell] += value;
        this.counts[cell]++;
      } else {
        this.broken[cell] = 1;
      }
      column++;
      if (column === this.columns) {
        column = 0;
        row++;
        base = Math.floor(row * this.rowScale) * this.wide;
      }
    }
  }

  get result() {
    const means = Float32Array.from(this.sums, (sum, i) => (this.broken[i] ? NaN : sum / (this.counts[i] || 1)));
    return { rows: this.high, columns: this.wide, means };
  }
}

let last = 0;
/** Let the page answer: at most every 20 milliseconds. */
async function pause() {
  const now = performance.now();
  if (now - last < 20) return;
  await new Promise((resolve) => setTimeout(resolve));
  last = performance.now();
}
