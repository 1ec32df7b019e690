// Who may ask. The token, from the address that the server printed or from the field, is given to
// the server once, for a cookie that no script reads, and is then forgotten here.

import { $ } from "./dom.js";
import { everywhere } from "./store.js";

const WRONG = "That is not the token of this server. It printed the right one when it was started.";
const AWAY = "The server cannot be reached. Is it running?";
const IN_ADDRESS = /#token=([^\s&]*)/;

const tabs = new BroadcastChannel("token");
let token = null;  // for as long as there is no cookie
let problem = "";  // with the one that was given last
let isRefused = false;  // this page, and nobody gave one since
let waiting = null;  // for a token: {promise, done}; the promise says whether there is one
let entering = takeGiven();

// What `fetch` answers; where the server wants a token for something that is only read, once
// somebody has given it.
export async function fetchAsUser(path, options) {
  for (;;) {
    await entering;
    const headers = { ...credentials(), ...options.headers };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    const given = tokenGiven();
    if (options.method || !(await given)) return response;
  }
}

// The cookie is good beside this key alone, which only pages of this origin know: browsers send
// cookies to every port of a host, and so to other servers.
function credentials() {
  const key = everywhere.get("page-key") ?? newKey();
  return { "x-page-key": key, ...(token && { authorization: `Bearer ${token}` }) };
}

function newKey() {
  const bytes = Array.from(crypto.getRandomValues(new Uint8Array(16)));
  const key = bytes.map(byte => byte.toString(16).padStart(2, "0")).join("");
  everywhere.set("page-key", key);
  return key;
}

// ---- a token that is given

// It comes in the fragment, which no server sees, and does not stay in the address.
async function takeGiven() {
  if (!IN_ADDRESS.test(location.hash)) return;
  const given = tokenIn(location.hash);
  history.replaceState(history.state, "", location.pathname + location.search);
  await enter(given);
}

// The token of an address, of a line that the server printed, or as it is; "" for what is none.
function tokenIn(text) {
  const [, inAddress] = IN_ADDRESS.exec(text) ?? [];
  const [, inLine] = /\btoken: (.*)$/.exec(text) ?? [];
  try {
    const given = (inAddress ? decodeURIComponent(inAddress) : inLine ?? text).trim();
    return /^[ -~]*$/.test(given) ? given : "";
  } catch {  // a % that escapes nothing
    return "";
  }
}

// Let the server try a token.
async function enter(given) {
  token = given || null;
  problem = given ? "" : WRONG;
  if (!given) return;
  try {
    const { ok } = await fetch("/v1/models", { headers: credentials() });
    problem = ok ? "" : WRONG;
  } catch {
    problem = AWAY;
    return;  // the token goes with what is asked for next
  }
  if (problem || navigator.cookieEnabled) token = null;
  if (problem) return;
  tabs.postMessage("entered");
  end(true);
}

addEventListener("hashchange", () => { entering = takeGiven(); });
tabs.onmessage = () => end(true);

// ---- the field for it

// Ask for a token; whether there is one then.
function tokenGiven() {
  isRefused = true;
  if (!waiting) {
    waiting = {};
    waiting.promise = new Promise(done => { waiting.done = done; });
    $("token-problem").textContent = problem;
    $("token-field").value = "";
    $("token-dialog").showModal();
  }
  return waiting.promise;
}

function end(isGiven) {
  const { done } = waiting ?? {};
  waiting = null;
  $("token-dialog").close();
  $("token-field").value = "";
  if (isGiven && isRefused) document.dispatchEvent(new Event("token"));
  isRefused &&= !isGiven;
  done?.(isGiven);
}

$("token-dialog").onclose = () => { if (!$("token-dialog").open && waiting) end(false); };
$("token-later").onclick = () => $("token-dialog").close();
$("token-form").onsubmit = async event => {
  event.preventDefault();
  await enter(tokenIn($("token-field").value));
  $("token-problem").textContent = problem;
  if (problem) $("token-field").select();
};
