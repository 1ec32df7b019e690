// The conversations that the server keeps: the list at the side.

import { openConversation, openEmpty, openId } from "./conversation.js";
import { $, make, say } from "./dom.js";
import { fromPart } from "./pictures.js";
import { call, failure } from "./stream.js";

export async function refresh() {
  const response = await call(`/conversations?words=${encodeURIComponent($("search").value)}`);
  if (response.status === 401) {
    return say("No valid token: open the address that the server printed.");
  }
  if (!response.ok) return say((await failure(response)).message);
  const { conversations } = await response.json();
  $("list").replaceChildren(...conversations.map(entry));
}

function entry({ id, title }) {
  const name = { textContent: title || "(no words)", title, onclick: () => openKept(id) };
  const cross = { textContent: "×", ariaLabel: `Delete ${title}` };
  const button = make("button", name);
  button.setAttribute("aria-current", id === openId());
  return make("li", {}, button, make("button", { ...cross, onclick: () => remove(id, title) }));
}

export async function openKept(id) {
  const response = await call(`/conversations/${id}`);
  if (!response.ok) return say((await failure(response)).message);
  const messages = (await response.json()).messages.map(fromKept);
  const isSystem = message => message.role === "system";
  $("system").value = messages.find(isSystem)?.text ?? "";
  openConversation(id, messages.filter(message => !isSystem(message)));
  closeList();
  refresh();
}

// A message of the history, as the page has it.
function fromKept({ role, content, interrupted }) {
  const isText = part => part.type === "text";
  const text = content.filter(isText).map(part => part.text).join("\n");
  const pictures = content.filter(part => !isText(part)).map(fromPart);
  return { role, text, pictures, interrupted };
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
  $("text").focus();
}

// On a small screen the list lies over the conversation.
export function toggleList() {
  const listing = document.body.classList.toggle("listing");
  $("list-toggle").setAttribute("aria-expanded", listing);
}

function closeList() {
  document.body.classList.remove("listing");
  $("list-toggle").setAttribute("aria-expanded", false);
}
