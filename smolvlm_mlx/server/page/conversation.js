// The conversation that is open: its messages, asking, and answers as they come.

import { $, grow, make, say } from "./dom.js";
import { messageNode, updateText } from "./message.js";
import { asPart, exchangeWaiting } from "./pictures.js";
import { chosen } from "./settings.js";
import { complete, newId } from "./stream.js";

let conversation = { id: newId(), messages: [] };
let running = null;  // the AbortController of the answer under way
let editing = null;  // which message

export const openId = () => conversation.id;

// ---- showing

export function show() {
  const messages = conversation.messages;
  const empty = { className: "empty", textContent: "Drop a picture, paste one, or just ask." };
  const nodes = messages.map((message, at) => messageNode(message, running ? [] : buttons(at)));
  $("talk").replaceChildren(...(nodes.length ? nodes : [make("p", empty)]));
  $("talk").scrollTop = $("talk").scrollHeight;
}

function buttons(at) {
  const { role, text } = conversation.messages[at];
  if (role === "user") return [["Edit", () => edit(at)]];
  const copy = ["Copy", () => navigator.clipboard.writeText(text)];
  return at === conversation.messages.length - 1 ? [copy, ["Retry", retry]] : [copy];
}

function showMore(asked, message) {
  if (asked !== conversation) return;
  const talk = $("talk");
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  updateText(talk.lastElementChild, message.text);
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop-answer").hidden = !controller;
}

// ---- asking

export function ask() {
  const text = $("text").value.trim();
  if (!text || running) return;
  if (editing !== null) conversation.messages.length = editing;
  editing = null;
  conversation.messages.push({ role: "user", text, pictures: exchangeWaiting([]) });
  $("text").value = "";
  grow();
  answer();
}

function retry() {
  conversation.messages.pop();
  answer();
}

async function request() {
  const messages = conversation.messages.map(({ role, text, pictures }) => (
    { role, content: [...pictures.map(picture => asPart(picture)), { type: "text", text }] }));
  const instructions = $("system").value.trim();
  if (instructions) messages.unshift({ role: "system", content: instructions });
  return { messages, conversation: conversation.id, ...await chosen() };
}

async function answer() {
  say("");
  const asked = conversation;
  const controller = new AbortController();
  const chunks = complete(request(), controller.signal);
  const message = { role: "assistant", text: "", pictures: [], interrupted: true };
  asked.messages.push(message);
  setRunning(controller);
  show();
  try {
    for await (const { choices: [choice], usage } of chunks) {
      message.text += choice?.delta.content ?? "";
      if (choice?.delta.content) showMore(asked, message);
      if (choice?.finish_reason) message.interrupted = false;
      if (usage) message.about = usage.timing.about;
    }
  } catch (error) {
    if (error.name !== "AbortError") failed(asked, error);
  }
  setRunning(null);
  if (asked === conversation) show();
  document.dispatchEvent(new Event("answered"));
}

function failed(asked, error) {
  asked.messages.pop();
  say(error.message);
  if (error.forget) offerRoom(asked, error.forget.messages);
}

// Nothing is forgotten unasked. The server says how many messages the oldest turn has.
function offerRoom(asked, count) {
  const forget = keepPictures => {
    const first = asked.messages.findIndex(message => message.role === "user");
    const gone = asked.messages.splice(first, count);
    const pictures = gone.flatMap(message => message.pictures);
    if (keepPictures) asked.messages[first].pictures.unshift(...pictures);
    if (asked === conversation) answer();
  };
  const button = (textContent, onclick) => make("button", { type: "button", textContent, onclick });
  $("problem").append(button("Forget the oldest turn", () => forget(false)),
    button("… but keep its pictures", () => forget(true)));
}

// ---- editing, stopping, and other conversations

function edit(at) {
  const { text, pictures } = conversation.messages[at];
  editing = at;
  exchangeWaiting(pictures);
  $("text").value = text;
  grow();
  $("text").focus();
  say("Editing a question: what came after it will be asked anew. Escape leaves it as it is.");
}

function leaveEditing() {
  if (editing !== null) {
    $("text").value = "";
    exchangeWaiting([]);
  }
  editing = null;
  say("");
}

export function stopAnswer() {
  running?.abort();
}

// What Escape does: stop the answer, or leave the question that is edited as it is.
export function leave() {
  if (running) stopAnswer();
  else leaveEditing();
}

export function openConversation(id, messages) {
  stopAnswer();
  conversation = { id, messages };
  leaveEditing();
  show();
}

export function openEmpty() {
  openConversation(newId(), []);
}
