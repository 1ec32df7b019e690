// The elements of the page.

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

// Make the question's field as high as its text.
export function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`;
}
