// Pictures and videos: how they look, how they are sent, and those that wait for the next question.
// A picture is {url, name, video, options, problem}: a data: URL, a name, whether it is a video,
// which of its frames are seen, and why it cannot be used, if it was tried.

import { showCost } from "./cost.js";
import { $, make, say } from "./dom.js";
import { openStream } from "./secure.js";
import { remember, remembered } from "./store.js";
import { opens } from "./viewer.js";

// The endings that inputs/media.py has; browsers know a type for few.
const VIDEO_ENDINGS = [
  ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".m2p",
  ".vob", ".ts", ".mts", ".m2ts", ".m2t", ".tp", ".trp", ".tod", ".3gp", ".3g2", ".flv", ".f4v",
  ".ogv", ".ogm", ".wmv", ".asf", ".h264", ".264", ".h265", ".265", ".hevc", ".m1v", ".m2v", ".ivf",
];
const PICTURE_NAMES = /\.(hei[cf]|avif|jp2|qoi|tiff?)$/i;

let waiting = [];

$("files").accept = ["image/*", "video/*", ".json", ...VIDEO_ENDINGS].join();

// Let other pictures wait; those that waited.
export function exchangeWaiting(pictures) {
  const before = waiting;
  waiting = [...pictures];
  showWaiting();
  return before;
}

// Those that waited before the page was loaded again, if they were not too large to be kept.
export function recallWaiting() {
  const before = remembered("waiting") ?? [];
  exchangeWaiting(before.filter(picture => picture.url));
  const lost = before.filter(picture => !picture.url).map(picture => picture.name);
  if (lost.length) say(`Add again what was too large to be kept: ${lost.join(", ")}`);
}

export function showWaiting() {
  remember("waiting", waiting);
  const remove = picture => exchangeWaiting(waiting.filter(other => other !== picture));
  const thumbnails = waiting.map(picture => thumbnail(picture, () => remove(picture)));
  $("waiting").replaceChildren(...thumbnails);
  showCost(waiting);
}

export function thumbnail(picture, remove) {
  const { url: src, name: title, video, problem } = picture;
  const shown = video ? make("video", { src, title, controls: true, muted: true })
    : make("img", { src, title, alt: title, tabIndex: 0, role: "button" });
  const look = { type: "button", className: "look", textContent: "▦", ariaLabel: `Look at ${title}` };
  const figure = make("figure", {}, shown, ...(video ? [make("button", look)] : []));
  opens(figure.lastChild, shown, picture);
  if (remove) {
    const button = { type: "button", textContent: "×", ariaLabel: `Remove ${title}` };
    figure.append(make("button", { ...button, onclick: remove }));
  }
  if (problem) {
    figure.className = "wrong";
    figure.append(make("figcaption", { textContent: problem }));
  }
  return figure;
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

export async function add(files) {
  for (const file of files) {
    const name = file.name.toLowerCase();
    const video = file.type.startsWith("video/") || VIDEO_ENDINGS.some(end => name.endsWith(end));
    if (!video && !file.type.startsWith("image/") && !PICTURE_NAMES.test(file.name)) {
      say(`${file.name} is no picture and no video`);
      continue;
    }
    try {
      waiting.push({ url: await read(file), name: file.name || "pasted picture", video });
    } catch (error) {
      say(`${file.name} cannot be read: ${error.message}`);
    }
  }
  showWaiting();
  $("text").focus();
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

export async function openCamera() {
  try {
    $("video").srcObject = await openStream(1920);
    $("shot").showModal();
  } catch (error) {
    say(`no camera: ${error.message}`);
  }
}

export function takePicture() {
  const { videoWidth: width, videoHeight: height } = $("video");
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  canvas.toBlob(blob => add([new File([blob], "camera.png", { type: "image/png" })]));
  $("shot").close();
}

export function closeCamera() {
  $("video").srcObject?.getTracks().forEach(track => track.stop());
  $("video").srcObject = null;
}
