// For each checkpoint: the state and the facts of all tensors as JSON, or the message of its error. The bytes of the
// tensors go to a file beside it, each after its length.
import { createWriteStream } from "node:fs";
import { DTYPES, FormatError, open, stringify } from "../../docs/viewer/jsonckpt.js";

const [out, ...paths] = process.argv.slice(2);
const file = createWriteStream(out);
const put = (bytes) => {
  const head = Buffer.alloc(4);
  head.writeUInt32LE(bytes.length);
  file.write(head);
  file.write(Buffer.from(bytes));
};
const asBytes = (data) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

const lines = [];
for (const path of paths) {
  try {
    const checkpoint = await open(path);
    const names = [...checkpoint.entries.keys(), ...checkpoint.references.keys()];
    for (const name of checkpoint.names) await checkpoint.verify(name);
    for (const name of names) {
      const entry = checkpoint.entries.get(name);
      if (entry) put(await checkpoint.bytes(name));
      const { data, dtype } = await checkpoint.tensor(name);
      const isWide = data instanceof BigInt64Array || data instanceof BigUint64Array;
      put(asBytes(isWide || DTYPES.get(dtype).kind === "raw" ? data : Float64Array.from(data)));
    }
    lines.push(`{"names":${JSON.stringify(names)},"records":${checkpoint.names.length},"state":${stringify(checkpoint.state)},"metadata":${stringify(checkpoint.metadata)}}`);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    lines.push(JSON.stringify({ error: error.message }));
  }
}
file.end(() => console.log(`[${lines.join(",\n")}]`));
