// The start of the page: what each button, key and drop does.

import { ask, leave, show, stopAnswer } from "./conversation.js";
import { $, grow } from "./dom.js";
import { openKept, refresh, startNew, toggleList } from "./history.js";
import { toggleLive } from "./live.js";
import {
  add, closeCamera, exchangeWaiting, fromPart, openCamera, takePicture,
} from "./pictures.js";
import { showSettings } from "./settings.js";
import { start } from "./start.js";
import { call } from "./stream.js";

// ---- the question

$("text").oninput = grow;
$("text").onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
};
$("ask").onsubmit = event => {
  event.preventDefault();
  ask();
};
$("stop-answer").onclick = stopAnswer;
addEventListener("keydown", event => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) leave();
});

// ---- pictures

$("add").onclick = () => $("files").click();
$("files").onchange = () => {
  add([...$("files").files]);
  $("files").value = "";
};
addEventListener("paste", event => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;
  event.preventDefault();
  add(files);
});
addEventListener("dragover", event => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", event => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  add([...event.dataTransfer.files]);
});
$("camera").onclick = openCamera;
$("take").onclick = takePicture;
$("cancel-shot").onclick = () => $("shot").close();
$("shot").onclose = closeCamera;

// ---- the rest

$("live-toggle").onclick = toggleLive;
$("open-settings").onclick = () => $("settings").showModal();
$("new").onclick = startNew;
$("search").oninput = refresh;
$("list-toggle").onclick = toggleList;
document.addEventListener("answered", refresh);

async function showModel() {
  const response = await call("/v1/models");
  if (response.ok) $("model").textContent = (await response.json()).data[0].id;
}

async function begin() {
  const { system, content, conversation } = await start;
  if (conversation) await openKept(conversation);
  if (system !== null) $("system").value = system;
  const pictures = content.filter(part => part.type !== "text").map(fromPart);
  if (pictures.length) exchangeWaiting(pictures);
}

showSettings();
show();
showModel();
refresh();
begin();
