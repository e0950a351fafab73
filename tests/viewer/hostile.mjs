// For each file: "ok", or the message of its FormatError. Any other error ends the run.
import { FormatError, open } from "../../docs/viewer/jsonckpt.js";
import { received } from "./bytes.mjs";

const [kind] = process.argv.slice(2);
const outcome = async (files) => {
  try {
    const input = kind === "directory" ? new Map(files) : files[0][1];
    const checkpoint = await open(input, { name: files[0][0] });
    for (const name of [...checkpoint.names, ...checkpoint.references.keys()]) await checkpoint.tensor(name);
    return "ok";
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    return error.message;
  }
};
const parts = received();
const answers = [];
if (kind === "directory") {
  // a count of files, then their names and contents
  for (let i = 0; i < parts.length; ) {
    const count = parts[i++][0];
    const files = [];
    for (let k = 0; k < count; k++) files.push([new TextDecoder().decode(parts[i++]), new Blob([parts[i++]])]);
    answers.push(await outcome(files));
  }
} else {
  for (const part of parts) answers.push(await outcome([["c.json", new Blob([part])]]));
}
console.log(JSON.stringify(answers));
