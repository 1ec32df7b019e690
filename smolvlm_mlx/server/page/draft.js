// What is in the question's field: a question that is edited, or was refused, or of which nobody knows
// whether the server has it.

import { state } from "./conversation.js";
import { $, say, write } from "./dom.js";
import { exchangeWaiting } from "./pictures.js";
import { remember, remembered } from "./store.js";

// {text, pictures, at} that were refused, or left in the midst of an edit, by conversations.
export const drafts = new Map();

// ---- editing

export function edit(at) {
  const { text, pictures } = state.conversation.messages[at];
  const before = exchangeWaiting(pictures), written = $("text").value, { editing } = state;
  const draft = isChanged() ? [editing.text, written].filter(Boolean).join("\n") : editing?.text;
  state.editing = editing ? { ...editing, at, text: draft } : { at, text: written, pictures: before };
  write(text);
  $("text").focus();
  say("Editing a question: what came after it will be asked anew. Escape leaves it as it is.");
}

// Whether an edited question has other words now.
function isChanged() {
  const { editing, conversation: { messages } } = state;
  return Boolean(editing) && $("text").value !== messages[editing.at]?.text;
}

// What was written of it is gone, or, if another conversation is opened, there again with this one.
export function leaveEditing(isOpening = false) {
  if (state.editing) {
    const { at, text: draft, pictures } = state.editing;
    const text = $("text").value, isDraft = isOpening && isChanged();
    write(draft);
    const waited = exchangeWaiting(pictures);
    if (isDraft) drafts.set(state.conversation.id, { text, pictures: waited, at });
  }
  state.editing = null;
  say("");
}

// The question that is edited is not there any more: what was written of it stays.
export function loseEdited() {
  const { text, pictures } = state.editing;
  state.editing = null;
  write([$("text").value, text].filter(Boolean).join("\n"));
  exchangeWaiting([...exchangeWaiting([]), ...pictures]);
}

// What was refused is in the field again, where it was asked.
export function takeDraft() {
  const { text, pictures, at } = drafts.get(state.conversation.id) ?? {};
  if (!drafts.delete(state.conversation.id)) return;
  if (at !== undefined) {
    state.editing = { at, text: $("text").value, pictures: exchangeWaiting(pictures) };
    write(text);
  } else {
    write([text, $("text").value].filter(Boolean).join("\n"));
    exchangeWaiting([...pictures, ...exchangeWaiting([])]);
  }
}

// ---- a question of which nobody knows whether the server has it: its connection broke, or its page
// was loaded again. It is in the field until the server shows it.

export const isAwaited = id => remembered("asked")?.id === id;

// Whether there is more to come of a conversation that the server has not.
export const isExpected = id => isAwaited(id) || drafts.has(id);

// What was asked before the page was loaded again is in the field, as what was written since.
export function recallAsked() {
  const asked = remembered("asked"), now = $("text").value;
  if (!asked || asked.isBack) return;
  remember("asked", { ...asked, isBack: true });
  write([asked.text, now].filter(Boolean).join("\n"));
  exchangeWaiting([...asked.pictures.filter(({ url }) => url), ...exchangeWaiting([])]);
}

export function leaveAsked() {
  const asked = remembered("asked"), { text, place } = state.conversation.messages[asked?.at] ?? {};
  if (!isAwaited(state.conversation.id) || text !== asked.text || place?.id === asked.place) return;
  remember("asked", null);
  const now = $("text").value.trim(), rest = `${asked.text}\n`;
  if (now !== asked.text && !now.startsWith(rest)) return;
  write(now.slice(rest.length));
  exchangeWaiting(exchangeWaiting([]).slice(asked.pictures.length));
}
