// Requests to the server, and answers that come piece by piece.

import { fetchAsUser } from "./token.js";

const QUIET = 15_000;  // ms without a piece, until the server is asked whether it is still at it
const PATIENCE = 10_000;  // ms for that answer

const AWAY = "The server cannot be reached. When it runs again, what is here can be asked again.";
const NO_TOKEN = "No valid token: open the address that the server printed when it was started, "
  + "here or in another tab. What is here stays.";

// An id by which the server knows a conversation or a camera again.
export function newId() {
  const bytes = Array.from(crypto.getRandomValues(new Uint8Array(8)));
  return bytes.map(byte => byte.toString(16).padStart(2, "0")).join("");
}

// What the server answers; also where there is none, which is an answer that is not ok.
export async function call(path, options = {}) {
  try {
    return await fetchAsUser(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return Response.json({ error: { message: AWAY } }, { status: 504 });
  }
}

// What a response that is not ok says, as an error with its status. `forget` is there when the
// context is full: how many messages are the oldest turn; `param` names what of the request is
// wrong.
export async function failure(response) {
  let error = { message: `the server answers ${response.status}` };
  try {
    error = (await response.json()).error ?? error;
  } catch { /* no JSON */ }
  const { forget, param } = error;
  const message = response.status === 401 ? NO_TOKEN : error.message;
  return Object.assign(new Error(message), { status: response.status, forget, param });
}

// The chunks of the answer to a request, which may still be a promise.
export async function* complete(request, signal) {
  const usage = { stream: true, stream_options: { include_usage: true } };
  const asking = call("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...await request, ...usage }),
    signal,
  });
  const response = await patiently(asking, Infinity);  // it is not idle while it reads pictures
  if (!response.ok) throw await failure(response);
  for await (const chunk of events(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
}

// What comes to a conversation: its leaf, and the answer under way.
export async function* news(id, signal) {
  const response = await call(`/conversations/${id}/events`, { signal });
  if (!response.ok) throw await failure(response);
  yield* events(response, reader => patiently(reader.read(), 1, 2 * QUIET));  // it says that it is there
}

// Server-sent events, each of which is one line here. The end of the stream is not the answer's.
async function* events(response, next = nextInTime) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await next(reader);
      if (done) throw new Error("the server ended the answer before its end");
      const lines = (held + value).split("\n\n");
      held = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) yield JSON.parse(line.slice("data: ".length));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// What comes next, however long the server is at it. If the connection breaks, it may still be.
async function nextInTime(reader) {
  const reading = reader.read().catch(error => {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("the connection to the server broke"), { isBroken: true });
  });
  return patiently(reading, 2);
}

// What a promise gives, as long as the server lives; it may be idle a few times when it is asked.
async function patiently(promise, mayBeIdle, quiet = QUIET) {
  for (let idle = 0; idle < mayBeIdle;) {
    const came = await within(promise, quiet);
    if (came) return came;
    const working = await Promise.race([promise, within(isWorking(), PATIENCE)]);
    if (working === undefined) throw new Error("the server no longer answers");
    idle = working ? 0 : idle + 1;
  }
  throw new Error("the server is no longer at this answer");
}

// A promise's value, or undefined when it takes longer.
function within(promise, ms) {
  let timer;
  const late = new Promise(done => { timer = setTimeout(done, ms); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// Whether the server makes or holds back any answers; undefined if it does not answer.
async function isWorking() {
  const response = await call("/health");
  if (response.status === 504) return undefined;
  const { running, waiting } = await response.json();
  return running + waiting > 0;
}
