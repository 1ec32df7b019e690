// Formulas and colors of code: made by libraries that are loaded when an answer first has any.
// Until then, and where that fails, there is the source.

import { make } from "./dom.js";

const VENDOR = new URL("./vendor/", import.meta.url).href;
const MAX_FORMULA = 2_000;  // characters
const MAX_CODE = 10_000;
const LONG_WORD = /[^\s]{200}/;  // some grammars take the square of a word's length

let temml = null, highlighter = null;
const loading = {};

// Make formulas, and code that is whole, richer: now, or in the page when the library is there.
export function enrich(node, isOpen) {
  enrichAll(node, ".math[data-formula]", "math", temml, loadMath, showFormula);
  if (!isOpen) {
    enrichAll(node, "code[data-language]", "code", highlighter, loadHighlighter, color);
  }
}

function enrichAll(node, selector, name, library, prepare, change) {
  const found = [node, ...node.querySelectorAll(selector)].filter(each => each.matches(selector));
  if (library) return found.forEach(change);
  if (!found.length || loading[name]) return;
  const there = () => document.querySelectorAll(`${selector}:not(.open, .open *)`).forEach(change);
  loading[name] = prepare().then(there, () => { delete loading[name]; });
}

// ---- formulas

function loadMath() {
  document.head.append(make("link", { rel: "stylesheet", href: `${VENDOR}Temml-Local.css` }));
  return new Promise((done, fail) => {
    const onload = () => { temml = window.temml; done(); };
    document.head.append(make("script", { src: `${VENDOR}temml.min.js`, onload, onerror: fail }));
  });
}

function showFormula(node) {
  const source = node.textContent, displayMode = node.dataset.formula === "displayed";
  delete node.dataset.formula;
  if (source.length > MAX_FORMULA) return;
  const limits = { maxExpand: 100, maxSize: [10, 100] };  // macros; em and pt
  const shown = make("span");
  try {
    temml.render(source, shown, { displayMode, throwOnError: true, annotate: true, ...limits });
    node.replaceChildren(...shown.childNodes);
  } catch { /* no formula: its source stays */ }
}

// ---- code

async function loadHighlighter() {
  highlighter = (await import("./vendor/highlight.min.js")).default;
}

function color(node) {
  const { language } = node.dataset, text = node.textContent;
  delete node.dataset.language;
  if (!highlighter.getLanguage(language) || text.length > MAX_CODE || LONG_WORD.test(text)) return;
  node.innerHTML = highlighter.highlight(text, { language, ignoreIllegals: true }).value;
}
