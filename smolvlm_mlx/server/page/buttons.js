// What can be done with each message of the conversation.

import { goOn, retry } from "./asking.js";
import { state } from "./conversation.js";
import { $, make, say } from "./dom.js";
import { edit } from "./draft.js";
import { openRaw, opens } from "./opening.js";
import { copyBy } from "./secure.js";
import { call, failure } from "./stream.js";

state.buttons = buttons;

function buttons(at) {
  const { role, text, interrupted } = state.conversation.messages[at];
  const isLast = at === state.conversation.messages.length - 1;
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
  const { id, branches: all = [] } = state.conversation.messages[at].place ?? {};
  if (all.length < 2) return [];
  const number = all.indexOf(id) + 1;
  const arrow = (textContent, ariaLabel, to) => make("button", {
    textContent, ariaLabel, disabled: !all[to - 1], onclick: () => turnTo(all[to - 1], at, ariaLabel),
  });
  return [make("span", { className: "branches" }, arrow("‹", "The one before", number - 1),
    `${number}/${all.length}`, arrow("›", "The next one", number + 1))];
}

async function turnTo(message, at, label) {
  const { id } = state.conversation, isLatest = opens();
  const response = await call(`/conversations/${id}?message=${message}`, { method: "POST" });
  if (!response.ok) return say((await failure(response)).message);
  const raw = await response.json();
  if (!isLatest() || state.running || !await openRaw(id, raw, isLatest)) return;
  const node = $("talk").children[at];
  const arrows = [...node.querySelectorAll(".branches button:enabled")];
  (arrows.find(({ ariaLabel }) => ariaLabel === label) ?? arrows[0]).focus();
  node.scrollIntoView({ block: "nearest" });
}
