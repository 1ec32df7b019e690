// What stands in an empty conversation: a place for pictures, questions that fit one, and which
// model answers.

import { $, make, write } from "./dom.js";
import { start } from "./start.js";

const drop = make("button", { type: "button", className: "drop" },
  make("strong", { className: "fine", textContent: "Drop pictures here" }),
  make("strong", { className: "coarse", textContent: "Choose or take a picture" }),
  make("span", { className: "fine", textContent: "or click to choose, or paste. Videos and folders, too" }),
  make("span", { className: "coarse", textContent: "or a video" }));
const examples = make("div", { className: "examples" });
const about = make("p", { className: "about" });

export const welcome = make("section", { className: "empty", ariaLabel: "Begin" },
  make("h2", { textContent: "Ask about a picture" }), drop, examples, about);

drop.onclick = () => $("files").click();
start.then(({ about: model }) => {
  if (!model) return;
  examples.replaceChildren(...model.examples.map(textContent => (
    make("button", { type: "button", textContent, onclick: () => offer(textContent) }))));
  const facts = [
    count(model.parameters, 1000, ["", " thousand", " million", " billion"], " parameters"),
    size(model.bytes, " of weights"),
    size(model.memory, " of memory in use"),
  ];
  about.append(make("strong", { textContent: model.model }),
    make("span", { textContent: facts.filter(Boolean).join(" · ") }));
});

// With a picture it is asked at once; without, it waits for one.
function offer(question) {
  write(question);
  if (document.body.classList.contains("holding")) return $("ask").requestSubmit();
  drop.classList.add("wanted");
  $("text").focus();
}

// ---- 2.8 million parameters, 11 MB of weights

const size = (bytes, what) => count(bytes, 1000, [" bytes", " kB", " MB", " GB", " TB"], what);

function count(number, step, units, what) {
  if (!number) return "";
  let at = 0, left = number;
  for (; left >= step && at < units.length - 1; at += 1) left /= step;
  return Number(left.toPrecision(left < 100 ? 2 : 3)) + units[at] + what;
}
