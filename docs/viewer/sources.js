/** Where bytes come from: a `Blob`, or the text inside a `.json.zst`. Both are read by ranges. */

import { FormatError } from "./json.js";
import { FrameReader, LONGEST_HEADER, ZstdError, blockHeader, frameHeader } from "./zstd.js";

const MIB = 1024 * 1024;

/** A `Blob` or `File` of the browser. */
export class BlobSource {
  constructor(blob, name = blob.name ?? "") {
    this.blob = blob;
    this.name = name;
    this.size = blob.size;
    this.diskSize = blob.size;
  }

  async read(offset, length) {
    if (offset + length > this.size) throw new FormatError(`${this.name}: the file is cut off`);
    return new Uint8Array(await this.blob.slice(offset, offset + length).arrayBuffer());
  }
}

/** A source with the last few pages kept, for many small reads in order. */
export class Paged {
  constructor(source, page = 256 * 1024) {
    this.source = source;
    this.page = page;
    this.start = 0;
    this.bytes = new Uint8Array(0);
  }

  async read(offset, length) {
    if (length > this.page) return this.source.read(offset, length);
    if (offset < this.start || offset + length > this.start + this.bytes.length) {
      this.bytes = await this.source.read(offset, Math.min(Math.max(this.page, length), this.source.size - offset));
      this.start = offset;
      if (this.bytes.length < length) throw new FormatError("the file is cut off");
    }
    return this.bytes.subarray(offset - this.start, offset - this.start + length);
  }
}

/** Frames up to this size are decoded whole and kept for a while. */
const SMALL_FRAME = 8 * MIB;
const KEPT = 32 * MIB;

/**
 * The text inside a file of Zstandard frames.
 *
 * The headers of frames and blocks are read first: they say which frame holds which part of the text. A range is
 * then read by decoding the frames that hold it. Of a large frame the part before the range is decoded, too.
 */
export class ZstdSource {
  static async open(source, progress = () => {}) {
    const text = new ZstdSource(source);
    try {
      await text.survey(progress);
    } catch (error) {
      throw error instanceof ZstdError ? new FormatError(`${source.name}: ${error.message}`) : error;
    }
    return text;
  }

  constructor(source) {
    this.source = source;
    this.name = source.name;
    this.diskSize = source.size;
    this.frames = [];
    this.size = 0;
    this.kept = new Map();
    this.current = null;
    this.turn = Promise.resolve();
  }

  async survey(progress) {
    const { source } = this;
    const paged = new Paged(source, 4096); // headers only: blocks are passed over
    const read = (offset, length) => paged.read(offset, length);
    // Raw bytes are at most the larger of 1 GiB and 1,000 times the file; a list takes some 20 characters for two.
    const most = 16 * Math.max(1024 * MIB, 1000 * source.size);
    for (let at = 0; at < source.size; ) {
      const head = frameHeader(await read(at, Math.min(LONGEST_HEADER, source.size - at)));
      const frame = { at, head, start: this.size, size: head.contentSize };
      if (frame.size === null) {
        const whole = await FrameReader.open(read, at, source.size);
        frame.size = 0;
        for (let piece = await whole.next(); piece; piece = await whole.next()) {
          frame.size += piece.length;
          if (this.size + frame.size > most) throw new FormatError(`${source.name}: the text is too large for its file`);
        }
        at = whole.end;
      } else {
        at = await skipFrame(read, at + head.end, head, source.size);
      }
      frame.stored = at - frame.at;
      this.frames.push(frame);
      this.size += frame.size;
      if (this.size > most) throw new FormatError(`${source.name}: the text is too large for its file`);
      progress(at / source.size);
    }
    if (!this.frames.length) throw new FormatError(`${source.name}: the file is empty`);
  }

  /** One read at a time: a decoder has one place. */
  read(offset, length) {
    const result = this.turn.then(() => this.readNow(offset, length));
    this.turn = result.catch(() => {});
    return result;
  }

  async readNow(offset, length) {
    if (offset + length > this.size) throw new FormatError(`${this.name}: the text is cut off`);
    const out = new Uint8Array(length);
    let done = 0;
    try {
      for (let i = this.frameAt(offset); done < length; i++) {
        const frame = this.frames[i];
        const from = offset + done - frame.start;
        const count = Math.min(length - done, frame.size - from);
        if (count > 0) await this.copy(frame, from, out.subarray(done, done + count));
        done += Math.max(count, 0);
      }
    } catch (error) {
      throw error instanceof ZstdError ? new FormatError(`${this.name}: ${error.message}`) : error;
    }
    return out;
  }

  frameAt(offset) {
    let [low, high] = [0, this.frames.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.frames[middle].start <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  async copy(frame, from, out) {
    if (frame.size <= SMALL_FRAME) {
      out.set((await this.whole(frame)).subarray(from, from + out.length));
      return;
    }
    if (this.current?.frame !== frame || this.current.start > from) {
      const reader = await FrameReader.open((offset, length) => this.source.read(offset, length), frame.at, this.source.size);
      this.current = { frame, reader, start: 0, piece: new Uint8Array(0) };
    }
    const { current } = this;
    for (let done = 0; done < out.length; ) {
      const skip = from + done - current.start;
      const part = current.piece.subarray(Math.min(skip, current.piece.length), skip + out.length - done);
      out.set(part, done);
      done += part.length;
      if (done === out.length) return;
      current.start += current.piece.length;
      current.piece = await current.reader.next();
      if (!current.piece) {
        this.current = null;
        throw new FormatError(`${this.name}: a zstd frame holds less than it says`);
      }
    }
  }

  async whole(frame) {
    let bytes = this.kept.get(frame);
    if (!bytes) {
      const pieces = new Uint8Array(frame.size);
      const reader = await FrameReader.open((offset, length) => this.source.read(offset, length), frame.at, this.source.size);
      let at = 0;
      for (let piece = await reader.next(); piece; piece = await reader.next()) {
        if (at + piece.length > frame.size) throw new FormatError(`${this.name}: a zstd frame holds more than it says`);
        pieces.set(piece, at);
        at += piece.length;
      }
      bytes = pieces;
      this.kept.set(frame, bytes);
      let sum = 0;
      for (const [key, value] of [...this.kept].reverse()) {
        sum += value.length;
        if (sum > KEPT) this.kept.delete(key);
      }
    }
    return bytes;
  }
}

/** Where a frame ends, by the headers of its blocks. */
async function skipFrame(read, start, head, fileSize) {
  let at = start;
  let [blocks, last] = [0, false];
  while (!last) {
    const header = blockHeader(await read(at, Math.min(3, Math.max(fileSize - at, 0))), 0, head.window);
    at += 3 + header.stored;
    last = header.last;
    blocks++;
    if (at > fileSize) throw new ZstdError("a zstd frame is cut off");
  }
  // A block holds at most 128 KiB: a size that no such number of blocks can have is a lie.
  if (head.contentSize > blocks * 128 * 1024) throw new ZstdError("a zstd frame holds less than it says");
  at += head.checksum ? 4 : 0;
  if (at > fileSize) throw new ZstdError("a zstd frame is cut off");
  return at;
}

/** Adjacent ranges read at once, and several at a time: `[start, end]` each, in order. */
export async function readRanges(source, ranges, progress = () => {}) {
  const [near, most, together] = [16 * 1024, 4 * MIB, 32];
  const groups = [];
  for (const range of ranges) {
    const group = groups.at(-1);
    if (group && range[0] - group.end <= near && range[1] - group.start <= most) {
      group.end = Math.max(group.end, range[1]);
      group.ranges.push(range);
    } else {
      groups.push({ start: range[0], end: range[1], ranges: [range] });
    }
  }
  const parts = [];
  for (let i = 0; i < groups.length; i += together) {
    const some = groups.slice(i, i + together);
    const blocks = await Promise.all(some.map(({ start, end }) => source.read(start, end - start)));
    some.forEach((group, k) => {
      for (const [start, end] of group.ranges) parts.push(blocks[k].slice(start - group.start, end - group.start));
    });
    progress(Math.min(1, (i + together) / groups.length));
  }
  return parts;
}

