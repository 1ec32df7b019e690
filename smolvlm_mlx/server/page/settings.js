// What is set for all questions. All but the instructions stays in this browser.

import { $ } from "./dom.js";

const SAMPLING = ["max_tokens", "temperature", "top_p", "seed"];  // as in a request
const KEPT = [...SAMPLING, "live-question", "live-every"];

export function restoreSettings() {
  for (const id of KEPT) {
    $(id).value = localStorage.getItem(id) ?? $(id).value;
    $(id).onchange = () => localStorage.setItem(id, $(id).value);
  }
}

export function sampling() {
  return Object.fromEntries(SAMPLING.map(id => [id, number($(id).value)]));
}

// No number is no field in the request.
function number(text) {
  return text === "" ? undefined : Number(text);
}
