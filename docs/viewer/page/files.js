/** Which checkpoints are among the files that somebody chose or dropped. */

const MOST_FILES = 200_000;
const NAMED = /\.json(\.zst)?$/i;
const SHARD = /^shard-[0-9a-z-]{1,100}\.json(\.zst)?$/;

/** Files of a file input: the path is the one below the directory. */
export const chosenFiles = (list) => Array.from(list, (file) => ({ path: file.webkitRelativePath || file.name, file }));

/** Files of a drop, those in directories too. */
export async function droppedFiles(transfer) {
  const entries = Array.from(transfer.items, (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return chosenFiles(transfer.files);
  const found = [];
  const walk = async (entry) => {
    if (found.length >= MOST_FILES) return;
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ path: entry.fullPath.replace(/^\//, ""), file });
      return;
    }
    const reader = entry.createReader();
    const batch = () => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    for (let some = await batch(); some.length; some = await batch()) for (const child of some) await walk(child);
  };
  for (const entry of entries) await walk(entry);
  return found;
}

/** The files of a directory by name; and those of directories beside it, which steps of a run share, as `../NAME/FILE`. */
class Files extends Map {
  get(name) {
    const found = super.get(name);
    return found || !name.startsWith("../") ? found : this.beside(name.slice(3).split("/"));
  }

  has(name) {
    return this.get(name) !== undefined;
  }
}

/**
 * The checkpoints among files: `{name, input, bytes, changed}`, the newest first; and shards that belong to none.
 * `input` is what `open` takes.
 */
export function checkpointsAmong(files) {
  const folders = new Map();
  for (const { path, file } of files) {
    const cut = path.lastIndexOf("/");
    const folder = path.slice(0, Math.max(cut, 0));
    if (!folders.has(folder)) folders.set(folder, new Map());
    folders.get(folder).set(path.slice(cut + 1), file);
  }
  const found = [];
  const shards = [];
  for (const [folder, members] of folders) {
    if (members.has("manifest.json")) {
      const input = new Files(members);
      input.beside = (path) => folders.get(folder.slice(0, folder.lastIndexOf("/") + 1) + path[0])?.get(path[1]);
      const bytes = [...members.values()].reduce((sum, file) => sum + file.size, 0);
      found.push({ name: folder || "manifest.json", input, bytes, changed: members.get("manifest.json").lastModified });
      continue;
    }
    for (const [name, file] of members) {
      const row = { name: folder ? `${folder}/${name}` : name, input: file, bytes: file.size, changed: file.lastModified };
      if (SHARD.test(name)) shards.push(row);
      else if (files.length === 1 || (NAMED.test(name) && name !== "dataset-metadata.json")) found.push(row);
    }
  }
  found.sort((a, b) => b.changed - a.changed || a.name.localeCompare(b.name));
  return { checkpoints: found, shards };
}
