// The conversation that is open: its messages, asking, and answers as they come.

import { $, make, say, write } from "./dom.js";
import { messageNode, partsOf, toRaw, updateText } from "./message.js";
import { exchangeWaiting, showWaiting } from "./pictures.js";
import { chosen } from "./settings.js";
import { remember, remembered } from "./store.js";
import { complete, newId } from "./stream.js";
import { showAll } from "./talk.js";

// `known` are the versions that the history may have of it, which this page has read or asked for.
let conversation = { id: newId(), messages: [], known: [] };
let running = null;  // the AbortController of the answer under way
let editing = null;  // which message

const NOT_ALONE = "This conversation has gone on elsewhere. What is said here is kept beside it, as "
  + "a conversation of its own.";

export const openId = () => conversation.id;

// ---- showing

export function show() {
  const messages = conversation.messages;
  const empty = { className: "empty", textContent: "Drop a picture, paste one, or just ask." };
  const nodes = messages.map((message, at) => messageNode(
    message, running ? [] : buttons(at), picture => removePicture(message, picture)));
  showAll(nodes.length ? nodes : [make("p", empty)]);
}

function buttons(at) {
  const { role, text } = conversation.messages[at];
  if (role === "user") return [["Edit", () => edit(at)]];
  if (role !== "assistant") return [];
  const copy = ["Copy", () => navigator.clipboard.writeText(text)];
  return at === conversation.messages.length - 1 ? [copy, ["Retry", retry]] : [copy];
}

function removePicture(message, picture) {
  message.pictures = message.pictures.filter(other => other !== picture);
  message.parts = message.parts?.filter(part => part !== picture);
  say("");
  show();
}

function showMore(asked, message) {
  if (asked === conversation) updateText($("talk").lastElementChild, message.text);
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
  const asked = conversation, before = [...asked.messages], at = editing;
  const pictures = exchangeWaiting([]);
  for (const picture of pictures) delete picture.problem;
  if (at !== null) asked.messages.length = at;
  editing = null;
  asked.messages.push({ role: "user", text, pictures });
  write("");
  answer(ask, () => {
    asked.messages = before;
    if (asked !== conversation) return;
    editing = at;
    write([text, $("text").value].filter(Boolean).join("\n"));
    exchangeWaiting([...pictures, ...exchangeWaiting([])]);
  });
}

function retry() {
  const asked = conversation, before = asked.messages.pop();
  answer(retry, () => asked.messages.push(before));
}

async function request(version) {
  const messages = conversation.messages.map(toRaw);
  const instructions = $("system").value.trim();
  if (instructions) messages.unshift({ role: "system", content: instructions });
  const { id, known } = conversation;
  return { messages, conversation: { id, known, version }, ...await chosen() };
}

// Answer the last message. Where no answer begins, `takeBack` makes all as it was before `again`
// was done.
async function answer(again, takeBack) {
  say("");
  const asked = conversation, version = newId(), sent = [...asked.messages];
  const controller = new AbortController();
  const chunks = complete(request(version), controller.signal);
  const message = { role: "assistant", text: "", pictures: [], interrupted: true };
  asked.messages.push(message);
  setRunning(controller);
  show();
  remember("open", asked.id);
  remember("instructions", { id: asked.id, text: $("system").value });
  asked.known = [...asked.known.slice(0, 1), ...asked.known.slice(1).slice(-60), version];
  try {
    for await (const chunk of chunks) takeChunk(asked, message, version, chunk);
    for (const name of ["cut", "instructions"]) {
      if (remembered(name)?.id === asked.id) remember(name, null);
    }
  } catch (error) {
    if (error.name !== "AbortError") failed(asked, sent, message, error, again, takeBack);
    controller.abort();  // a server that comes back is not to go on with it
  }
  setRunning(null);
  if (asked === conversation) show();
  document.dispatchEvent(new Event("answered"));
}

function takeChunk(asked, message, version, chunk) {
  const { choices: [choice], usage, notice, conversation: keptAs } = chunk;
  message.text += choice?.delta.content ?? "";
  if (choice?.delta.content) showMore(asked, message);
  if (choice?.finish_reason) delete message.interrupted;
  if (usage) message.about = usage.timing.about;
  if (notice && asked === conversation) say(notice);
  if (!keptAs) return;
  asked.known = [version];
  if (keptAs === asked.id) return;
  asked.id = keptAs;
  if (asked !== conversation) return;
  remember("open", keptAs);
  say(NOT_ALONE);
}

// ---- what fails

function failed(asked, sent, message, error, again, takeBack) {
  if (message.text) {
    message.cut = error.message;
    const last = asked.messages.slice(-2);
    remember("cut", { id: asked.id, known: asked.known, before: asked.messages.length - 2, last });
    return;
  }
  asked.messages.pop();
  takeBack();
  if (asked !== conversation) return;
  say(error.message);
  const wrong = pictureOf(sent, error);
  if (wrong) wrong.problem = error.message.replace(/^messages\.[\w.]*: /, "");
  if (wrong) say("A picture cannot be used: remove it, and send again.");
  showWaiting();
  if (error.forget) offerRoom(asked, error.forget.messages, again);
}

// Which picture of the messages that were sent an error is about.
function pictureOf(sent, { param, message }) {
  const [, at, number] = /^messages\.(\d+)\.content\.(\d+)/.exec(param ?? "") ?? [];
  const instructions = $("system").value.trim() ? 1 : 0;
  if (at) return partsOf(sent[at - instructions])[number];
  const named = sent.flatMap(({ pictures }) => pictures).filter(({ name }) => message.includes(name));
  return named.length === 1 ? named[0] : undefined;
}

// Nothing is forgotten unasked. The server says how many messages the oldest turn has.
function offerRoom(asked, count, again) {
  const forget = keepPictures => {
    if (asked !== conversation || running) return;
    const first = asked.messages.findIndex(message => message.role === "user");
    const gone = asked.messages.splice(first, count);
    const pictures = gone.flatMap(message => message.pictures);
    const next = asked.messages[first];
    if (editing !== null) editing -= count;
    if (keepPictures && next && editing !== first) {
      next.pictures.unshift(...pictures);
      next.parts?.unshift(...pictures);
    } else if (keepPictures) {
      exchangeWaiting([...pictures, ...exchangeWaiting([])]);
    }
    again();
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
  write(text);
  $("text").focus();
  say("Editing a question: what came after it will be asked anew. Escape leaves it as it is.");
}

function leaveEditing() {
  if (editing !== null) {
    write("");
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

// Whether an answer of this conversation is under way.
export const isAnswered = id => Boolean(running) && id === conversation.id;

// The instructions with which this tab asked last are still those if no answer came.
export function openConversation(id, messages, known, instructions = $("system").value) {
  stopAnswer();
  leaveEditing();
  conversation = { id, messages, known };
  remember("open", id);
  const asked = remembered("instructions");
  $("system").value = asked?.id === id ? asked.text : instructions;
  addCut();
  show();
}

// An answer that was cut off, and its question, are still there if the history has not got them:
// nothing in their place, or what this page knew when it asked something else.
function addCut() {
  const { id, known, before, last } = remembered("cut") ?? {};
  if (id !== conversation.id || before > conversation.messages.length) return;
  const there = conversation.messages[before];
  const isEdited = there?.text !== last[0].text && known.includes(conversation.known[0]);
  if (there && !isEdited) return;
  conversation.messages.length = before;
  const isHere = picture => picture.url;
  if (!last.every(({ pictures }) => pictures.every(isHere))) {
    say("The last question's pictures were too large to be kept: Edit, and add them again.");
  }
  for (const message of last) {
    conversation.messages.push({ ...message, pictures: message.pictures.filter(isHere) });
  }
}

export function openEmpty() {
  openConversation(newId(), [], []);
}
