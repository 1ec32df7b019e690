// The elements of Markdown's tokens, without HTML in between: what is not named here cannot be.

import { make } from "./dom.js";
import { copyBy } from "./secure.js";

// The element of a block.
export function elements(tokens) {
  const root = make("div");
  const within = [root];  // from the outermost to the innermost
  fill(within, tokens);
  return root.firstChild;
}

function fill(within, tokens) {
  for (const token of tokens) {
    const node = within.at(-1);
    if (token.type === "inline") fill(within, token.children);
    else if (token.hidden) continue;  // the paragraphs of a list whose items are close together
    else if (token.nesting === 0) node.append(leaf(token, within));
    else if (token.nesting < 0) within.pop();
    else within.push(open(token, node));
  }
}

function open({ type, tag, attrs }, parent) {
  const given = Object.fromEntries(attrs ?? []);
  const node = type === "link_open" ? link(given.href, given.title) : make(tag);
  if (type === "heading_open") node.ariaLevel = Math.min(Number(tag[1]) + 2, 6);  // below its message's
  if (given.start) node.start = given.start;
  if (given.style) node.style.textAlign = given.style.replace("text-align:", "");
  parent.append(tag === "table" ? make("div", { className: "table", tabIndex: 0 }, node) : node);
  return node;
}

function link(href, title, text = "") {
  const rel = "noopener noreferrer";
  return make("a", { href, title: title ?? "", target: "_blank", rel, textContent: text });
}

function leaf({ type, content, info, attrs, meta }, within) {
  if (type === "code_inline") return make("code", { textContent: content });
  if (type === "fence" || type === "code_block") return code(content, info.trim().split(/\s/)[0]);
  if (type === "math" || type === "math_inline") return math(content, meta);
  if (type === "image") return image(new Map(attrs).get("src"), content, within);
  if (type === "plain") return make("span", { className: "plain", textContent: content });
  if (type === "hardbreak" || type === "softbreak") return make("br");
  return type === "hr" ? make("hr") : document.createTextNode(content);
}

// Pictures of others are not fetched: there is a link to it.
function image(src, text, within) {
  const isLinked = within.some(({ tagName }) => tagName === "A");
  return isLinked ? document.createTextNode(text) : link(src, "", text || src);
}

// Its source, until richer.js makes a formula of it.
function math(content, { isOpen, isDisplayed }) {
  const given = { className: "math", textContent: content.trim() };
  const node = isDisplayed ? make("div", { ...given, tabIndex: 0 }) : make("span", given);
  if (!isOpen) node.dataset.formula = isDisplayed ? "displayed" : "in text";
  return node;
}

function code(text, language) {
  const node = make("code", { textContent: text.replace(/\n$/, "") });
  if (language) node.dataset.language = language;
  const button = make("button", { type: "button", textContent: "Copy", onclick: copyCode });
  button.setAttribute("aria-label", "Copy code");
  const bar = make("div", { className: "bar" }, make("span", { textContent: language }), button);
  const pre = make("pre", { tabIndex: 0 }, node);
  return make("div", { className: "code", dir: "ltr" }, bar, pre);
}

function copyCode({ currentTarget: button }) {
  copyBy(button, button.closest(".code").querySelector("code").textContent);
}
