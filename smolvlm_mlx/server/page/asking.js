// Asking, and answers as they come.

import {
  addressed, addressOf, ELSEWHERE, openId, pending, setPlaces, setRunning, show, showMore, state,
} from "./conversation.js";
import { $, announce, say, write } from "./dom.js";
import { drafts, isAwaited, leaveEditing, takeDraft } from "./draft.js";
import { endsTwice, loadMarkdown, partsOf, spoken, toRaw } from "./message.js";
import { ANEW, cutOff, watch } from "./news.js";
import { exchangeWaiting, takeWaiting } from "./pictures.js";
import { failed } from "./refused.js";
import { anew, chosen, outOfCircles } from "./settings.js";
import { remember } from "./store.js";
import { call, complete } from "./stream.js";

const TRIES = 20, WAIT = 100;  // ms between them, for a question on its way to be stopped

// `forget` is {count, keepPictures}: how many messages are left out for it, if an answer begins.
export function ask(forget) {
  const text = $("text").value.trim();
  if (!text || state.running) return;
  const asked = state.conversation, before = [...asked.messages], edited = state.editing;
  const taken = takeWaiting();
  if (!taken) return;
  const { pictures, said, all } = taken, at = edited?.at ?? before.length;
  for (const picture of pictures) delete picture.problem;
  remember("asked", { id: asked.id, text, pictures, at, place: before[at]?.place?.id });
  asked.messages.length = at;
  asked.messages.push({ role: "user", text, pictures });
  state.editing = null;
  write(edited?.text ?? "");
  exchangeWaiting(edited?.pictures ?? []);
  answer(ask, () => {
    asked.messages = before;
    const isHere = asked === state.conversation;
    drafts.set(asked.id, { text, pictures: all, at: isHere ? edited?.at : undefined });
    if (asked.id === openId()) takeDraft();
  }, {}, { forget });
  if (said) say(said);
}

// Another answer beside the one that is there, which is sampled; one that was cut off by trouble is
// asked for as it was.
export async function retry(forget) {
  const asked = state.conversation, { role, cut } = asked.messages.at(-1);
  const { said, ...sampled } = role === "user" || cut ? {} : await anew();
  if (state.running || asked !== state.conversation) return;
  const before = role === "user" ? [] : [asked.messages.pop()];
  answer(retry, () => asked.messages.push(...before), sampled, { forget });
  if (said) say(said);
}

// The answer that was cut off goes on; sampled, if it went in circles.
export async function goOn(forget) {
  const asked = state.conversation;
  const { said, ...sampled } = endsTwice(asked.messages.at(-1).text) ? await outOfCircles() : {};
  if (state.running || asked !== state.conversation) return;
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
  return { messages, conversation: openId(), ...await chosen(), ...more };
}

// Answer the last message, `more` of the request beside it; or go on with a message that was begun.
// Where no answer begins, `takeBack` makes all as it was before `again` was done.
async function answer(again, takeBack, more, { begun, forget }) {
  say("");
  const asked = state.conversation, sent = without(forget, asked.messages);
  const message = begun ?? { role: "assistant", text: "", pictures: [], interrupted: true };
  const mine = { asked, controller: new AbortController(), hasBegun: false, text: message.text };
  const chunks = complete(request(begun ? [...sent, begun] : sent, more), mine.controller.signal);
  asked.messages.push(message);
  pending.set(asked.id, mine);
  setRunning(mine);
  watch();  // no more: what comes is told here
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
  if (pending.get(asked.id) === mine) pending.delete(asked.id);
  if (!message.text && message.interrupted && !message.cut && asked.messages.at(-1) === message) {
    asked.messages.pop();  // it was stopped before its first word
    asked.leaf = undefined;  // what is there then, the server says
  }
  if (message.text) await loadMarkdown();
  if (state.running === mine) setRunning(null);
  if (asked === state.conversation) {
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
  pending.delete(asked.id);
  if (isAwaited(asked.id)) remember("asked", null);
  if (messages) asked.messages = messages;
  if (asked !== state.conversation) controller.abort();
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
  if (notice && asked === state.conversation) say(notice);
  if (kept) setPlaces(asked, kept);
}

// ---- stopping

// What came of it stays, here and wherever else it is shown. A question that is still on its way is
// stopped when it has come to the server, which would answer it without this page.
export async function stopAnswer() {
  const answering = state.running, id = openId();
  for (let tries = 1; ; tries += 1) {
    const response = await call(`/conversations/${id}/stop`, { method: "POST" });
    if (response.ok) return;
    const isComing = state.isKept && response.status === 404 && answering?.hasBegun === false;
    if (!isComing || tries === TRIES) break;
    await new Promise(done => { setTimeout(done, WAIT); });
    if (state.running !== answering) return;
  }
  if (answering === ELSEWHERE) cutOff();
  else answering?.controller.abort();  // it is not kept, or the server is away
}

// What Escape does: stop the answer, or leave the question that is edited as it is; whether there is
// one of them.
export function leave() {
  const isBusy = state.running || state.editing;
  if (state.running) stopAnswer();
  else leaveEditing();
  return Boolean(isBusy);
}
