// Decodes frames, each after the size that is expected: "+" and the bytes, or "-" and the message.
import { decompress, FrameReader, ZstdError } from "../../docs/viewer/zstd.js";
import { received, send } from "./bytes.mjs";

const outcome = async (work) => {
  try {
    send(Buffer.concat([Buffer.from("+"), await work()]));
  } catch (error) {
    if (!(error instanceof ZstdError)) throw error;
    send(Buffer.from(`-${error.message}`));
  }
};

/** All frames of a file, one after the other. */
async function stream(file) {
  const read = async (offset, length) => file.slice(offset, offset + length);
  const pieces = [];
  for (let at = 0; at < file.length; ) {
    const frame = await FrameReader.open(read, at, file.length);
    for (let piece = await frame.next(); piece; piece = await frame.next()) pieces.push(piece.slice());
    at = frame.end;
  }
  return Buffer.concat(pieces);
}

const parts = received();
for (let i = 0; i < parts.length; i += 2) {
  const size = Number(new TextDecoder().decode(parts[i]));
  await outcome(() => (size < 0 ? stream(parts[i + 1]) : decompress(parts[i + 1], size)));
}
