// How a message looks: {role, text, pictures, interrupted, about}.

import { make } from "./dom.js";
import { thumbnail } from "./pictures.js";

// `buttons` are [label, what it does].
export function messageNode({ role, text, pictures, interrupted, about }, buttons) {
  const node = make("article", { className: `message ${role}` });
  node.setAttribute("aria-label", role === "user" ? "You" : "Answer");
  if (pictures.length) {
    const thumbnails = pictures.map(picture => thumbnail(picture));
    node.append(make("div", { className: "pictures" }, ...thumbnails));
  }
  if (text || role === "assistant") {
    node.append(make("div", { className: "text", textContent: text || "…" }));
  }
  const notes = [interrupted && "interrupted", about].filter(Boolean);
  const below = buttons.map(([textContent, onclick]) => make("button", { textContent, onclick }));
  node.append(make("div", { className: "about" }, ...notes, ...below));
  return node;
}

// More of an answer has come.
export function updateText(node, text) {
  node.querySelector(".text").textContent = text;
}
