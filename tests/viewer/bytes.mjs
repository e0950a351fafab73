// What tests send and get: byte strings, each after its length in four bytes.
import { readFileSync, writeSync } from "node:fs";

export function received() {
  const data = readFileSync(0);
  const parts = [];
  for (let at = 0; at < data.length; ) {
    const size = data.readUInt32LE(at);
    parts.push(new Uint8Array(data.subarray(at + 4, at + 4 + size)));
    at += 4 + size;
  }
  return parts;
}

export function send(bytes) {
  const head = Buffer.alloc(4);
  head.writeUInt32LE(bytes.length);
  for (const part of [head, bytes]) {
    for (let at = 0; at < part.length; ) {
      try {
        at += writeSync(1, part, at);
      } catch (error) {
        if (error.code !== "EAGAIN") throw error;
      }
    }
  }
}
