// The conversation that is open, as all who work on it find it, and how it is shown.

import { $, announce, say } from "./dom.js";
import { afterMessages, keepFocus } from "./focus.js";
import { messageNode, updateText } from "./message.js";
import { newId } from "./stream.js";
import { showAll } from "./talk.js";
import { welcome } from "./welcome.js";

export const state = {
  // `leaf` is the id of the last message that the server has, as far as this page knows.
  conversation: { id: newId(), messages: [] },
  isKept: true,  // whether the server keeps what is asked
  running: null,  // the answer under way: {asked, controller, hasBegun}, or ELSEWHERE
  editing: null,  // {at, text, pictures}: which message, and what was written before
  buttons: () => [],  // of the message at a place: buttons.js has them
};
export const ELSEWHERE = {};  // stands for an answer that this page has not asked for

// Answers that have not begun, by conversations, also those left since.
export const pending = new Map();

export const openId = () => state.conversation.id;

export function setRunning(answering) {
  if (answering && !state.running) announce("Answering");
  state.running = answering;
}

// Where the history has messages. One of instructions at the front has no place.
export function setPlaces(asked, kept) {
  kept.forEach((place, at) => { asked.messages[at].place = place; });
  asked.leaf = kept.at(-1).id;
}

// ---- showing

export function show(isNew = false) {
  const messages = state.conversation.messages;
  const node = (message, at) => messageNode(
    message,
    state.running ? [] : state.buttons(at),
    picture => removePicture(message, picture),
    state.running && at === messages.length - 1,
  );
  const change = () => {
    $("send").hidden = Boolean(state.running);
    $("stop-answer").hidden = !state.running;
    showAll(messages.length ? messages.map(node) : [welcome], isNew);
  };
  keepFocus(document.querySelector("main"), change, afterMessages);
}

function removePicture(message, picture) {
  message.pictures = message.pictures.filter(other => other !== picture);
  message.parts = message.parts?.filter(part => part !== picture);
  say("");
  show();
}

export function showMore(asked, message) {
  if (asked === state.conversation) updateText($("talk").lastElementChild, message.text);
}

// ---- its address

export const addressOf = id => `/c/${id}`;

// The address is that of what is shown, where another could not be opened.
export function keepAddress() {
  const { id, messages } = state.conversation;
  if (messages.length) window.history.replaceState(null, "", addressOf(id));
}

// The conversation that the address names; "" for none.
export const addressed = () => /^\/c\/([0-9a-f]{8,32})$/.exec(location.pathname)?.[1] ?? "";
