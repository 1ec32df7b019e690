// Live: one question about the camera's newest frame, again and again. Frames that come meanwhile
// are not kept. The server compares the answers, and says when they stay the same.

import { $, announce, make, say } from "./dom.js";
import { keepFocus } from "./focus.js";
import { asPart } from "./pictures.js";
import { openStream } from "./secure.js";
import { chosen } from "./settings.js";
import { start } from "./start.js";
import { complete, newId } from "./stream.js";

const MAX_TOKENS = 128;  // unless a length was chosen
const MAX_SIDE = 1024;  // pixels that are sent

let told = "";  // to screen readers, as the last answer
let live = null;  // while it is on: {id, controller, stream}

export function toggleLive() {
  if (live) turnOff();
  else turnOn();
}

async function turnOn() {
  const mine = live = { id: newId(), controller: new AbortController() };
  show();
  say("");
  try {
    await openCamera(mine);
  } catch (error) {
    fail(mine, `no camera: ${error.message}`);
  }
  while (mine === live) {
    const began = performance.now();
    if (!document.hidden && $("live-video").videoWidth && question()) await look(mine);
    const wait = Number($("live-every").value) * 1000 - (performance.now() - began);
    await new Promise(done => setTimeout(done, Math.max(wait, 50)));
  }
}

async function openCamera(mine) {
  mine.stream = await openStream(1280);
  if (mine !== live) return endTracks(mine);  // it was turned off while the browser asked
  for (const track of mine.stream.getTracks()) {
    track.onended = () => fail(mine, "the camera is gone");
  }
  $("live-video").srcObject = mine.stream;
  await $("live-video").play();
}

function fail(mine, message) {
  if (mine !== live) return;
  turnOff();
  say(message);
}

function turnOff() {
  const mine = live;
  live = null;
  mine.controller.abort();
  endTracks(mine);
  $("live-video").srcObject = null;
  show();
}

function endTracks({ stream }) {
  for (const track of stream?.getTracks() ?? []) {
    track.onended = null;
    track.stop();
  }
}

function show() {
  keepFocus($("live"), () => { $("live").hidden = !live; }, () => [$("live-toggle")]);
  $("live-toggle").setAttribute("aria-pressed", Boolean(live));
  told = "";
  for (const id of ["live-answer", "live-about", "live-notice"]) $(id).textContent = "";
}

// ---- one look

function question() {
  return $("live-question").value.trim();
}

// What the camera sees, which is not what the mirrored element shows.
function frame() {
  const { videoWidth, videoHeight } = $("live-video");
  const scale = Math.min(1, MAX_SIDE / Math.max(videoWidth, videoHeight));
  const [width, height] = [videoWidth, videoHeight].map(side => Math.round(side * scale));
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").drawImage($("live-video"), 0, 0, width, height);
  return { url: canvas.toDataURL("image/jpeg", 0.92) };
}

async function request(id) {
  const content = [asPart(frame(), { detail: "low" }), { type: "text", text: question() }];
  const messages = [{ role: "user", content }];
  return { messages, live: id, ...await length(), ...await chosen() };
}

async function length() {
  const { typed } = (await start).settings.find(({ name }) => name === "max_tokens") ?? {};
  return typed ? {} : { max_tokens: MAX_TOKENS };
}

async function look(mine) {
  const started = performance.now();
  let text = "", verdict;
  try {
    for await (const chunk of complete(request(mine.id), mine.controller.signal)) {
      text += chunk.choices[0]?.delta.content ?? "";
      if (text) $("live-answer").textContent = text;
      verdict = chunk.live ?? verdict;
    }
    if (mine === live) tell(text, verdict, performance.now() - started);
  } catch (error) {
    if (error.status !== 503) fail(mine, error.message);  // 503: busy, so this frame is dropped
  }
}

function tell(text, { about, stuck }, took) {
  const notice = stuck ? "The answer stays the same although the picture changes." : "";
  $("live-answer").textContent = text;
  if (text !== told) announce(text);
  told = text;
  $("live-about").textContent = `${about} · ${Math.round(took)} ms in all`;
  if ($("live-notice").textContent !== notice) $("live-notice").textContent = notice;  // said once
}
