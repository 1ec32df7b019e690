// Questions that are not answered, and answers that end before their end.

import { openId, state } from "./conversation.js";
import { $, announce, make, say } from "./dom.js";
import { drafts, isAwaited } from "./draft.js";
import { partsOf } from "./message.js";
import { openConversation } from "./opening.js";
import { showWaiting } from "./pictures.js";
import { remember, remembered } from "./store.js";

// Take an answer back that did not begin; what came of one that did stays.
export function failed(mine, sent, message, error, takeBack, again, forget) {
  const { asked } = mine, { status = 504 } = error;  // as where the server is away
  if (message.text !== mine.text || error.isBroken) {
    message.cut = error.message;
    return;
  }
  const isKnown = status !== 504 || mine.hasBegun;
  if (isAwaited(asked.id)) remember("asked", isKnown ? null : { ...remembered("asked"), isBack: true });
  asked.messages.pop();
  takeBack();
  if (asked.id !== openId()) return offerReturn(asked, error);
  announce("");
  const wrong = pictureOf(sent, error);
  if (wrong) {
    const problem = error.message.replace(/^messages\.[\w.]*: /, "");
    Object.assign(wrong, { problem, isUnread: true });
  }
  say(wrong ? "A picture cannot be used: remove it, or send again without it." : error.message);
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
    if (asked === state.conversation && !state.running) again({ count, keepPictures });
  };
  const [what, whose] = turns > 1 ? [`${turns} oldest turns`, "their"] : ["oldest turn", "its"];
  $("problem").append(offer(`Forget the ${what}`, () => forget(false)),
    offer(`… but keep ${whose} pictures`, () => forget(true)));
}
