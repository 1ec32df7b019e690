// How a message looks: {role, text, pictures, interrupted, cut, about, parts}. `cut` says why an
// answer ends before its end; `parts` are texts and pictures in their order, if they are not
// pictures first.

import { arrange, make } from "./dom.js";
import { asPart, fromPart, thumbnail } from "./pictures.js";
import { showWhenNear } from "./talk.js";

const LABELS = { user: "You", assistant: "Answer", system: "Instructions" };

const nodes = new WeakMap();  // of messages, which keep theirs
const whole = new WeakMap();  // texts that are shown, or will be when one comes near, by their places
const coming = new Map();  // texts that are shown in the next frame, by their nodes
const plain = new Map();  // [text, is it whole] that are no Markdown yet, by their places

let markdown = null;  // the module, which is loaded with the first answer
let loading = null;  // the promise of that

// `buttons` are [label, what it does], or nodes; `remove` takes a picture that is wrong out of it; of
// one that is still coming nothing is said.
export function messageNode(message, buttons, remove, isComing) {
  const { role, text, interrupted, cut, about } = message;
  const node = nodes.get(message) ?? make("article", { className: `message ${role}` });
  nodes.set(message, node);
  node.tabIndex = -1;  // keys go to it
  node.setAttribute("aria-label", LABELS[role] ?? role);
  const isShort = interrupted && !cut && !about && !isComing;
  const notes = [isShort && "interrupted", about].filter(Boolean);
  const below = buttons.map(each => {
    if (each instanceof Node) return each;
    const [textContent, onclick] = each;
    return make("button", { textContent, onclick });
  });
  arrange(node, [
    node.firstElementChild ?? make("h2", { className: "hidden", textContent: node.ariaLabel }),
    picturesNode(node, message, remove),
    text || role === "assistant" ? textNode(node, message) : null,
    cut ? make("div", { className: "cut", textContent: `Cut off: ${cut}` }) : null,
    make("div", { className: "about" }, ...notes, ...below),
  ].filter(Boolean));
  return node;
}

// The pictures as they are there, or anew if they have changed.
function picturesNode(node, { pictures }, remove) {
  const key = JSON.stringify(pictures.map(({ name, problem }) => [name, problem]));
  const before = node.querySelector(".pictures");
  if (!pictures.length || before?.dataset.shown === key) return pictures.length ? before : null;
  const thumbnails = pictures.map(
    picture => thumbnail(picture, picture.problem && (() => remove(picture))));
  const made = make("div", { className: "pictures" }, ...thumbnails);
  made.dataset.shown = key;
  return made;
}

// Answers are Markdown, and until one comes near, text; what people write is shown as they wrote it.
function textNode(node, { role, text }) {
  const place = node.querySelector(".text") ?? make("div", { className: "text", dir: "auto" });
  coming.delete(node);
  if (role === "assistant") loadMarkdown();
  if (role !== "assistant" || !text) {
    const shown = text || "…";
    if (place.textContent !== shown) place.textContent = shown;  // or no selection stays
  } else if (whole.get(place) !== text) {
    whole.set(place, text);
    if (!place.hasChildNodes()) place.append(source(text));
    showWhenNear(node, () => showAnswer(place, text, true));
  }
  return place;
}

const source = text => make("p", { className: "plain", dir: "auto", textContent: text });

function showAnswer(place, text, isWhole) {
  if (markdown) return markdown.showMarkdown(place, text, isWhole);
  plain.set(place, [text, isWhole]);
  arrange(place, [source(text)]);
  loadMarkdown();
}

// Answers are shown as they are when this is done, which needs no time but the first.
export function loadMarkdown() {
  loading ??= import("./markdown.js").then(module => {
    markdown = module;
    for (const [place, said] of plain) module.showMarkdown(place, ...said);
    plain.clear();
  }, () => { loading = null; });
  return loading;
}

// Whether a text ends in the same words twice, as an answer does that was ended because it went in
// circles. Spaces do not count. The server's `generation/repetition.py` has the same.
export function endsTwice(text) {
  const bare = text.slice(-4096).replace(/\s+/g, "");
  for (let length = 8; 2 * length <= bare.length; length += 1) {
    if (bare.endsWith(bare.slice(-2 * length, -length))) return true;
  }
  return false;
}

// More of an answer has come.
export function updateText(node, text) {
  if (!coming.size) requestAnimationFrame(showComing);
  coming.set(node, text);
}

function showComing() {
  const came = [...coming];
  coming.clear();
  for (const [node, text] of came) {
    const place = node.querySelector(".text");
    whole.delete(place);
    showAnswer(place, text, false);
  }
}

const BLOCKS = "p, li, td, th, pre, div, br, h1, h2, h3, h4, h5, h6";

// What a screen reader is told of an answer: its text as it is shown, and whether that is all.
export async function spoken(message) {
  const { role, text, cut, interrupted } = message;
  if (role !== "assistant" || !text) return "";
  await loadMarkdown();
  const copy = nodes.get(message).querySelector(".text").cloneNode(true);
  for (const node of copy.querySelectorAll(".bar, annotation")) node.remove();
  for (const node of copy.querySelectorAll(BLOCKS)) node.append(" ");
  const end = cut ? `Cut off: ${cut}` : interrupted ? "The answer is not whole." : "";
  return `${copy.textContent} ${end}`.replace(/\s+/g, " ").trim();
}

// ---- as the server and files have it

// The texts and pictures of a message, in the order in which they are sent.
export function partsOf({ text, pictures, parts }) {
  return parts ?? [...pictures, text];
}

export function toRaw(message) {
  const { role, interrupted } = message;
  const content = partsOf(message).map(part => (
    typeof part === "string" ? { type: "text", text: part } : asPart(part)));
  return interrupted ? { role, content, interrupted } : { role, content };
}

// A message of the history, of a file, or of another client.
export function fromRaw({ role, content, interrupted }) {
  const given = typeof content === "string" ? [{ type: "text", text: content }] : content ?? [];
  const all = given.map(part => (part.type === "text" ? part.text : fromPart(part)));
  const parts = all.filter(part => part !== null), isPartly = parts.length < all.length;
  const isText = part => typeof part === "string";
  if (!parts.every(part => isText(part) || part?.url)) throw new TypeError("a text that is none");
  const text = parts.filter(isText).join("\n");
  return { role, text, pictures: parts.filter(part => !isText(part)), interrupted, parts, isPartly };
}
