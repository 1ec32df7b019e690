// How a message looks: {role, text, pictures, interrupted, cut, about, parts}. `cut` says why an
// answer ends before its end; `parts` are texts and pictures in their order, if they are not
// pictures first.

import { arrange, make } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { asPart, fromPart, thumbnail } from "./pictures.js";
import { showWhenNear } from "./talk.js";

const LABELS = { user: "You", assistant: "Answer", system: "Instructions" };

const nodes = new WeakMap();  // of messages, which keep theirs
const whole = new WeakMap();  // texts that are shown, or will be when one comes near, by their places
const coming = new Map();  // texts that are shown in the next frame, by their nodes

// `buttons` are [label, what it does], or nodes; `remove` takes a picture that is wrong out of it.
export function messageNode(message, buttons, remove) {
  const { role, text, interrupted, cut, about } = message;
  const node = nodes.get(message) ?? make("article", { className: `message ${role}` });
  nodes.set(message, node);
  node.setAttribute("aria-label", LABELS[role] ?? role);
  const notes = [interrupted && !cut && !about && "interrupted", about].filter(Boolean);
  const below = buttons.map(each => {
    if (each instanceof Node) return each;
    const [textContent, onclick] = each;
    return make("button", { textContent, onclick });
  });
  arrange(node, [
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
  if (role !== "assistant" || !text) {
    place.textContent = text || "…";
  } else if (whole.get(place) !== text) {
    whole.set(place, text);
    if (!place.hasChildNodes()) place.append(make("p", { className: "plain", textContent: text }));
    showWhenNear(node, () => showMarkdown(place, text, true));
  }
  return place;
}

// More of an answer has come.
export function updateText(node, text) {
  if (!coming.size) requestAnimationFrame(showComing);
  coming.set(node, text);
}

function showComing() {
  for (const [node, text] of coming) {
    const place = node.querySelector(".text");
    whole.delete(place);
    showMarkdown(place, text, false);
  }
  coming.clear();
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
  const parts = given.map(part => (
    part.type === "text" ? part.text : fromPart(part))).filter(part => part !== null);
  const isText = part => typeof part === "string";
  if (!parts.every(part => isText(part) || part?.url)) throw new TypeError("a text that is none");
  const text = parts.filter(isText).join("\n");
  return { role, text, pictures: parts.filter(part => !isText(part)), interrupted, parts };
}
