// Statistics, histogram and heat map of each tensor of a checkpoint.
import { open } from "../../docs/viewer/jsonckpt.js";
import { summarize } from "../../docs/viewer/page/statistics.js";

const checkpoint = await open(process.argv[2]);
const found = {};
for (const name of [...checkpoint.names, ...checkpoint.references.keys()]) {
  const { moments, histogram, heat } = await summarize(checkpoint, name, { bins: 10, side: 4 });
  found[name] = { ...moments, histogram: [...histogram], rows: heat.rows, columns: heat.columns, means: [...heat.means] };
}
console.log(JSON.stringify(found));
