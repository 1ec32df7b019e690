// Where the focus goes when what had it goes away: it is never lost, so that one can go on by
// keyboard.

const CONTROLS = "button, input, select, textarea, a, summary, video";

// Also while it says that it is done.
export const nameOf = node => node.ariaLabel ?? node.dataset.act ?? node.textContent;

// Whether a key belongs to an input method that is at work, as of Chinese: the Enter that takes its
// word has this code in Safari, where the composing is over by then.
export const isComposed = ({ isComposing, keyCode }) => isComposing || keyCode === 229;

const isThere = node => node.isConnected && node.checkVisibility() && !node.disabled;

// Where one goes on. On a touch screen the field would open the keyboard over what was answered.
export function home() {
  const isTouched = matchMedia("(hover: none) and (pointer: coarse)").matches;
  return document.getElementById(isTouched ? "talk" : "text");
}

// Change what is in an element. If the control in it that has the focus goes away, the nearest of
// the same name gets it, or else the first that is there of `next(controls, at, before)`: those that
// are in the element now, and the place of the one that is gone.
export function keepFocus(parent, change, next = () => []) {
  const before = document.activeElement;
  const at = [...parent.querySelectorAll(CONTROLS)].indexOf(before);
  const isIn = parent.contains(before);
  change();
  if (!isIn || isThere(before)) return;
  const now = [...parent.querySelectorAll(CONTROLS)].filter(isThere);
  const alike = at < 0 ? [] : now.filter(node => nameOf(node) === nameOf(before));
  const far = node => Math.abs(now.indexOf(node) - at);
  const [nearest] = alike.sort((one, other) => far(one) - far(other));
  const others = [nearest, ...next(now, at, before), home()];
  others.find(node => node && isThere(node)).focus({ preventScroll: true });
}

// The same for a list: the next item, or the last.
export function keepPlace(list, change, ...others) {
  keepFocus(list, change, (now, at) => [now[at] ?? now.at(-1), ...others]);
}

const stop = document.getElementById("stop-answer");

let pressed = "";  // the button of a message whose focus Stop has

stop.addEventListener("blur", () => { if (!stop.hidden) pressed = ""; });

// For messages: from Retry and Continue to Stop, and at the end back to where they were.
export function afterMessages(controls, at, before) {
  if (isThere(stop) && before.form !== stop.form) {
    pressed = nameOf(before);
    return [stop];
  }
  const wanted = pressed ? [pressed, "Retry"] : [];
  return wanted.map(name => controls.findLast(control => nameOf(control) === name));
}

// A dialog gives the focus back to what had it; that may be gone, or may have been nothing.
document.addEventListener("close", () => {
  const now = document.activeElement;
  if (now === document.body || !isThere(now)) home().focus();
}, true);
