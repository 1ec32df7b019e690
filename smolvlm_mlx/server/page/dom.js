// The elements of the page.

import { keepFocus } from "./focus.js";
import { remember } from "./store.js";

export const $ = id => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Let an element hold these children. Those that it has already are not moved.
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  children.forEach((child, at) => {
    const there = parent.childNodes[at];
    if (there !== child) parent.insertBefore(child, there ?? null);
  });
}

// Make a node equal to another. What is equal in both stays as it is, so that a selection in it
// stays; returns the node that is there then.
export function become(node, other) {
  if (node.isEqualNode(other)) return node;
  if (node.nodeName !== other.nodeName) {
    node.replaceWith(other);
    return other;
  }
  if (node.nodeType === Node.TEXT_NODE) {
    let same = 0;
    while (same < node.length && node.data[same] === other.data[same]) same += 1;
    node.replaceData(same, node.length - same, other.data.slice(same));
    return node;
  }
  for (const { name } of [...node.attributes]) {
    if (!other.hasAttribute(name)) node.removeAttribute(name);
  }
  for (const { name, value } of other.attributes) {
    if (name === "style") node.style.cssText = value;  // the policy allows it so alone
    else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  const children = [...other.childNodes];
  children.forEach((child, at) => {
    if (node.childNodes[at]) become(node.childNodes[at], child);
    else node.append(child);
  });
  while (node.childNodes.length > children.length) node.lastChild.remove();
  return node;
}

// Say above the question what went wrong, or what is being done; "" takes it away. Screen readers say
// it at once, and not again while it stays.
export function say(text) {
  if ($("problem").textContent === text) return;
  keepFocus($("problem"), () => { $("problem").textContent = text; });
}

const SAID = 5000;  // ms, in which screen readers take it

let forgetting = 0;

// Tell screen readers alone, when they have said what they are at.
export function announce(text) {
  clearTimeout(forgetting);
  $("status").textContent = text;
  forgetting = setTimeout(() => { $("status").textContent = ""; }, SAID);
}

// Write into the question's field. What is there stays when the page is loaded again.
export function write(text) {
  $("text").value = text;
  written();
}

// The question's field has changed: make it as high as its text.
export function written() {
  remember("question", $("text").value);
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`;
}
