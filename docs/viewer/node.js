/** Files of the disk in Node, read by ranges. The page in the browser has no need of it. */

import { closeSync, existsSync, openSync, readSync, statSync } from "node:fs";
import { basename, join } from "node:path";

import { FormatError } from "./json.js";

const closing = new FinalizationRegistry((descriptor) => closeSync(descriptor));

class FileSource {
  constructor(path) {
    this.name = basename(path);
    this.descriptor = openSync(path);
    closing.register(this, this.descriptor);
    this.size = statSync(path).size;
    this.diskSize = this.size;
  }

  async read(offset, length) {
    if (offset + length > this.size) throw new FormatError(`${this.name}: the file is cut off`);
    const out = new Uint8Array(length);
    for (let at = 0; at < length; ) {
      const count = readSync(this.descriptor, out, at, length - at, offset + at);
      if (!count) throw new FormatError(`${this.name}: the file became shorter`);
      at += count;
    }
    return out;
  }
}

export const isDirectory = (path) => statSync(path).isDirectory();
export const file = (path) => new FileSource(path);

/** Gives the file of a name in a directory, or null. */
export const directory = (path) => async (name) => (existsSync(join(path, name)) ? new FileSource(join(path, name)) : null);
