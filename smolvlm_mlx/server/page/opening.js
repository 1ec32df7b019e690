// Opening another conversation: one of the server, of a file, or a new one.

import {
  addressed, addressOf, openId, pending, setPlaces, setRunning, show, state,
} from "./conversation.js";
import { $, say } from "./dom.js";
import { leaveAsked, leaveEditing, takeDraft } from "./draft.js";
import { fromRaw, loadMarkdown } from "./message.js";
import { newId } from "./stream.js";

let opening = 0;  // how often something was opened, or is about to be

// Whether nothing else was opened since: what was chosen last is shown, not what comes last.
export function opens() {
  const mine = opening += 1;
  return () => mine === opening;
}

// Open a conversation of which more is here than the server has: an answer is under way. Whether it
// is one.
export function openAnswered(id) {
  if (id === openId() && state.running) return true;
  const { asked } = pending.get(id) ?? {};
  if (asked) showConversation(asked, asked.instructions);
  return Boolean(asked);
}

export function openConversation(id, messages, instructions = $("system").value, kept = []) {
  const asked = { id, messages };
  if (kept.length) setPlaces(asked, kept);
  showConversation(asked, instructions);
}

// The answer under way goes on where it is kept.
function showConversation(asked, instructions) {
  opening += 1;
  state.conversation.instructions = $("system").value;
  if (state.running?.hasBegun) state.running.controller.abort();
  leaveEditing(true);
  state.conversation = asked;
  setRunning(pending.get(asked.id) ?? null);
  $("system").value = instructions;
  const isKept = state.running || asked.messages.some(({ place }) => place);
  const address = isKept ? addressOf(asked.id) : "/";
  if (address !== location.pathname && asked.id !== addressed()) {
    window.history.pushState(null, "", address);
  }
  show(true);
  document.dispatchEvent(new Event("opened"));
  takeDraft();
}

// A conversation as the server has it, or a file; whether it is opened.
export async function openRaw(id, raw, isLatest = opens()) {
  const { instructions, messages } = read(raw);
  if (messages.length) await loadMarkdown();
  if (!isLatest()) return false;
  openConversation(id, messages, instructions, raw.kept);
  const lost = messages.some(({ isPartly }) => isPartly);
  if (lost) say("It has videos of single frames, which are not shown here, and not asked about.");
  leaveAsked();
  return true;
}

export function read({ messages: raw }) {
  const messages = raw.map(fromRaw);
  const [first] = messages;
  const hasInstructions = first?.role === "system" && !first.pictures.length;
  const [instructions, others] = hasInstructions ? [first.text, messages.slice(1)] : ["", messages];
  return { instructions, messages: others };
}

export function openEmpty() {
  openConversation(newId(), []);
}
