// What was done, for some seconds, and how to take it back.

import { $, make } from "./dom.js";

const SHOWN = 10_000;  // ms; the server forgets what is not taken back a while later

// A note with a button. It stays as long as one points at it, or is in it.
export function toast(text, label, act) {
  const button = make("button", { textContent: label });
  const node = make("div", { className: "toast" }, make("span", { textContent: text }), button);
  let timer;
  const hold = () => clearTimeout(timer);
  const leave = () => {
    hold();
    timer = setTimeout(() => node.remove(), SHOWN);
  };
  button.onclick = () => {
    hold();
    node.remove();
    act();
  };
  node.addEventListener("pointerenter", hold);
  node.addEventListener("focusin", hold);
  for (const left of ["pointerleave", "focusout"]) {
    node.addEventListener(left, () => {
      if (!node.matches(":hover, :focus-within")) leave();
    });
  }
  $("toasts").append(node);
  leave();
  return button;
}
