// What is set for all questions: a field for each option that the server names. What is changed here
// stays in this browser; of an option that was typed for the server, in this tab.

import { $, make } from "./dom.js";
import { start } from "./start.js";
import { everywhere, tab } from "./store.js";

const FIRST = ["max_tokens", "temperature", "top_p", "seed"];  // the others are below "More"
const LIVE = ["live-question", "live-every"];

export async function showSettings() {
  for (const id of LIVE) {
    $(id).value = everywhere.get(id) ?? $(id).value;
    $(id).onchange = () => everywhere.set(id, $(id).value);
  }
  for (const setting of (await start).settings) {
    const place = FIRST.includes(setting.name) ? "first-settings" : "more-settings";
    $(place).append(make("label", {}, title(setting), field(setting)));
  }
}

// The fields of a request: what is not as the server has it anyway.
export async function chosen() {
  const changed = (await start).settings.filter(setting => setting.said || kept(setting));
  return Object.fromEntries(changed.map(setting => [setting.name, value(setting)]));
}

// Set an option as it is set in the dialog; "" is as usual.
export function change(name, value) {
  $(name).value = value;
  $(name).onchange();
}

// What another answer than the one that is there is asked with, and what is `said` of it: the same
// seed, or always the likeliest token, would make the same one.
export const anew = () => sampled("be the same answer", 0);

// The same of one that went in circles and goes on, to which most temperatures are too cold.
export const outOfCircles = () => sampled("go in the same circle");

async function sampled(same, coldest) {
  const { settings, retry_temperature: temperature } = await start;
  const setting = settings.find(({ name }) => name === "temperature");
  if (!setting) return { seed: -1 };
  const now = kept(setting) ? value(setting) : setting.value;
  if (coldest === undefined ? now >= temperature : now > coldest) return { seed: -1 };
  const said = `Sampled at temperature ${temperature}: at ${now} it would ${same}.`;
  return { seed: -1, temperature, said };
}

// ---- a setting: {name, help, kind, value, typed, said}, where the value is the page's untold, which
// is `said` where requests that say nothing are answered otherwise

function title({ name, help }) {
  const words = name.replaceAll("_", " ");
  const text = words[0].toUpperCase() + words.slice(1);
  return make("span", { textContent: text }, make("small", { textContent: help }));
}

function field(setting) {
  const node = input(setting);
  node.oninvalid = () => { $("more").open = true; };  // or the browser could not say what is wrong
  const show = () => { node.value = kept(setting) ?? written(setting.value); };
  node.onchange = () => {
    const isServers = !node.value || node.value === written(setting.value);
    if (isServers) store(setting).remove(setting.name);
    else store(setting).set(setting.name, node.value);
    show();
    document.dispatchEvent(new Event("set"));
  };
  show();
  return node;
}

function input({ name: id, kind }) {
  if (kind === "flag") return make("select", { id }, ...["", "on", "off"].map(choice));
  if (kind === "texts") return make("textarea", { id, placeholder: "none; one a line" });
  const step = kind === "whole" ? "1" : "any";
  return make("input", { id, type: "number", step, placeholder: "as usual" });
}

function choice(value) {
  return make("option", { value, textContent: value || "as usual" });
}

function written(value) {
  if (typeof value === "boolean") return value ? "on" : "off";
  return Array.isArray(value) ? value.join("\n") : String(value ?? "");
}

function store({ typed }) {
  return typed ? tab : everywhere;
}

// As it was changed here; null where it was not.
export function kept(setting) {
  return store(setting).get(setting.name) || null;
}

function value(setting) {
  const text = kept(setting);
  if (text === null) return setting.value;
  if (setting.kind === "texts") return text.split("\n").filter(Boolean);
  return setting.kind === "flag" ? text === "on" : Number(text);
}
