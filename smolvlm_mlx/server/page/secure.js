// What browsers allow on secure pages alone, which a page over http from another machine is not:
// done in another way, or why it cannot be done.

import { announce, make } from "./dom.js";

const COPIED = 1500;  // ms that a button says so

// Copy a text. Throws where the browser refuses.
export async function copy(text) {
  await (navigator.clipboard ? navigator.clipboard.writeText(text) : select(text));
  announce("Copied");
}

async function select(text) {
  const before = document.activeElement;
  const field = make("textarea", { value: text, className: "hidden" });
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  before?.focus({ preventScroll: true });
  if (!isDone) throw new Error("the browser refuses to copy");
}

// Copy a text, and say on the button that does it that it is copied.
export async function copyBy(button, text) {
  await copy(text);
  button.dataset.act = "Copy";
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, COPIED);
}

// Hold a name that one window may have: what gives it back, as the end of the window does; null where
// another has it. Where the browser has none of this, or may keep nothing, all have it.
export async function hold(name) {
  const end = () => {};
  if (!navigator.locks) return end;
  return new Promise(done => {
    navigator.locks.request(name, { ifAvailable: true }, lock => (
      lock ? new Promise(done) : done(null))).catch(() => done(end));
  });
}

// The stream of a camera. Throws where there is none, or none for this page.
export function openStream(width) {
  if (!navigator.mediaDevices) throw new Error(insecure());
  return navigator.mediaDevices.getUserMedia({ video: { width: { ideal: width } } });
}

function insecure() {
  const port = location.port || "80";
  return "browsers open it on secure pages alone. Use https, or a tunnel: on this machine run "
    + `ssh -L ${port}:localhost:${port} ${location.hostname} and open http://localhost:${port}/. `
    + "On a phone + takes photos, too.";
}
