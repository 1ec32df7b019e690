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

// ---- what this tab remembers, also when it is loaded again

// Pictures are left out where they are too large for that, and all where there is no room at all.
export function remember(name, value) {
  const without = (key, inner) => (key === "url" ? undefined : inner);
  for (const replacer of [null, without]) {
    try {
      return sessionStorage.setItem(name, JSON.stringify(value, replacer));
    } catch { /* too large */ }
  }
  sessionStorage.removeItem(name);
}

export function remembered(name) {
  return JSON.parse(sessionStorage.getItem(name));
}
