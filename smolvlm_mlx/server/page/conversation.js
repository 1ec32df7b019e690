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
let running = null;  // the answer under way: {asked, controller, hasBegun}
let watching = new AbortController();  // of the news of the conversation
let editing = null;  // {at, text, pictures}: which message, and what was written before
let opening = 0;  // how often something was opened, or is about to be

const asking = new Map();  // answers that have not begun, by conversations, also those left since
const drafts = new Map();  // {text, pictures, at} that were refused, by conversations

export const openId = () => conversation.id;

// Whether nothing else was opened since: what was chosen last is shown, not what comes last.
export function opens() {
  const mine = opening += 1;
  return () => mine === opening;
}

// ---- showing

export function show(isNew = false) {
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
    showAll(messages.length ? messages.map(node) : [welcome], isNew);
  };
  keepFocus(document.querySelector("main"), change, afterMessages);
}

function buttons(at) {
  const { role, text, interrupted } = conversation.messages[at];
  const isLast = at === conversation.messages.length - 1;
  const again = isLast ? [["Retry", () => retry()]] : [];  // where no answer came, too
  if (role === "user") return [["Edit", () => edit(at)], ...again, ...branches(at)];
  if (role !== "assistant") return [];
  const copying = ["Copy", ({ currentTarget }) => {
    copyBy(currentTarget, text).catch(error => say(error.message));
  }];
  if (!isLast) return [copying, ...branches(at)];
  const more = interrupted ? [["Continue", () => goOn()]] : [];
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
  const { id } = conversation, isLatest = opens();
  const response = await call(`/conversations/${id}?message=${message}`, { method: "POST" });
  if (!response.ok) return say((await failure(response)).message);
  const raw = await response.json();
  if (!isLatest() || running || !await openRaw(id, raw, isLatest)) return;
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

function setRunning(answering) {
  if (answering && !running) announce("Answering");
  running = answering;
}

// ---- asking

// `forget` is {count, keepPictures}: how many messages are left out for it, if an answer begins.
export function ask(forget) {
  const text = $("text").value.trim();
  if (!text || running) return;
  const asked = conversation, before = [...asked.messages], edited = editing;
  const taken = takeWaiting();
  if (!taken) return;
  const { pictures, said } = taken, at = edited?.at ?? before.length;
  for (const picture of pictures) delete picture.problem;
  remember("asked", { id: asked.id, text, pictures, at, place: before[at]?.place?.id });
  asked.messages.length = at;
  asked.messages.push({ role: "user", text, pictures });
  editing = null;
  write(edited?.text ?? "");
  exchangeWaiting(edited?.pictures ?? []);
  answer(ask, () => {
    asked.messages = before;
    drafts.set(asked.id, { text, pictures, at: asked === conversation ? edited?.at : undefined });
    if (asked.id === conversation.id) takeDraft();
  }, {}, { forget });
  if (said) say(said);
}

const ANEW = { parts: undefined, cut: undefined, about: undefined };  // of an answer that goes on

// Another answer beside the one that is there, which is sampled; one that was cut off by trouble is
// asked for as it was.
async function retry(forget) {
  const asked = conversation, { role, cut } = asked.messages.at(-1);
  const { said, ...sampled } = role === "user" || cut ? {} : await anew();
  if (running || asked !== conversation) return;
  const before = role === "user" ? [] : [asked.messages.pop()];
  answer(retry, () => asked.messages.push(...before), sampled, { forget });
  if (said) say(said);
}

// The answer that was cut off goes on; sampled, if it went in circles.
async function goOn(forget) {
  const asked = conversation;
  const { said, ...sampled } = endsTwice(asked.messages.at(-1).text) ? await outOfCircles() : {};
  if (running || asked !== conversation) return;
  const before = asked.messages.pop();
  const begun = { ...before, text: before.text.trimEnd(), ...ANEW };
  const more = { continue_final_message: true, add_generation_prompt: false, ...sampled };
  answer(goOn, () => asked.messages.push(before), more, { forget, begun });
  if (said) say(said);
}

async function request(sent, more) {
  const messages = sent.map(toRaw);
  const instructions = $("system").value.trim();
  if (instructions) messages.unshift({ role: "system", content: instructions });
  return { messages, conversation: conversation.id, ...await chosen(), ...more };
}

// Answer the last message, `more` of the request beside it; or go on with a message that was begun.
// Where no answer begins, `takeBack` makes all as it was before `again` was done.
async function answer(again, takeBack, more, { begun, forget }) {
  say("");
  const asked = conversation, sent = without(forget, asked.messages);
  const message = begun ?? { role: "assistant", text: "", pictures: [], interrupted: true };
  const mine = { asked, controller: new AbortController(), hasBegun: false, text: message.text };
  const chunks = complete(request(begun ? [...sent, begun] : sent, more), mine.controller.signal);
  asked.messages.push(message);
  watching.abort();  // what comes is told here
  asking.set(asked.id, mine);
  setRunning(mine);
  show(true);
  if (addressed() !== asked.id) window.history.replaceState(null, "", addressOf(asked.id));
  try {
    for await (const chunk of chunks) {
      if (!mine.hasBegun) hasBegun(mine, forget && [...sent, message]);
      takeChunk(asked, message, chunk);
      if (chunk.usage) noteAnswer(sent, chunk);
    }
  } catch (error) {
    if (error.name !== "AbortError") failed(mine, sent, message, error, takeBack, again, forget);
    mine.controller.abort();
  }
  if (asking.get(asked.id) === mine) asking.delete(asked.id);
  if (!message.text && message.interrupted && !message.cut && asked.messages.at(-1) === message) {
    asked.messages.pop();  // it was stopped before its first word
    asked.leaf = undefined;  // what is there then, the server says
  }
  if (message.text) await loadMarkdown();
  if (running === mine) setRunning(null);
  if (asked === conversation) {
    show();
    if (asked.messages.includes(message)) spoken(message).then(announce);
    watch();
  }
  document.dispatchEvent(new Event("answered"));
}

// The server has the question, and goes on where the conversation was left meanwhile.
function hasBegun(mine, messages) {
  const { asked, controller } = mine;
  mine.hasBegun = true;
  asking.delete(asked.id);
  if (isAwaited(asked.id)) remember("asked", null);
  if (messages) asked.messages = messages;
  if (asked !== conversation) controller.abort();
  else if (messages) show();
}

// The messages without the oldest ones, whose pictures the next question may get.
function without(forget, messages) {
  if (!forget) return [...messages];
  const first = messages.findIndex(({ role }) => role === "user");
  const gone = messages.slice(first, first + forget.count);
  const [next, ...others] = messages.slice(first + forget.count);
  const pictures = forget.keepPictures ? gone.flatMap(message => message.pictures) : [];
  const also = pictures.length && {
    pictures: [...pictures, ...next.pictures], parts: next.parts && [...pictures, ...next.parts],
  };
  return [...messages.slice(0, first), also ? { ...next, ...also } : next, ...others];
}

// ---- a question of which nobody knows whether the server has it: its connection broke, or its page
// was loaded again. It is in the field until the server shows it.

const isAwaited = id => remembered("asked")?.id === id;

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

function leaveAsked() {
  const asked = remembered("asked"), { text, place } = conversation.messages[asked?.at] ?? {};
  if (!isAwaited(conversation.id) || text !== asked.text || place?.id === asked.place) return;
  remember("asked", null);
  const now = $("text").value.trim(), rest = `${asked.text}\n`;
  if (now !== asked.text && !now.startsWith(rest)) return;
  write(now.slice(rest.length));
  exchangeWaiting(exchangeWaiting([]).slice(asked.pictures.length));
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

function failed(mine, sent, message, error, takeBack, again, forget) {
  const { asked } = mine, { status = 504 } = error;  // as where the server is away
  if (message.text !== mine.text || error.isBroken) {
    message.cut = error.message;
    return;
  }
  const isKnown = status !== 504 || mine.hasBegun;
  if (isAwaited(asked.id)) remember("asked", isKnown ? null : { ...remembered("asked"), isBack: true });
  asked.messages.pop();
  takeBack();
  if (asked.id !== conversation.id) return offerReturn(asked, error);
  announce("");
  const wrong = pictureOf(sent, error);
  if (wrong) wrong.problem = error.message.replace(/^messages\.[\w.]*: /, "");
  say(wrong ? "A picture cannot be used: remove it, and send again." : error.message);
  showWaiting();
  if (error.forget) offerRoom(asked, error.forget.messages + (forget?.count ?? 0), again);
}

const offer = (textContent, onclick) => make("button", { type: "button", textContent, onclick });

// A question that was refused after another conversation was opened waits where it was asked.
function offerReturn({ id, messages, instructions }, error) {
  if (!drafts.has(id)) return;
  say(`A question in another conversation was not answered: ${error.message}`);
  $("problem").append(offer("Go back to it", () => openConversation(id, messages, instructions)));
}

// Which picture of the messages that were sent an error is about.
function pictureOf(sent, { param, message }) {
  const [, at, number] = /^messages\.(\d+)\.content\.(\d+)/.exec(param ?? "") ?? [];
  const instructions = $("system").value.trim() ? 1 : 0;
  if (at) return partsOf(sent[at - instructions])[number];
  const named = sent.flatMap(({ pictures }) => pictures).filter(({ name }) => message.includes(name));
  return named.length === 1 ? named[0] : undefined;
}

// Nothing is forgotten unasked, nor for a question that is not answered. The server says how many
// messages the oldest turn has.
function offerRoom(asked, count, again) {
  const first = asked.messages.findIndex(({ role }) => role === "user");
  const gone = asked.messages.slice(first, first + count);
  const turns = gone.filter(({ role }) => role === "user").length;
  const forget = keepPictures => {
    if (asked === conversation && !running) again({ count, keepPictures });
  };
  const [what, whose] = turns > 1 ? [`${turns} oldest turns`, "their"] : ["oldest turn", "its"];
  $("problem").append(offer(`Forget the ${what}`, () => forget(false)),
    offer(`… but keep ${whose} pictures`, () => forget(true)));
}

// ---- editing, stopping, and other conversations

function edit(at) {
  const { text, pictures } = conversation.messages[at];
  const before = exchangeWaiting(pictures);
  editing = editing ? { ...editing, at } : { at, text: $("text").value, pictures: before };
  write(text);
  $("text").focus();
  say("Editing a question: what came after it will be asked anew. Escape leaves it as it is.");
}

function leaveEditing() {
  if (editing) {
    write(editing.text);
    exchangeWaiting(editing.pictures);
  }
  editing = null;
  say("");
}

// The question that is edited is not there any more: what was written of it stays.
function loseEdited() {
  const { text, pictures } = editing;
  editing = null;
  write([$("text").value, text].filter(Boolean).join("\n"));
  exchangeWaiting([...exchangeWaiting([]), ...pictures]);
}

// What was refused is in the field again, where it was asked.
function takeDraft() {
  const { text, pictures, at } = drafts.get(conversation.id) ?? {};
  if (!drafts.delete(conversation.id)) return;
  if (at !== undefined) {
    editing = { at, text: $("text").value, pictures: exchangeWaiting(pictures) };
    write(text);
  } else {
    write([text, $("text").value].filter(Boolean).join("\n"));
    exchangeWaiting([...pictures, ...exchangeWaiting([])]);
  }
}

// What came of it stays, here and wherever else it is shown.
export async function stopAnswer() {
  const answering = running;
  const response = await call(`/conversations/${conversation.id}/stop`, { method: "POST" });
  if (response.ok) return;
  if (answering === ELSEWHERE) cutOff();
  else answering?.controller.abort();  // it is not kept, or the server is away
}

// What Escape does: stop the answer, or leave the question that is edited as it is; whether there is
// one of them.
export function leave() {
  const isBusy = running || editing;
  if (running) stopAnswer();
  else leaveEditing();
  return Boolean(isBusy);
}

// Open a conversation of which more is here than the server has: an answer is under way. Whether it
// is one.
export function openAnswered(id) {
  if (id === conversation.id && running) return true;
  const { asked } = asking.get(id) ?? {};
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
  conversation.instructions = $("system").value;
  if (running?.hasBegun) running.controller.abort();
  leaveEditing();
  conversation = asked;
  setRunning(asking.get(asked.id) ?? null);
  $("system").value = instructions;
  const isKept = running || asked.messages.some(({ place }) => place);
  const address = isKept ? addressOf(asked.id) : "/";
  if (address !== location.pathname && asked.id !== addressed()) {
    window.history.pushState(null, "", address);
  }
  show(true);
  watch();
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

// The address is that of what is shown, where another could not be opened.
export function keepAddress() {
  if (conversation.messages.length) window.history.replaceState(null, "", addressOf(openId()));
}

// The conversation that the address names; "" for none.
export const addressed = () => /^\/c\/([0-9a-f]{8,32})$/.exec(location.pathname)?.[1] ?? "";

// ---- what comes to it from elsewhere

const ELSEWHERE = {};  // stands for an answer that this page has not asked for

// Listen, as long as the page is seen: browsers have few connections to one server.
export async function watch() {
  watching.abort();
  const isTold = running && running !== ELSEWHERE;  // by the answer that this page asked for
  const { signal } = watching = new AbortController(), asked = conversation;
  if (document.hidden || isTold || !(asked.messages.length || isAwaited(asked.id))) return;
  for (let wait = 250; !signal.aborted; wait = Math.min(2 * wait, 8000)) {
    try {
      for await (const each of news(asked.id, signal)) {
        wait = 250;
        if (!signal.aborted) await take(asked, each, signal);
      }
    } catch (error) {
      if (signal.aborted) return;
      cutOff(error.status && error.message);
      const isUnkept = error.status === 404 && !isAwaited(asked.id);
      if (isUnkept || error.status === 401) return;  // or it is not let in
    }
    if (!signal.aborted) await new Promise(done => { setTimeout(done, wait); });
  }
}

// An answer that came from elsewhere does not come any more, until the server says so again.
function cutOff(reason) {
  if (running !== ELSEWHERE) return;
  setRunning(null);
  const message = conversation.messages.at(-1);
  if (message.text) message.cut = reason || "the connection to the server broke";
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
  if (!response.ok) throw await failure(response);
  const raw = await response.json(), { instructions, messages } = read(raw);
  if (raw.kept.length) setPlaces({ messages }, raw.kept);
  const { messages: before } = asked, last = before.at(-1);
  const edited = before[editing?.at]?.place?.id;
  const kept = messages[before.length - 1];  // what of the last one the server has
  const isCut = last?.cut && messages.length <= before.length
    && messages.length >= before.length - 1
    && (!kept || kept.interrupted && last.text.startsWith(kept.text));
  if (isCut) messages.splice(before.length - 1, 1);
  asked.messages = messages.map((message, at) => asBefore(before[at], message));
  if (isCut) asked.messages.push(Object.assign(last, kept && { place: kept.place }));
  asked.leaf = raw.kept.at(-1)?.id ?? null;
  if (editing && asked.messages[editing.at]?.place?.id !== edited) loseEdited();
  if (!$("settings").open) $("system").value = instructions;
  if (running === ELSEWHERE) setRunning(null);
  show();
  leaveAsked();
  document.dispatchEvent(new Event("answered"));
}

// A message that the server has, as the object that it is here, if it is here: with what is known of
// it here alone, and the node that shows it.
function asBefore(before, came) {
  const isOther = before?.role !== came.role || before.place && before.place.id !== came.place?.id;
  if (isOther || before.pictures.length !== came.pictures.length) return came;
  const { text, interrupted, place } = came;
  const found = { interrupted, place, cut: undefined };
  if (before.text.trimEnd() === text.trimEnd()) return Object.assign(before, found);
  if (came.role !== "assistant" || !text.startsWith(before.text.trimEnd())) return came;
  return Object.assign(before, found, { text, parts: came.parts, about: undefined });
}

// An answer that another page asked for, or this one before it was loaded again.
function showComing(asked, { after, text }) {
  const at = asked.messages.findIndex(({ place }) => place?.id === after);
  if (at < 0) return;  // on another branch
  const coming = { role: "assistant", text, pictures: [], interrupted: true };
  const there = asked.messages[at + 1];
  const isThere = there?.role === "assistant" && text.startsWith(there.text.trimEnd());
  asked.messages.length = at + 1;
  asked.messages.push(isThere ? Object.assign(there, { text, place: undefined, ...ANEW }) : coming);
  setRunning(ELSEWHERE);
  show();
}
