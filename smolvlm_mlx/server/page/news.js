// What comes to the conversation from elsewhere: other windows, other programs, or this page before
// it was loaded again.

import { ELSEWHERE, setPlaces, setRunning, show, showMore, state } from "./conversation.js";
import { $, announce, say } from "./dom.js";
import { isAwaited, leaveAsked, loseEdited } from "./draft.js";
import { spoken } from "./message.js";
import { openEmpty, read } from "./opening.js";
import { hold } from "./secure.js";
import { call, failure, news } from "./stream.js";

// What is not true any more of an answer that goes on.
export const ANEW = { parts: undefined, cut: undefined, about: undefined };

// A browser has six connections to one server, for all of its windows. These many listen; the others
// look now and then.
const LISTENERS = 3;
const LOOK = 2_000;  // ms

let watching = new AbortController();  // of the news of the conversation
let place = null;  // the promise of what gives back this window's place among those that listen

document.addEventListener("opened", watch);

// Listen, as long as the page is seen.
export async function watch() {
  watching.abort();
  const { signal } = watching = new AbortController(), asked = state.conversation;
  if (document.hidden || !(asked.messages.length || isAwaited(asked.id))) return leavePlace();
  if (state.running && state.running !== ELSEWHERE) return;  // its own answer tells it
  for (let wait = 250; !signal.aborted; wait = Math.min(2 * wait, 8000)) {
    const isListener = await hasPlace();
    try {
      for await (const each of isListener ? news(asked.id, signal) : newest(asked.id, signal)) {
        if (!signal.aborted) await take(asked, each, signal);
        wait = isListener ? 250 : LOOK;
      }
    } catch (error) {
      if (signal.aborted) return;
      cutOff(error.status && error.message);
      const isGone = error.status === 404 && !isAwaited(asked.id);
      if (isGone && asked.messages.some(message => message.place)) showDeleted();
      if (isGone || error.status === 401) return leavePlace();  // or it is not let in
    }
    if (!signal.aborted) await new Promise(done => { setTimeout(done, wait); });
  }
}

// What there is now, when the connection that told it was let go: to take it may need another, and
// windows that hold one each while they wait for another wait for ever.
async function* newest(id, signal) {
  const coming = news(id, signal), { value } = await coming.next();
  await coming.return();
  yield value;
}

// Whether this window is one of those that listen.
async function hasPlace() {
  const mine = place ??= placeToListen(), given = await mine;
  if (!given && place === mine) place = null;
  return Boolean(given);
}

function leavePlace() {
  place?.then(end => end?.());
  place = null;
}

// What gives the place back, as the end of the window does; null where all are taken.
async function placeToListen() {
  for (let number = 0; number < LISTENERS; number += 1) {
    const end = await hold(`listener ${number}`);
    if (end) return end;
  }
  return null;
}

// An answer that came from elsewhere does not come any more, until the server says so again.
export function cutOff(reason) {
  if (state.running !== ELSEWHERE) return;
  setRunning(null);
  const message = state.conversation.messages.at(-1);
  if (message.text) message.cut = reason || "the connection to the server broke";
  else state.conversation.messages.pop();
  show();
}

async function take(asked, { leaf = null, answer: coming, text, deleted }, signal) {
  const message = asked.messages.at(-1);
  if (deleted) {
    showDeleted();
  } else if (text !== undefined) {
    if (state.running !== ELSEWHERE) return;  // it is on another branch
    message.text += text;
    showMore(asked, message);
  } else if (state.running === ELSEWHERE && coming && isAfter(asked.messages.at(-2), coming)) {
    message.text = coming.text;
    showMore(asked, message);
    return;
  } else if (leaf !== asked.leaf || state.running === ELSEWHERE) {
    const isWhole = state.running === ELSEWHERE && !coming;
    await adopt(asked, signal);
    if (isWhole && !signal.aborted && asked.messages.length) {
      announce(await spoken(asked.messages.at(-1)));
    }
  }
  if (coming && !signal.aborted) showComing(asked, coming);
}

function showDeleted() {
  openEmpty();
  say("This conversation was deleted elsewhere.");
  document.dispatchEvent(new Event("answered"));
}

const isAfter = (message, { after }) => message?.place?.id === after;

// Show what the server has now. An answer that was cut off here stays, if it has none there.
async function adopt(asked, signal) {
  const response = await call(`/conversations/${asked.id}`, { signal });
  if (!response.ok) throw await failure(response);
  const raw = await response.json(), { instructions, messages } = read(raw);
  if (raw.kept.length) setPlaces({ messages }, raw.kept);
  const { messages: before } = asked, last = before.at(-1);
  const edited = before[state.editing?.at]?.place?.id;
  const kept = messages[before.length - 1];  // what of the last one the server has
  const isCut = last?.cut && messages.length <= before.length
    && messages.length >= before.length - 1
    && (!kept || kept.interrupted && last.text.startsWith(kept.text));
  if (isCut) messages.splice(before.length - 1, 1);
  asked.messages = messages.map((message, at) => asBefore(before[at], message));
  if (isCut) asked.messages.push(Object.assign(last, kept && { place: kept.place }));
  asked.leaf = raw.kept.at(-1)?.id ?? null;
  if (state.editing && asked.messages[state.editing.at]?.place?.id !== edited) loseEdited();
  if (!$("settings").open) $("system").value = instructions;
  if (state.running === ELSEWHERE) setRunning(null);
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
function showComing(asked, coming) {
  const at = asked.messages.findIndex(message => isAfter(message, coming));
  if (at < 0) return;  // on another branch
  const { text } = coming, begun = { role: "assistant", text, pictures: [], interrupted: true };
  const there = asked.messages[at + 1];
  const isThere = there?.role === "assistant" && text.startsWith(there.text.trimEnd());
  asked.messages.length = at + 1;
  asked.messages.push(isThere ? Object.assign(there, { text, place: undefined, ...ANEW }) : begun);
  setRunning(ELSEWHERE);
  show();
}
