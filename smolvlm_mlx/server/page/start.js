// What the command line says to the page: asked for once, when it is loaded.

import { tab } from "./store.js";
import { call } from "./stream.js";

// {settings, system, content, conversation}: the last two are for the first page of a run of the
// server, not for that page when it is loaded again.
export const start = load();

async function load() {
  const response = await call("/page/start");
  if (!response.ok) return { settings: [], system: null, content: [] };
  const found = await response.json();
  if (tab.get("run") === found.run) {
    return { ...found, content: [], conversation: null };
  }
  for (const { name } of found.settings) tab.remove(name);
  tab.set("run", found.run);
  return found;
}
