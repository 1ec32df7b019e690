// What the command line says to the page: asked for once, when it is loaded.

import { tab } from "./store.js";
import { call, failure } from "./stream.js";

const TRIES = 4;

// {settings, system, content, conversation, problem}: content and conversation are for the first page
// of a run of the server, not for that page when it is loaded again.
export const start = load();

async function load() {
  let response = await call("/page/start");
  for (let tries = 1; response.status >= 500 && tries < TRIES; tries += 1) {
    await new Promise(done => { setTimeout(done, 250 * 2 ** tries); });
    response = await call("/page/start");
  }
  if (!response.ok) {
    const { status, message } = await failure(response);
    const problem = status === 401 ? "" : `Load the page again, it has no settings: ${message}`;
    return { settings: [], system: null, content: [], problem };
  }
  const found = await response.json();
  if (tab.get("run") === found.run) {
    return { ...found, content: [], conversation: null };
  }
  for (const { name } of found.settings) tab.remove(name);
  tab.set("run", found.run);
  return found;
}
