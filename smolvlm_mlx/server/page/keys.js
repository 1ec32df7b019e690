// Keys of the page, and the list of them. Letters work where nobody types; a key with Ctrl, Alt or
// Meta is the browser's.

import { leave } from "./asking.js";
import { $, make } from "./dom.js";
import { isComposed, nameOf } from "./focus.js";
import { closeList, toggleList } from "./history.js";
import { everywhere } from "./store.js";

// [key, what it does, how]: the id of what it clicks, or a function.
const KEYS = [
  ["?", "List of keys", "open-keys"],
  ["q", "Write a question", () => $("text").focus()],
  ["n", "New conversation", "new"],
  ["s", "Search the conversations", search],
  ["k", "Go to the message before", () => go(-1)],
  ["j", "Go to the next message", () => go(1)],
  ["r", "Retry: another answer", () => press("Retry")],
  ["g", "Go on with an answer that was cut off", () => press("Continue")],
  ["e", "Edit the last question", () => press("Edit")],
  ["c", "Copy the last answer", () => press("Copy")],
  ["l", "Live: the camera on or off", "live-toggle"],
  [",", "Settings", "open-settings"],
];
const ALWAYS = [
  ["Enter", "Send the question"],
  ["Shift Enter", "A new line in it"],
  ["Escape", "Stop the answer, or leave what is open, edited or written"],
];
const TYPED_INTO = "textarea, select, input:not([type=checkbox]), [contenteditable]";

// The newest message that offers it.
function press(label) {
  const buttons = [...$("talk").querySelectorAll(".about button")];
  buttons.findLast(button => nameOf(button) === label)?.click();
}

function search() {
  if (!$("search").checkVisibility()) toggleList();
  $("search").focus();
}

// From the message that has the focus, or the newest.
function go(by) {
  const messages = [...$("talk").querySelectorAll(".message")];
  const at = messages.indexOf(document.activeElement.closest(".message"));
  const to = at < 0 ? messages.length - 1 : Math.min(Math.max(at + by, 0), messages.length - 1);
  messages[to]?.focus();
}

function escape(target) {
  if (target === $("search") && target.value) return;  // the browser empties it
  if (document.body.classList.contains("listing")) {
    closeList();
    $("list-toggle").focus();
  } else if (target === $("search") || !leave()) {
    $("talk").focus();
  }
}

addEventListener("keydown", event => {
  const { key, target, repeat, ctrlKey, altKey, metaKey } = event;
  if (event.defaultPrevented || isComposed(event) || document.querySelector("dialog[open]")) return;
  if (key === "Escape") return escape(target);
  const does = KEYS.find(([name]) => name === key)?.[2];
  if (!does || repeat || ctrlKey || altKey || metaKey || !$("letters").checked) return;
  if (target.matches?.(TYPED_INTO)) return;
  event.preventDefault();
  if (typeof does === "string") $(does).click();
  else does();
  if (document.activeElement === document.body) $("talk").focus({ preventScroll: true });
});

// ---- the list

function row([key, title]) {
  const keys = key.split(" ").flatMap(name => [make("kbd", { textContent: name }), " "]);
  return make("div", {}, make("dt", {}, ...keys), make("dd", { textContent: title }));
}

function setLetters() {
  everywhere.set("letters", $("letters").checked ? "on" : "off");
  for (const [key, , does] of KEYS) {
    if (typeof does !== "string") continue;
    if ($("letters").checked) $(does).setAttribute("aria-keyshortcuts", key);
    else $(does).removeAttribute("aria-keyshortcuts");
  }
}

$("open-keys").onclick = () => $("keys").showModal();
$("keys-list").append(...[...KEYS, ...ALWAYS].map(row));
$("letters").checked = everywhere.get("letters") !== "off";
$("letters").onchange = setLetters;
setLetters();
