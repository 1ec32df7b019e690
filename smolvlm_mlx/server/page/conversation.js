// The conversation that is open: its messages, asking, and answers as they come.

import { $, announce, make, say, write } from "./dom.js";
import { afterMessages, keepFocus } from "./focus.js";
import {
  endsTwice, fromRaw, loadMarkdown, messageNode, partsOf, spoken, toRaw, updateText,
} from "./message.js";
import { exchangeWaiting, showWaiting, takeWaiting } from "./pictures.js";
import { copyBy } from "./secure.js";
import { anew, chosen, outOfCircles } from "./settings.js";
import { remember, remembered } from "./store.js";
import { call, complete, failure, newId, news } from "./stream.js";
import { showAll } from "./talk.js";
import { welcome } from "./welcome.js";

// `leaf` is the id of the last message that the server has, as far as this page knows.
let conversation = { id: newId(), messages: [] };
let running = null;  // the AbortController of the answer under way
let watching = new AbortController();  // of the news of the conversation
let editing = null;  // which message

export const openId = () => conversation.id;

// ---- showing

export function show() {
  const messages = conversation.messages;
  const node = (message, at) => messageNode(
    message,
    running ? [] : buttons(at),
    picture => removePicture(message, picture),
    running && at === messages.length - 1,
  );
  const change = () => {
    $("send").hidden = Boolean(running);
    $("stop-answer").hidden = !running;
    showAll(messages.length ? messages.map(node) : [welcome]);
  };
  keepFocus(document.querySelector("main"), change, afterMessages);
}

function buttons(at) {
  const { role, text, interrupted } = conversation.messages[at];
  const isLast = at === conversation.messages.length - 1;
  const again = isLast ? [["Retry", retry]] : [];  // where no answer came, too
  if (role === "user") return [["Edit", () => edit(at)], ...again, ...branches(at)];
  if (role !== "assistant") return [];
  const copying = ["Copy", ({ currentTarget }) => {
    copyBy(currentTarget, text).catch(error => say(error.message));
  }];
  if (!isLast) return [copying, ...branches(at)];
  const more = interrupted ? [["Continue", goOn]] : [];
  return [copying, ...more, ...again, ...branches(at)];
}

// What stands in the place of a message: which it is, and arrows to the others.
function branches(at) {
  const { id, branches: all = [] } = conversation.messages[at].place ?? {};
  if (all.length < 2) return [];
  const number = all.indexOf(id) + 1;
  const arrow = (textContent, ariaLabel, to) => make("button", {
    textContent, ariaLabel, disabled: !all[to - 1], onclick: () => turnTo(all[to - 1], at, ariaLabel),
  });
  return [make("span", { className: "branches" }, arrow("‹", "The one before", number - 1),
    `${number}/${all.length}`, arrow("›", "The next one", number + 1))];
}

async function turnTo(message, at, label) {
  const asked = conversation;
  const response = await call(`/conversations/${asked.id}?message=${message}`, { method: "POST" });
  if (!response.ok) return say((await failure(response)).message);
  if (asked !== conversation || running) return;
  await openRaw(asked.id, await response.json());
  const node = $("talk").children[at];
  const arrows = [...node.querySelectorAll(".branches button:enabled")];
  (arrows.find(({ ariaLabel }) => ariaLabel === label) ?? arrows[0]).focus();
  node.scrollIntoView({ block: "nearest" });
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
  if (controller && !running) announce("Answering");
  running = controller;
}

// ---- asking

export function ask() {
  const text = $("text").value.trim();
  if (!text || running) return;
  const asked = conversation, before = [...asked.messages], at = editing;
  const taken = takeWaiting();
  if (!taken) return;
  const { pictures, said } = taken;
  for (const picture of pictures) delete picture.problem;
  if (at !== null) asked.messages.length = at;
  editing = null;
  asked.messages.push({ role: "user", text, pictures });
  remember("asked", text);
  write("");
  answer(ask, () => {
    asked.messages = before;
    if (asked !== conversation) return;
    editing = at;
    write([text, $("text").value].filter(Boolean).join("\n"));
    exchangeWaiting([...pictures, ...exchangeWaiting([])]);
  });
  if (said) say(said);
}

// Another answer beside the one that is there, which is sampled; one that was cut off by trouble is
// asked for as it was.
async function retry() {
  const asked = conversation, { role, cut } = asked.messages.at(-1);
  const { said, ...sampled } = role === "user" || cut ? {} : await anew();
  if (running || asked !== conversation) return;
  const before = role === "user" ? [] : [asked.messages.pop()];
  answer(retry, () => asked.messages.push(...before), sampled);
  if (said) say(said);
}

// The answer that was cut off goes on; sampled, if it went in circles.
async function goOn() {
  const asked = conversation;
  const { said, ...sampled } = endsTwice(asked.messages.at(-1).text) ? await outOfCircles() : {};
  if (running || asked !== conversation) return;
  const before = asked.messages.pop();
  const message = { ...before, text: before.text.trimEnd(), cut: undefined, about: undefined };
  const more = { continue_final_message: true, add_generation_prompt: false, ...sampled };
  answer(goOn, () => asked.messages.push(before), more, message);
  if (said) say(said);
}

async function request(more) {
  const messages = conversation.messages.map(toRaw);
  const instructions = $("system").value.trim();
  if (instructions) messages.unshift({ role: "system", content: instructions });
  return { messages, conversation: conversation.id, ...await chosen(), ...more };
}

// Answer the last message, `more` of the request beside it; or go on with a message that was begun.
// Where no answer begins, `takeBack` makes all as it was before `again` was done.
async function answer(again, takeBack, more = {}, begun = null) {
  say("");
  const asked = conversation, sent = [...asked.messages];
  const controller = new AbortController();
  const message = begun ?? { role: "assistant", text: "", pictures: [], interrupted: true };
  if (begun) asked.messages.push(message);
  const chunks = complete(request(more), controller.signal);
  if (!begun) asked.messages.push(message);
  watching.abort();  // what comes is told here
  setRunning(controller);
  show();
  if (!addressed()) window.history.replaceState(null, "", addressOf(asked.id));
  try {
    for await (const chunk of chunks) {
      takeChunk(asked, message, chunk);
      if (chunk.usage) noteAnswer(sent, chunk);
    }
  } catch (error) {
    if (error.name !== "AbortError") failed(asked, sent, message, error, again, takeBack);
    controller.abort();
  }
  if (!message.text && message.interrupted && !message.cut && asked.messages.at(-1) === message) {
    asked.messages.pop();  // it was stopped before its first word
    asked.leaf = undefined;  // what is there then, the server says
  }
  if (message.text) await loadMarkdown();
  if (!isLeaving) remember("asked", null);
  if (running === controller) setRunning(null);
  if (asked === conversation) {
    show();
    if (asked.messages.includes(message)) spoken(message).then(announce);
    watch();
  }
  document.dispatchEvent(new Event("answered"));
}

// A request that breaks because its page goes has failed for nobody: what was asked is back in the
// field when the page is loaded again, and goes from there when it is seen that the server has it.
let isLeaving = false;
addEventListener("pagehide", () => { isLeaving = true; });
addEventListener("pageshow", () => { isLeaving = false; });

function leaveAsked() {
  const asked = remembered("asked");
  const last = conversation.messages.findLast(({ role }) => role === "user");
  if (!asked || asked !== last?.text) return;
  remember("asked", null);
  if ($("text").value.trim() !== asked) return;
  write("");
  exchangeWaiting([]);
}

async function noteAnswer(sent, chunk) {
  const { noteAnswer: note } = await import("./cost.js");
  note(sent.flatMap(partsOf).filter(part => part.url), chunk);
}

function takeChunk(asked, message, chunk) {
  const { choices: [choice], usage, notice, kept } = chunk;
  message.text += choice?.delta.content ?? "";
  if (choice?.delta.content) showMore(asked, message);
  if (choice?.finish_reason === "stop") delete message.interrupted;
  if (usage) message.about = usage.timing.about;
  if (notice && asked === conversation) say(notice);
  if (kept) setPlaces(asked, kept);
}

// Where the history has messages. One of instructions at the front has no place.
function setPlaces(asked, kept) {
  kept.forEach((place, at) => { asked.messages[at].place = place; });
  asked.leaf = kept.at(-1).id;
}

// ---- what fails

function failed(asked, sent, message, error, again, takeBack) {
  if (message.text || error.isBroken) {
    message.cut = error.message;
    return;
  }
  asked.messages.pop();
  takeBack();
  if (asked !== conversation) return;
  announce("");
  const wrong = pictureOf(sent, error);
  if (wrong) wrong.problem = error.message.replace(/^messages\.[\w.]*: /, "");
  say(wrong ? "A picture cannot be used: remove it, and send again." : error.message);
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

// What came of it stays, here and wherever else it is shown.
export async function stopAnswer() {
  const controller = running;
  const response = await call(`/conversations/${conversation.id}/stop`, { method: "POST" });
  if (response.ok) return;
  if (controller === ELSEWHERE) cutOff();
  else controller?.abort();  // it is not kept, or the server is away
}

// What Escape does: stop the answer, or leave the question that is edited as it is; whether there is
// one of them.
export function leave() {
  const isBusy = running || editing !== null;
  if (running) stopAnswer();
  else leaveEditing();
  return Boolean(isBusy);
}

// Whether an answer of this conversation is under way.
export const isAnswered = id => Boolean(running) && id === conversation.id;

// The answer under way goes on where it is kept.
export function openConversation(id, messages, instructions = $("system").value, kept = []) {
  running?.abort();
  setRunning(null);
  leaveEditing();
  conversation = { id, messages };
  if (kept.length) setPlaces(conversation, kept);
  $("system").value = instructions;
  const address = messages.length ? addressOf(id) : "/";
  if (address !== location.pathname && id !== addressed()) {
    window.history.pushState(null, "", address);
  }
  show();
  watch();
}

// A conversation as the server has it, or a file.
export async function openRaw(id, raw) {
  const { instructions, messages } = read(raw);
  if (messages.length) await loadMarkdown();
  openConversation(id, messages, instructions, raw.kept);
  leaveAsked();
}

function read({ messages: raw }) {
  const messages = raw.map(fromRaw);
  const [first] = messages;
  const hasInstructions = first?.role === "system" && !first.pictures.length;
  const [instructions, others] = hasInstructions ? [first.text, messages.slice(1)] : ["", messages];
  return { instructions, messages: others };
}

export function openEmpty() {
  openConversation(newId(), []);
}

// ---- its address

const addressOf = id => `/c/${id}`;

// The conversation that the address names; "" for none.
export const addressed = () => /^\/c\/([0-9a-f]{8,32})$/.exec(location.pathname)?.[1] ?? "";

// ---- what comes to it from elsewhere

const ELSEWHERE = new AbortController();  // stands for an answer that this page has not asked for

// Listen, as long as the page is seen: browsers have few connections to one server.
export async function watch() {
  watching.abort();
  const isTold = running && running !== ELSEWHERE;  // by the answer that this page asked for
  if (document.hidden || isTold || !conversation.messages.length) return;
  const { signal } = watching = new AbortController(), asked = conversation;
  for (let wait = 250; !signal.aborted; wait = Math.min(2 * wait, 8000)) {
    try {
      for await (const each of news(asked.id, signal)) {
        wait = 250;
        if (!signal.aborted) await take(asked, each, signal);
      }
    } catch (error) {
      if ([401, 404].includes(error.status)) return;  // not let in, or it is not kept
      if (!signal.aborted) cutOff();
    }
    if (!signal.aborted) await new Promise(done => { setTimeout(done, wait); });
  }
}

// An answer that came from elsewhere does not come any more, until the server says so again.
function cutOff() {
  if (running !== ELSEWHERE) return;
  setRunning(null);
  const message = conversation.messages.at(-1);
  if (message.text) message.cut = "the connection to the server broke";
  else conversation.messages.pop();
  show();
}

async function take(asked, { leaf = null, answer: coming, text, deleted }, signal) {
  if (deleted) {
    openEmpty();
    say("This conversation was deleted elsewhere.");
    document.dispatchEvent(new Event("answered"));
  } else if (text !== undefined) {
    if (running !== ELSEWHERE) return;  // it is on another branch
    const message = asked.messages.at(-1);
    message.text += text;
    showMore(asked, message);
  } else if (leaf !== asked.leaf || running === ELSEWHERE) {
    const isWhole = running === ELSEWHERE && !coming;
    await adopt(asked, signal);
    if (isWhole && !signal.aborted && asked.messages.length) {
      announce(await spoken(asked.messages.at(-1)));
    }
  }
  if (coming && !signal.aborted) showComing(asked, coming);
}

// Show what the server has now. An answer that was cut off here stays, if it has none there.
async function adopt(asked, signal) {
  const response = await call(`/conversations/${asked.id}`, { signal });
  if (!response.ok) return;
  const raw = await response.json(), { instructions, messages } = read(raw);
  const last = asked.messages.at(-1), edited = asked.messages[editing]?.place?.id;
  const kept = messages[asked.messages.length - 1];  // what of the last one the server has
  const isCut = last?.cut && messages.length <= asked.messages.length
    && messages.length >= asked.messages.length - 1
    && (!kept || kept.interrupted && last.text.startsWith(kept.text));
  asked.messages = isCut ? [...messages.slice(0, asked.messages.length - 1), last] : messages;
  if (raw.kept.length) setPlaces(isCut && kept ? asked : { ...asked, messages }, raw.kept);
  asked.leaf = raw.kept.at(-1)?.id ?? null;
  if (asked.messages[editing]?.place?.id !== edited) editing = null;
  $("system").value = instructions;
  if (running === ELSEWHERE) setRunning(null);
  show();
  leaveAsked();
  document.dispatchEvent(new Event("answered"));
}

// An answer that another page asked for, or this one before it was loaded again.
function showComing(asked, { after, text }) {
  const at = asked.messages.findIndex(({ place }) => place?.id === after);
  if (at < 0) return;  // on another branch
  asked.messages.length = at + 1;
  asked.messages.push({ role: "assistant", text, pictures: [], interrupted: true });
  setRunning(ELSEWHERE);
  show();
}
