// What is dropped: files, whole folders, and pictures of other pages.

const MOST = 100;  // files of folders
const DEEPEST = 16;  // folders within each other
const IN_ORDER = new Intl.Collator(undefined, { numeric: true });  // 2.png before 10.png

// The files of a drop, those of folders that are `wanted` in the order of their names; and why
// others are not there.
export async function gather({ dropped, html, list }, wanted) {
  const found = { files: [], problems: [], passed: 0, wanted };
  for (const each of dropped) {
    if (each.isDirectory) await walk(each, found, 1);
    else found.files.push(each);
  }
  for (const address of dropped.length ? [] : addresses(html, list)) await take(address, found);
  const { files, problems, passed } = found;
  if (passed) problems.push(`Passed over: ${passed} file${passed > 1 ? "s" : ""} of other kinds.`);
  return { files, problems: [...new Set(problems)] };
}

// ---- folders

async function walk(folder, found, depth) {
  let entries;
  try {
    entries = await entriesOf(folder);
  } catch (error) {
    found.problems.push(`${folder.name} cannot be read: ${error.message}`);
    return;
  }
  for (const entry of entries.filter(({ name }) => !name.startsWith("."))) {
    if (found.files.length >= MOST) {
      found.problems.push(`Only the first ${MOST} pictures were added.`);
      return;
    }
    if (entry.isFile) await takeFile(entry, found);
    else if (depth < DEEPEST) await walk(entry, found, depth + 1);
  }
}

async function entriesOf(folder) {
  const reader = folder.createReader(), all = [];
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return all.sort((a, b) => IN_ORDER.compare(a.name, b.name));
    all.push(...some);
  }
}

async function takeFile(entry, found) {
  try {
    const file = await new Promise((done, fail) => entry.file(done, fail));
    if (found.wanted(file)) found.files.push(file);
    else found.passed += 1;
  } catch (error) {
    found.problems.push(`${entry.name} cannot be read: ${error.message}`);
  }
}

// ---- pictures of other pages

function addresses(html, list) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const pictures = [...page.querySelectorAll("img[src]")].map(image => image.getAttribute("src"));
  if (pictures.length) return pictures;
  return list.split(/\r?\n/).filter(line => line && !line.startsWith("#"));
}

async function take(address, { files, problems }) {
  let name = address.slice(0, 80);
  try {
    const url = new URL(address);
    name = url.pathname.split("/").at(-1).slice(-80) || url.host;
    if (url.protocol === "data:") files.push(written(address));
    else if (url.origin === location.origin) files.push(await drawn(address, name));
    else problems.push(elsewhere(url, name));
  } catch {
    problems.push(`${name} is no picture that this page can read`);
  }
}

function elsewhere({ protocol, host }, name) {
  const where = protocol.startsWith("http") ? `is on ${host}` : "belongs to another page";
  return `${name} ${where}, where this page may not look: copy the picture there and paste it here, `
    + "or save it and drop the file.";
}

// The file that a data: URL is.
function written(address) {
  const [, type, encoding, data] = /^data:([^;,]*)[^,]*?(;base64)?,(.*)$/is.exec(address);
  const text = decodeURIComponent(data);
  const bytes = encoding ? Uint8Array.from(atob(text), letter => letter.charCodeAt(0)) : text;
  return new File([bytes], "picture", { type });
}

// A picture of this server's pages, or of memory that they share.
async function drawn(src, name) {
  const image = Object.assign(new Image(), { src });
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(image, 0, 0);
  const blob = await new Promise(done => { canvas.toBlob(done); });
  return new File([blob], name, { type: "image/png" });
}
