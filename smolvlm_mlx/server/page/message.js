// How a message looks: {role, text, pictures, interrupted, cut, about, parts}. `cut` says why an
// answer ends before its end; `parts` are texts and pictures in their order, if they are not
// pictures first.

import { make } from "./dom.js";
import { asPart, fromPart, thumbnail } from "./pictures.js";

const LABELS = { user: "You", assistant: "Answer", system: "Instructions" };

// `buttons` are [label, what it does], or nodes; `remove` takes a picture that is wrong out of it.
export function messageNode({ role, text, pictures, interrupted, cut, about }, buttons, remove) {
  const node = make("article", { className: `message ${role}` });
  node.setAttribute("aria-label", LABELS[role] ?? role);
  if (pictures.length) {
    const thumbnails = pictures.map(
      picture => thumbnail(picture, picture.problem && (() => remove(picture))));
    node.append(make("div", { className: "pictures" }, ...thumbnails));
  }
  if (text || role === "assistant") {
    node.append(make("div", { className: "text", textContent: text || "…" }));
  }
  if (cut) node.append(make("div", { className: "cut", textContent: `Cut off: ${cut}` }));
  const notes = [interrupted && !cut && !about && "interrupted", about].filter(Boolean);
  const below = buttons.map(each => {
    if (each instanceof Node) return each;
    const [textContent, onclick] = each;
    return make("button", { textContent, onclick });
  });
  node.append(make("div", { className: "about" }, ...notes, ...below));
  return node;
}

// More of an answer has come.
export function updateText(node, text) {
  node.querySelector(".text").textContent = text;
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
