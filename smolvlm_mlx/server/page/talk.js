// The place where the messages are: it follows what comes, unless one has scrolled up to read.

import { $, arrange } from "./dom.js";
import { keepFocus } from "./focus.js";

const talk = $("talk");
const NEAR = 8;  // pixels

let isFollowing = true;
let before = 0;  // where it was scrolled to

const isAtEnd = () => talk.scrollHeight - talk.scrollTop - talk.clientHeight <= NEAR;

function toEnd() {
  isFollowing = true;
  talk.scrollTop = talk.scrollHeight;
  showButton();
}

function showButton() {
  keepFocus($("newest"), () => { $("newest").hidden = isFollowing || isAtEnd(); }, () => [talk]);
}

talk.addEventListener("scroll", () => {
  if (isAtEnd()) isFollowing = true;
  else if (talk.scrollTop < before) isFollowing = false;
  before = talk.scrollTop;
  showButton();
});
$("newest").onclick = toEnd;

// Whatever grows: an answer, a picture that is loaded, a formula; or the window.
const growing = new ResizeObserver(() => {
  if (isFollowing) toEnd();
  else showButton();
});
growing.observe(talk);

// Show these messages. What is there already stays where it is; a new one at the end is gone to.
export function showAll(nodes) {
  const isNew = nodes.at(-1) !== talk.lastElementChild;
  for (const node of nodes) growing.observe(node);
  arrange(talk, nodes);
  if (isNew) toEnd();
}
