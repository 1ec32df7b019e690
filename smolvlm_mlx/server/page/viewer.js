// A picture, large, with its tiles drawn where the preprocessing cuts them, what they cost, and
// where the latest answer had them from.

import { costOf, counted, seenOf } from "./cost.js";
import { $, make } from "./dom.js";
import { pictureOf } from "./pictures.js";

// As generation/origins.py has them.
const ORIGINS = {
  computed: "computed",
  features: "reused: features of an equal tile, read again",
  prompt: "reused: in the prompt that was read before",
};

let shown = null;  // the thumbnail whose picture is shown

export function open(thumbnail) {
  show(thumbnail);
  $("viewer").showModal();
}

// All pictures and videos of the conversation and of the next question, in their order.
function thumbnails() {
  return [...document.querySelectorAll(":is(#talk, #waiting) figure > :first-child")];
}

function go(step) {
  const all = thumbnails();
  if (all.length) show(all.at((all.indexOf(shown) + step) % all.length));
}

async function show(thumbnail) {
  const picture = pictureOf.get(thumbnail), all = thumbnails();
  const isWaiting = Boolean(thumbnail.closest("#waiting")), seen = !isWaiting && seenOf(picture);
  const same = shown === thumbnail;
  shown = thumbnail;
  $("viewer-name").textContent = picture.name;
  $("viewer-place").textContent = `${all.indexOf(thumbnail) + 1} of ${all.length}`;
  $("viewer-steps").hidden = all.length < 2;
  if (!same) $("viewer-shown").replaceChildren(...drawn(picture, null));
  $("viewer-about").replaceChildren();
  let cost = null, lines;
  try {
    cost = seen || await costOf(picture);
    lines = [words(cost, !seen), seen ? origins(cost) : unseen(isWaiting)];
  } catch (error) {
    lines = [make("p", { textContent: error.message })];
  }
  if (shown !== thumbnail) return;
  if (cost && !picture.video) $("viewer-shown").replaceChildren(...drawn(picture, cost));
  $("viewer-about").replaceChildren(...lines);
}

// ---- the picture

function drawn({ url, preview, name, video }, cost) {
  const src = preview ?? url;
  if (video) return [make("video", { src, controls: true, muted: true })];
  const picture = frame(src, name);
  if (!cost) return [picture];
  const { width, height, boxes, origins: from = [] } = cost;
  picture.style.setProperty("--width", width);
  picture.style.setProperty("--height", height);
  const tiles = boxes.map((box, at) => tile(box, width, height, from[at]));
  if (tiles.length === 1) {
    picture.append(...tiles);
    return [picture];
  }
  picture.append(...tiles.slice(0, -1));
  const whole = frame(src, "");
  whole.classList.add("whole");
  whole.append(tiles.at(-1));
  const caption = "The global tile: the whole picture once more, as one square.";
  return [picture, make("div", { className: "global" }, whole, make("p", {}, caption))];
}

function frame(src, alt) {
  return make("figure", { className: "seen" }, make("img", { src, alt }));
}

function tile([left, top, right, bottom], width, height, origin = "") {
  const node = make("div", { className: `tile ${origin}` });
  const percent = (length, side) => `${100 * length / side}%`;
  node.style.left = percent(left, width);
  node.style.top = percent(top, height);
  node.style.width = percent(right - left, width);
  node.style.height = percent(bottom - top, height);
  return node;
}

// ---- what is said of it

function words({ width, height, rows, cols, tiles, tokens, is_video: isVideo }, isPlan) {
  const about = isVideo && isPlan ? "about " : "";
  const grid = rows ? `${counted(rows, "row")} × ${counted(cols, "column")} and the global tile: ` : "";
  const cut = isVideo ? `${about}${counted(tiles, "frame")}, a tile each` : grid + counted(tiles, "tile");
  const pixels = [width, height].map(side => side.toLocaleString("en")).join(" × ");
  const textContent = `${pixels} pixels · ${cut} · ${about}${counted(tokens, "token")}`;
  return make("p", { textContent });
}

function origins({ origins: from }) {
  if (!from) return make("p", { textContent: "The latest answer ended before it was read." });
  const lines = Object.entries(ORIGINS).map(([origin, text]) => {
    const count = from.filter(each => each === origin).length;
    return count ? make("li", { className: origin }, `${counted(count, "tile")} ${text}`) : "";
  });
  return make("div", {}, "For the latest answer:", make("ul", {}, ...lines.filter(Boolean)));
}

function unseen(isWaiting) {
  const textContent = isWaiting ? "As it will be cut when it is sent."
    : "As it would be cut now: no answer was asked for since this page was loaded.";
  return make("p", { textContent });
}

// ---- keys and buttons

$("viewer-before").onclick = () => go(-1);
$("viewer-after").onclick = () => go(1);
$("viewer-close").onclick = () => $("viewer").close();
$("viewer").onclick = ({ target }) => {
  if (target === $("viewer")) $("viewer").close();  // beside it
};
$("viewer").onkeydown = ({ key, target }) => {
  if (target.tagName === "VIDEO") return;  // it has arrows of its own
  if (key === "ArrowLeft") go(-1);
  if (key === "ArrowRight") go(1);
};
$("viewer").onclose = () => {
  $("viewer-shown").replaceChildren();
  shown?.focus();
  shown = null;
};
document.addEventListener("answered", () => {
  if (shown?.isConnected) show(shown);
});
