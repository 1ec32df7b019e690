// The conversations that the server keeps: the list at the side.

import { addressed, keepAddress, openId, state } from "./conversation.js";
import { $, make, say } from "./dom.js";
import { isExpected } from "./draft.js";
import { home, isComposed, keepPlace } from "./focus.js";
import { openAnswered, openConversation, openEmpty, openRaw, opens } from "./opening.js";
import { call, failure, newId } from "./stream.js";

let asked = 0;  // how often; only the last answer is shown

export async function refresh() {
  const words = $("search").value.trim(), number = asked += 1;
  const response = await call(`/conversations?words=${encodeURIComponent(words)}`);
  if (number !== asked) return;
  if (!response.ok) return say((await failure(response)).message);
  const { kept, conversations } = await response.json();
  state.isKept = kept;
  if (number !== asked || $("list").querySelector("input, .menu")) return;  // one is at work there
  keepPlace($("list"), () => $("list").replaceChildren(...conversations.map(entry)), $("search"));
  const none = !kept ? "Nothing is kept: the server was started with --no-history."
    : words ? `No conversation has “${words}”.` : "What you ask is kept here.";
  $("none").textContent = conversations.length ? "" : none;
}

function entry({ id, title }) {
  const shown = title || "(no words)";
  const button = make("button", { textContent: shown, title, onclick: () => choose(id) });
  button.setAttribute("aria-current", id === openId());
  const more = make("button", { className: "more", textContent: "⋯", ariaLabel: `More: ${shown}` });
  more.setAttribute("aria-haspopup", "true");
  const row = make("li", {}, button, more);
  row.dataset.id = id;
  more.onclick = () => openMenu(row, more, [
    ["Rename", () => rename(row, button, id, title)],
    ["Export as Markdown", () => exportMarkdown(id)],
    ["Export as JSON", () => exportJson(id, shown)],
    ["Delete", event => remove(id, shown, row, event)],
  ]);
  return row;
}

function focusOn(id) {
  if (id) [...$("list").children].find(row => row.dataset.id === id)?.firstChild.focus();
}

// ---- what can be done with one

function openMenu(row, more, actions) {
  const menu = make("div", { className: "menu", popover: "auto" });
  menu.append(...actions.map(([textContent, act]) => make("button", {
    textContent,
    onclick: event => {
      menu.remove();
      more.focus();
      act(event);
      refresh();
    },
  })));
  menu.onkeydown = event => {
    if (event.key === "Escape") event.stopPropagation();  // it closes this, and stops no answer
  };
  menu.ontoggle = ({ newState }) => {
    if (newState !== "closed") return;
    menu.remove();
    refresh();
  };
  row.append(menu);
  menu.showPopover();
  const place = () => putBeside(menu, more);
  place();
  window.onresize = place;  // one menu is open at a time
  menu.firstChild.focus();
}

function putBeside(menu, node) {
  const { right, bottom, top } = node.getBoundingClientRect();
  const isBelow = bottom + menu.offsetHeight < innerHeight;
  menu.style.left = `${Math.max(right - menu.offsetWidth, 4)}px`;
  menu.style.top = `${isBelow ? bottom : top - menu.offsetHeight}px`;
}

function rename(row, button, id, title) {
  const field = make("input", { value: title, maxLength: 200, ariaLabel: "Name" });
  button.replaceWith(field);
  field.focus();
  field.select();
  const leave = async isKept => {
    field.onblur = null;
    const had = document.activeElement === field, name = field.value.trim();
    field.replaceWith(button);
    if (had) button.focus();
    if (isKept && name !== title) {
      const path = `/conversations/${id}/title?title=${encodeURIComponent(name)}`;
      const response = await call(path, { method: "POST" });
      if (!response.ok) say((await failure(response)).message);
    }
    refresh();
  };
  field.onblur = () => leave(true);
  field.onkeydown = event => {
    if (isComposed(event) || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();  // it stops no answer
    leave(event.key === "Enter");
  };
}

async function exportMarkdown(id) {
  const response = await call(`/conversations/${id}/markdown`);
  if (!response.ok) return say((await failure(response)).message);
  const [, name] = /filename\*=UTF-8''(.*)$/.exec(response.headers.get("content-disposition"));
  download(await response.blob(), decodeURIComponent(name));
}

// As `openFile` and the terminal's /open read it.
async function exportJson(id, title) {
  const response = await call(`/conversations/${id}`);
  if (!response.ok) return say((await failure(response)).message);
  const { messages } = await response.json();
  const name = title.replace(/[^\p{L}\p{N}.-]+/gu, "-").replace(/^[-.]+|[-.]+$/g, "").slice(0, 60);
  const text = JSON.stringify({ title, messages }, null, 1);
  download(new Blob([text], { type: "application/json" }), `${name || "conversation"}.json`);
}

function download(blob, name) {
  const href = URL.createObjectURL(blob);
  make("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

// The server forgets it a while later, whether this page is still there or not.
async function remove(id, title, row, { detail }) {
  const isOpen = id === openId(), next = row.nextElementSibling ?? row.previousElementSibling;
  if (isOpen) openEmpty();  // its news is none then
  (next?.firstChild ?? home()).focus();
  row.remove();
  const response = await call(`/conversations/${id}?undo=true`, { method: "DELETE" });
  if (!response.ok) {
    say((await failure(response)).message);
    if (isOpen) openKept(id);
    return refresh();
  }
  const { toast } = await import("./toast.js");
  const button = toast(`Deleted “${title}”.`, "Undo", () => restore(id, isOpen));
  if (detail === 0) button.focus();  // it was deleted by the keyboard
  refresh();
}

async function restore(id, wasOpen) {
  const response = await call(`/conversations/${id}/restore`, { method: "POST" });
  if (!response.ok) return say((await failure(response)).message);
  if (wasOpen && !$("text").value && !addressed()) await openKept(id);
  await refresh();
  focusOn(id);
}

export async function openKept(id) {
  if (openAnswered(id)) return closeList();
  const isLatest = opens();
  const response = await call(`/conversations/${id}`);
  if (!response.ok) return say((await failure(response)).message);
  if (!await openRaw(id, await response.json(), isLatest)) return;
  closeList();
  refresh();
}

async function choose(id) {
  await openKept(id);
  if (id === openId()) home().focus();
}

// Open what the address says.
export async function openAddress() {
  const id = addressed(), isLatest = opens();
  if (!id) return openEmpty();
  if (openAnswered(id)) return;
  const response = await call(`/conversations/${id}`);
  if (response.ok) await openRaw(id, await response.json(), isLatest);
  else if (!isLatest()) return;
  else if (response.status === 404) openInstead(id);
  else {
    say((await failure(response)).message);
    keepAddress();
  }
  refresh();
}

// Of an address at which nothing is: another conversation, unless what was asked there just now is
// still to come to the server, or was refused.
function openInstead(id) {
  if (isExpected(id)) return openConversation(id, []);
  window.history.replaceState(null, "", "/");
  openEmpty();
  say("There is no such conversation, or not any more. This is a new one.");
}

// A conversation that was saved goes on as one of its own.
export async function openFile(file) {
  try {
    const { messages } = JSON.parse(await file.text());
    if (!messages.every(({ role }) => role)) throw new TypeError("no messages");
    await openRaw(newId(), { messages });
    closeList();
  } catch {
    say(`${file.name} is no conversation that was saved`);
  }
}

export function startNew() {
  openEmpty();
  closeList();
  refresh();
  home().focus();
}

// On a small screen the list lies over the conversation.
export function toggleList() {
  const listing = document.body.classList.toggle("listing");
  $("list-toggle").setAttribute("aria-expanded", listing);
}

export function closeList() {
  document.body.classList.remove("listing");
  $("list-toggle").setAttribute("aria-expanded", false);
}
