// What pictures and videos cost. The server, which cuts them, is asked by their sizes before they
// are sent; with an answer it says how it saw them. Nothing of it is computed here.

import { $ } from "./dom.js";
import { change, chosen } from "./settings.js";
import { start } from "./start.js";
import { remember, remembered } from "./store.js";
import { call, failure } from "./stream.js";

const PATIENCE = 10_000;  // ms, in which a browser says how large a picture is

const sizes = new WeakMap();  // of pictures: promises of {width, height, seconds}
const costs = new Map();  // by the query that asks for one: promises
const seen = new WeakMap();  // of pictures, as the latest answer saw them

let waiting = [];
let turns = 0;  // how often the line was begun to be written

// What a picture is to the model as it would be sent now. Throws where that cannot be told.
export async function costOf(picture) {
  if (!sizes.has(picture)) sizes.set(picture, measured(picture));
  const [size, { longest_edge, split, max_tiles }] = await Promise.all(
    [sizes.get(picture), chosen()]);
  const own = picture.video ? picture.options : {};
  const said = { ...size, ...own, longest_edge, split, max_tiles };
  const fields = Object.entries(said).filter(([, value]) => (value ?? null) !== null);
  const query = String(new URLSearchParams(fields));
  if (!costs.has(query)) costs.set(query, askFor(query));
  return costs.get(query);
}

async function askFor(query) {
  const response = await call(`/tiles?${query}`);
  if (response.ok) return response.json();
  costs.delete(query);
  throw await failure(response);
}

// The size that it is shown in, turned as its EXIF says.
function measured({ url, preview, video }) {
  const node = document.createElement(video ? "video" : "img");
  return new Promise((done, fail) => {
    node.onload = () => done({ width: node.naturalWidth, height: node.naturalHeight });
    node.onloadedmetadata = () => done(
      { width: node.videoWidth, height: node.videoHeight, seconds: node.duration });
    node.onerror = () => fail(new Error("This browser cannot show it; the model may see it."));
    setTimeout(node.onerror, PATIENCE);
    node.preload = "metadata";
    node.src = preview ?? url;
  });
}

// ---- after an answer

// How the latest answer saw a picture; nothing, if none did since the page was loaded.
export const seenOf = picture => seen.get(picture);

// Take what an answer says of the pictures that it was about, and how long it took to read them.
export async function noteAnswer(pictures, { usage, seen: found = [] }) {
  found.forEach((each, at) => seen.set(pictures[at], each));
  const { prompt_tokens: all, prompt_tokens_details: { cached_tokens: reused }, timing } = usage;
  const origins = found.flatMap(each => each.origins ?? []);
  const tiles = origins.filter(origin => origin === "computed").length;
  const before = await speed(), tokens = all - reused;
  remember("speed", {
    ...before,
    tiles: before.tiles + tiles,
    tokens: before.tokens + tokens,
    ofTiles: before.ofTiles + (tiles ? timing.preprocess + timing.vision : 0),
    ofTokens: before.ofTokens + timing.prefill,
  });
}

// How many tiles and tokens were computed for this session's answers, and the seconds of each.
async function speed() {
  const { run } = await start, kept = remembered("speed");
  return kept?.run === run ? kept : { run, tiles: 0, ofTiles: 0, tokens: 0, ofTokens: 0 };
}

// ---- before a question

// Tell what the pictures that wait cost.
export async function showCost(pictures = waiting) {
  const turn = turns += 1;
  waiting = pictures;
  const told = await Promise.allSettled(pictures.map(costOf));
  const found = told.filter(({ value }) => value).map(({ value }) => value);
  const line = describe(found, told.length - found.length, await speed());
  const { max_tiles: limit } = await chosen();
  if (turn !== turns) return;  // it was begun anew
  $("cost").hidden = !pictures.length;
  $("cost-line").textContent = line;
  showSlider(Math.max(1, ...found.map(({ most_tiles: most = 1 }) => most)), limit);
}

function describe(found, unknown, { tiles, ofTiles, tokens, ofTokens }) {
  const sum = (name, those = found) => those.reduce((total, each) => total + each[name], 0);
  const frames = sum("tiles", found.filter(({ is_video: isVideo }) => isVideo));
  const all = sum("tiles"), cost = sum("tokens"), about = frames ? "about " : "";
  const seconds = tiles && tokens ? all * ofTiles / tiles + cost * ofTokens / tokens : null;
  return [
    all > frames && counted(all - frames, "tile"),
    frames && about + counted(frames, "frame"),
    cost && about + counted(cost, "token"),
    cost && seconds !== null && `about ${rounded(seconds)} s to read`,
    unknown && `${unknown} whose cost cannot be told`,
  ].filter(Boolean).map(part => part.replace(" ", "\u00a0")).join(" · ");
}

export function counted(count, what) {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
}

function rounded(seconds) {
  return seconds < 10 ? Math.max(seconds, 0.1).toFixed(1) : String(Math.round(seconds));
}

// Its right end is what the server does unasked.
function showSlider(most, limit) {
  const slider = $("most-tiles"), isLimited = Number.isInteger(limit) && limit < most;
  $("most").hidden = most < 2;
  slider.max = most;
  slider.value = isLimited ? limit : most;
  $("most-words").textContent = isLimited ? `at most ${limit}` : "all";
  slider.setAttribute("aria-valuetext", $("most-words").textContent);
}

$("most-tiles").oninput = ({ target: { value, max } }) => {
  change("max_tiles", value === max ? "" : value);
};
document.addEventListener("set", () => showCost());
