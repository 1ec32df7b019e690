// The start of the page: what each button, key and drop does.

import { ask, stopAnswer } from "./asking.js";
import "./buttons.js";
import { addressed, openId, show } from "./conversation.js";
import { $, say, write, written } from "./dom.js";
import { recallAsked } from "./draft.js";
import { isComposed } from "./focus.js";
import { openAddress, openFile, openKept, refresh, startNew, toggleList } from "./history.js";
import "./keys.js";
import { watch } from "./news.js";
import {
  add, allRead, closeCamera, exchangeWaiting, fromPart, isMedia, openCamera, recallWaiting,
  takePicture,
} from "./pictures.js";
import { showSettings } from "./settings.js";
import { start } from "./start.js";
import { remembered } from "./store.js";
import { call } from "./stream.js";

// ---- the question

$("text").oninput = written;
$("text").onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey || isComposed(event)) return;
  event.preventDefault();
  send();
};
$("ask").onsubmit = event => {
  event.preventDefault();
  send();
};

// Ask when all is read, in the conversation that is open now.
async function send() {
  await ready;
  const id = openId();
  $("send").ariaBusy = true;
  await allRead();
  $("send").ariaBusy = false;
  if (id === openId()) ask();
  else say("Not sent: another conversation was opened before the pictures were read.");
}

$("stop-answer").onclick = stopAnswer;

// ---- pictures, and conversations that were saved

function take(files, problems = []) {
  const saved = files.filter(file => file.name.endsWith(".json"));
  const others = files.filter(file => !saved.includes(file));
  const many = saved.length > 1 ? ["One conversation is opened at a time: drop one of them."] : [];
  if (saved.length === 1) openFile(saved[0]);
  const all = [...many, ...problems];
  if (others.length || all.length) add(others, all);
}

$("add").onclick = () => $("files").click();
$("files").onchange = () => {
  take([...$("files").files]);
  $("files").value = "";
};
addEventListener("paste", event => {
  const { files, types } = event.clipboardData;
  // Cells of a table come as a picture, too.
  const isText = types?.includes("text/plain") && types.includes("text/html");
  if (!files.length || isText) return;
  event.preventDefault();
  take([...files]);
});
addEventListener("dragover", event => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", event => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", event => {
  document.body.classList.remove("dropping");
  const data = event.dataTransfer, html = data.getData("text/html");
  // Read now: after the event it is gone.
  const dropped = [...data.items].filter(({ kind }) => kind === "file").map(item => {
    const entry = item.webkitGetAsEntry?.();
    return entry?.isDirectory ? entry : item.getAsFile();
  }).filter(Boolean);
  const isText = !dropped.length && !/<img\s/i.test(html);
  if (isText && event.target === $("text")) return;  // the browser puts it there
  event.preventDefault();
  takeDropped({ dropped, html, list: data.getData("text/uri-list") });
});

async function takeDropped(what) {
  const { gather } = await import("./files.js");
  const { files, problems } = await gather(what, isMedia);
  take(files, problems);
}

$("camera").onclick = openCamera;
$("take").onclick = takePicture;
$("cancel-shot").onclick = () => $("shot").close();
$("shot").onclose = closeCamera;

// ---- the rest

$("live-toggle").onclick = async () => (await import("./live.js")).toggleLive();
$("open-settings").onclick = () => $("settings").showModal();
$("new").onclick = startNew;
$("search").oninput = refresh;
$("list-toggle").onclick = toggleList;
document.addEventListener("answered", refresh);
document.addEventListener("visibilitychange", watch);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
addEventListener("popstate", () => {
  if (addressed() !== openId()) openAddress();
});
document.addEventListener("token", async () => {
  if (!(await start).run) return location.reload();  // it had no token, and so has no settings
  say("");
  showModel();
  watch();
  refresh();
});

async function showModel() {
  const response = await call("/v1/models");
  if (response.ok) $("model").textContent = (await response.json()).data[0].id;
}

async function begin() {
  const { system, content, conversation, problem } = await start;
  if (problem) say(problem);
  $("system").value = system ?? $("system").value;
  if (conversation) await openKept(conversation);
  else if (addressed()) await openAddress();
  if (conversation) $("system").value = system ?? $("system").value;
  const pictures = content.filter(part => part.type !== "text").map(fromPart);
  if (pictures.length) exchangeWaiting(pictures);
}

write(remembered("question") ?? "");
recallWaiting();
recallAsked();
showSettings();
show();
showModel();
refresh();
const ready = begin().catch(error => say(error.message));
