// The place where the messages are: it follows what comes, unless one has scrolled up to read, and
// has what is far from the window made when one comes near.

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

// ---- what is far from the window

const AT_ONCE = 6;  // messages at the end, which one sees first

const waiting = new WeakMap();  // what makes a message as it looks, by its node

export function showWhenNear(node, make) {
  waiting.set(node, make);
  near.observe(node);
}

function showNow(node) {
  near.unobserve(node);
  waiting.get(node)?.();
  waiting.delete(node);
}

// What one reads stays where it is, though what is above it becomes higher: not all browsers see
// to that.
const near = new IntersectionObserver(changes => {
  const top = talk.getBoundingClientRect().top;
  const read = [...talk.children].find(node => node.getBoundingClientRect().bottom > top);
  const stood = read?.getBoundingClientRect().top;
  for (const { target, isIntersecting } of changes) if (isIntersecting) showNow(target);
  const moved = read ? read.getBoundingClientRect().top - stood : 0;
  if (moved && !isFollowing) before = talk.scrollTop += moved;
}, { root: talk, rootMargin: "100% 0px" });

addEventListener("beforeprint", () => [...talk.children].forEach(showNow));

// Show these messages. What is there already stays where it is; the end is gone to where they are
// `isNew` here, as a question that is asked, or where one follows it.
export function showAll(nodes, isNew) {
  nodes.slice(-AT_ONCE).forEach(showNow);
  for (const node of nodes) growing.observe(node);
  arrange(talk, nodes);
  if (isNew || isFollowing) toEnd();
  else showButton();
}
