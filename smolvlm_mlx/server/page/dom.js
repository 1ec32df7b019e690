// The elements of the page.

import { remember } from "./store.js";

export const $ = id => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Say above the question what went wrong, or what is being done; "" takes it away.
export function say(text) {
  $("problem").textContent = text;
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
