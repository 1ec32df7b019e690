// Requests to the server, and answers that come piece by piece.

// The token comes in the fragment, which no server sees, and does not stay in the address.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}
const token = sessionStorage.getItem("token");

// An id by which the server knows a conversation or a camera again.
export function newId() {
  const bytes = Array.from(crypto.getRandomValues(new Uint8Array(8)));
  return bytes.map(byte => byte.toString(16).padStart(2, "0")).join("");
}

export function call(path, options = {}) {
  const authorization = token && { authorization: `Bearer ${token}` };
  return fetch(path, { ...options, headers: { ...authorization, ...options.headers } });
}

// What a response that is not ok says, as an error with its status. `forget` is there when the
// context is full: how many messages are the oldest turn.
export async function failure(response) {
  let error = { message: `the server answers ${response.status}` };
  try {
    error = (await response.json()).error ?? error;
  } catch { /* no JSON */ }
  const { message, forget } = error;
  return Object.assign(new Error(message), { status: response.status, forget });
}

// The chunks of the answer to a request, which may still be a promise.
export async function* complete(request, signal) {
  const usage = { stream: true, stream_options: { include_usage: true } };
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...await request, ...usage }),
    signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const chunk of events(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
}

// Server-sent events, each of which is one line here.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      if (line !== "data: [DONE]") yield JSON.parse(line.slice("data: ".length));
    }
  }
}
