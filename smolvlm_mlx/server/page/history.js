// The conversations that the server keeps: the list at the side.

import {
  addressed, isAnswered, openConversation, openEmpty, openId, openRaw,
} from "./conversation.js";
import { $, make, say } from "./dom.js";
import { home, keepPlace } from "./focus.js";
import { call, failure, newId } from "./stream.js";

export async function refresh() {
  const response = await call(`/conversations?words=${encodeURIComponent($("search").value)}`);
  if (!response.ok) return say((await failure(response)).message);
  const { conversations } = await response.json();
  keepPlace($("list"), () => $("list").replaceChildren(...conversations.map(entry)), $("search"));
}

function entry({ id, title }) {
  const name = { textContent: title || "(no words)", title, onclick: () => choose(id) };
  const cross = { textContent: "×", ariaLabel: `Delete ${title}` };
  const button = make("button", name);
  button.setAttribute("aria-current", id === openId());
  return make("li", {}, button, make("button", { ...cross, onclick: () => remove(id, title) }));
}

export async function openKept(id) {
  if (isAnswered(id)) return closeList();  // it is there, and more of it than is kept
  const response = await call(`/conversations/${id}`);
  if (!response.ok) return say((await failure(response)).message);
  openRaw(id, await response.json());
  closeList();
  refresh();
}

async function choose(id) {
  await openKept(id);
  if (id === openId()) home().focus();
}

// Open what the address says.
export async function openAddress() {
  const id = addressed();
  if (!id) return openEmpty();
  const response = await call(`/conversations/${id}`);
  if (response.ok) openRaw(id, await response.json());
  else if (response.status === 404) openConversation(id, []);  // it was never kept
  else say((await failure(response)).message);
  refresh();
}

// A conversation that was saved goes on as one of its own.
export async function openFile(file) {
  try {
    const { messages } = JSON.parse(await file.text());
    if (!messages.every(({ role }) => role)) throw new TypeError("no messages");
    openRaw(newId(), { messages });
    closeList();
  } catch {
    say(`${file.name} is no conversation that was saved`);
  }
}

async function remove(id, title) {
  if (!confirm(`Delete “${title}”?`)) return;
  const response = await call(`/conversations/${id}`, { method: "DELETE" });
  if (!response.ok) return say((await failure(response)).message);
  if (id === openId()) startNew();
  else refresh();
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
