// What of a picture is sent: the file itself, or, if that is large, a smaller picture of which the
// model sees the same.

import { start } from "./start.js";
import { kept } from "./settings.js";

const SMALL = 2 ** 22;  // bytes, which a picture that was made smaller may have as well
const KINDS = ["image/jpeg", "image/png"];  // which the worker writes, too
// How files begin that every browser shows.
const KNOWN = [[0xFF, 0xD8, 0xFF], [0x89, 0x50, 0x4E, 0x47], [0x47, 0x49, 0x46, 0x38], [0x42, 0x4D]];

let before = Promise.resolve();  // one after the other: each takes as much memory as a photo

// Throws where a file is damaged; of kinds that the browser does not know the server says it.
export async function fitting(file) {
  if (!file.size) throw new Error("empty");
  const size = await sizeShown(file);
  if (!size) {
    const first = new Uint8Array(await file.slice(0, 4).arrayBuffer());
    if (KNOWN.some(start => start.every((byte, at) => first[at] === byte))) {
      throw new Error("damaged");
    }
    return file;
  }
  if (file.size <= SMALL || !KINDS.includes(file.type) || await isDeep(file)) return file;
  const edge = await longestEdge();
  const shrunk = before = before.then(() => work({ file, edge, ...size })).catch(() => null);
  const blob = await shrunk;
  return blob && blob.size < file.size ? blob : file;
}

// Whether it is a PNG of 16 bits, which the server makes 8 of in its own way.
async function isDeep(file) {
  const [depth] = new Uint8Array(await file.slice(24, 25).arrayBuffer());
  return file.type === "image/png" && depth === 16;
}

// {width, height}; null where the browser does not show it.
async function sizeShown(file) {
  const image = new Image(), url = URL.createObjectURL(file);
  const shown = new Promise(done => {
    image.onload = () => done(image.naturalWidth ? sizeOf(image) : null);
    image.onerror = () => done(null);
  });
  image.src = url;
  return shown.finally(() => URL.revokeObjectURL(url));
}

// The pixels of a picture's longer side that the server makes tiles of: more are not seen. They may
// be set higher than the checkpoint has it, and lower again.
async function longestEdge() {
  const { about, settings } = await start;
  const setting = settings.find(({ name }) => name === "longest_edge");
  return Math.max(about?.longest_edge ?? Infinity, setting ? Number(kept(setting)) : 0);
}

const sizeOf = ({ naturalWidth: width, naturalHeight: height }) => ({ width, height });

// A blob, or null where there is no need for it. Throws where it cannot be made here.
function work(task) {
  const worker = new Worker(new URL("./resize.js", import.meta.url), { type: "module" });
  return new Promise((done, fail) => {
    worker.onmessage = ({ data }) => done(data);
    worker.onerror = fail;
    worker.postMessage(task);
  }).finally(() => worker.terminate());
}
