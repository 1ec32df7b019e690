// Pictures and videos: how they look, how they are sent, and those that wait for the next question.
// A picture is {url, name, video, options, problem}: a data: URL, a name, whether it is a video,
// which of its frames are seen, and why it cannot be used, if it was tried. While it waits it may
// have a `preview`, the address of the file itself, and no url yet; if it `isUnread`, none of use.

import { $, arrange, make, say } from "./dom.js";
import { keepPlace } from "./focus.js";
import { openStream } from "./secure.js";
import { remember, remembered } from "./store.js";

// The endings that inputs/media.py has; browsers know a type for few.
const VIDEO_ENDINGS = [
  ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".m2p",
  ".vob", ".ts", ".mts", ".m2ts", ".m2t", ".tp", ".trp", ".tod", ".3gp", ".3g2", ".flv", ".f4v",
  ".ogv", ".ogm", ".wmv", ".asf", ".h264", ".264", ".h265", ".265", ".hevc", ".m1v", ".m2v", ".ivf",
];
const PICTURE_NAMES = /\.(hei[cf]|avif|jp2|qoi|tiff?)$/i;

const MOST = 100;  // that wait
const MOST_KEPT = 4_000_000;  // characters, which browsers keep for a tab

let waiting = [];
let reading = Promise.resolve();  // until all that were added are read

$("files").accept = ["image/*", "video/*", ".json", ...VIDEO_ENDINGS].join();

// Let other pictures wait; those that waited.
export function exchangeWaiting(pictures) {
  const before = waiting;
  waiting = [...pictures];
  for (const picture of before.filter(each => each.preview && !waiting.includes(each))) {
    URL.revokeObjectURL(picture.preview);
    delete picture.preview;
  }
  showWaiting();
  keepWaiting();
  return before;
}

// The pictures for a question that is asked now, what is `said` of those that stay behind, and `all`
// that waited; null if none of them can be sent.
export function takeWaiting() {
  const unread = waiting.filter(picture => picture.isUnread);
  const names = list(unread.map(({ name }) => name));
  if (unread.length && unread.length === waiting.length) {
    say(`Remove what cannot be read, and ask again: ${names}`);
    return null;
  }
  const all = exchangeWaiting([]), pictures = all.filter(picture => !picture.isUnread);
  return { pictures, said: names && `Asked without what cannot be read: ${names}`, all };
}

// When all that wait are read.
export async function allRead() {
  for (let known; known !== reading;) {
    known = reading;
    await known;
  }
}

// What is too large, or not read yet, is kept by its name alone.
function keepWaiting() {
  const size = waiting.reduce((sum, { url = "" }) => sum + url.length, 0);
  const all = waiting.filter(picture => !picture.isUnread);
  remember("waiting", all.map(({ url, name, video, options }) => (
    size > MOST_KEPT ? { name } : { url, name, video, options })));
}

// Those that waited before the page was loaded again, if they were not too large to be kept.
export function recallWaiting() {
  const before = remembered("waiting") ?? [];
  exchangeWaiting(before.filter(picture => picture.url));
  const lost = before.filter(picture => !picture.url).map(picture => picture.name);
  if (lost.length) say(`Add again what was not kept: ${list(lost)}`);
}

const list = (names, most = 5) => (names.length <= most ? names.join(", ")
  : `${names.slice(0, most - 1).join(", ")} and ${names.length - most + 1} others`);

export const pictureOf = new WeakMap();  // by thumbnails, which are images and videos
const nodes = new WeakMap();  // of those that wait

export function showWaiting() {
  keepPlace($("waiting"), () => arrange($("waiting"), waiting.map(waitingNode)), $("text"));
  document.body.classList.toggle("holding", waiting.length > 0);
  if (waiting.length || !$("cost").hidden) showCost();
}

async function showCost() {
  const { showCost: show } = await import("./cost.js");
  show(waiting.filter(({ isUnread }) => !isUnread));
}

function waitingNode(picture) {
  const key = JSON.stringify([picture.problem, isRead(picture)]);
  const before = nodes.get(picture);
  if (before?.dataset.shown === key) return before;
  const remove = () => {
    picture.isRemoved = true;
    exchangeWaiting(waiting.filter(other => other !== picture));
  };
  const node = thumbnail(picture, remove, before?.firstChild);  // which is loaded
  node.dataset.shown = key;
  node.ariaBusy = !isRead(picture);
  nodes.set(picture, node);
  return node;
}

const isRead = ({ url, isUnread }) => Boolean(url || isUnread);

export function thumbnail(picture, remove, shown = showable(picture)) {
  const { name: title, video, problem } = picture;
  const look = { type: "button", className: "look", textContent: "▦", ariaLabel: `Look at ${title}` };
  const figure = make("figure", {}, shown, ...(video ? [make("button", look)] : []));
  figure.dataset.name = title;  // which stands there if the browser does not show it
  const showName = () => figure.classList.toggle("unshown", shown.complete && !shown.naturalWidth);
  if (!video) shown.onerror = showName;
  if (!video) showName();
  pictureOf.set(shown, picture);
  opens(figure.lastChild, shown);
  if (remove) {
    const button = { type: "button", textContent: "×", ariaLabel: `Remove ${title}` };
    figure.append(make("button", { ...button, onclick: remove }));
  }
  if (problem) {
    figure.classList.add("wrong");
    figure.append(make("figcaption", { textContent: problem }));
  }
  return figure;
}

// Let a thumbnail, or a button beside it, open its picture large.
function opens(node, shown) {
  const open = async () => (await import("./viewer.js")).open(shown);
  node.onclick = open;
  node.onkeydown = event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open();
  };
  node.setAttribute("aria-haspopup", "dialog");
}

function showable({ url, preview, name: title, video }) {
  const src = preview ?? url;
  return video ? make("video", { src, title, controls: true, muted: true })
    : make("img", { src, title, alt: title, tabIndex: 0, role: "button" });
}

// The part of a message that is a picture.
export function asPart({ url, name, video, options }, more = {}) {
  const payload = "data:application/octet-stream" + url.slice(url.indexOf(";base64,"));
  const type = video ? "video_url" : "image_url";
  return { type, [type]: { url: payload, ...more }, name, ...options };
}

// The picture of a part that comes from the server or a file; null if it is none.
export function fromPart({ type, base64, name, image_url, video_url, ...options }) {
  const video = ["video", "video_url"].includes(type);
  const given = image_url?.url ?? image_url ?? video_url?.url ?? video_url;
  const url = given ?? `data:${video ? "video/mp4" : "image/png"};base64,${base64}`;
  if (!(given || base64) || !url.startsWith("data:")) return null;
  return { url, name: name || "picture", video, options };
}

export function isMedia({ name, type }) {
  return isVideo({ name, type }) || type.startsWith("image/") || PICTURE_NAMES.test(name);
}

function isVideo({ name, type }) {
  return type.startsWith("video/") || VIDEO_ENDINGS.some(end => name.toLowerCase().endsWith(end));
}

// Let files wait: they are shown at once, and read one after the other. `problems` are lines on
// what else was to be added.
export async function add(files, problems = []) {
  const others = files.filter(file => !isMedia(file)).map(({ name }) => name);
  const taken = files.filter(isMedia).slice(0, Math.max(MOST - waiting.length, 0));
  const left = files.length - others.length - taken.length;
  say([
    ...problems,
    others.length === 1 && `${others[0]} is no picture and no video`,
    others.length > 1 && `These are no pictures and no videos: ${list(others)}`,
    left > 0 && `At most ${MOST} can wait: ${left} were not added.`,
  ].filter(Boolean).join("\n"));
  const pictures = taken.map(file => ({
    preview: URL.createObjectURL(file), name: file.name || "pasted picture", video: isVideo(file),
  }));
  waiting.push(...pictures);
  showWaiting();
  keepWaiting();
  $("text").focus();
  reading = reading.then(async () => {
    for (const [at, picture] of pictures.entries()) await take(picture, taken[at]);
    keepWaiting();
  });
  await reading;
}

async function take(picture, file) {
  if (picture.isRemoved) return;
  try {
    const { fitting } = await import("./shrink.js");
    picture.url = await read(picture.video ? file : await fitting(file));
  } catch (error) {
    picture.isUnread = true;
    picture.problem = `cannot be read: ${error.message}`;
  }
  showWaiting();
}

function read(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });
}

// ---- a picture from the camera

let isOpening = false;  // until the browser has asked

export async function openCamera() {
  if (isOpening) return;
  isOpening = true;
  try {
    $("video").srcObject = await openStream(1920);
    $("shot").showModal();
  } catch (error) {
    say(`no camera: ${error.message}`);
  }
  isOpening = false;
}

export function takePicture() {
  const { videoWidth: width, videoHeight: height, readyState } = $("video");
  if (readyState < HTMLMediaElement.HAVE_CURRENT_DATA) {  // it is taken when there is one
    $("video").onloadeddata = takePicture;
    return;
  }
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  canvas.toBlob(blob => {
    if (blob) add([new File([blob], "camera.png", { type: "image/png" })]);
    else say("The browser has no room for a picture of this camera.");
  });
  $("shot").close();
}

export function closeCamera() {
  $("video").srcObject?.getTracks().forEach(track => track.stop());
  $("video").srcObject = null;
  $("video").onloadeddata = null;
}
