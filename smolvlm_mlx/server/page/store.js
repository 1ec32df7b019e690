// What the browser keeps: of this tab, also when it is loaded again, or of all tabs. What it has no
// room for, or may not keep at all, the page keeps for as long as it is open.

class Store {
  #find;
  #unkept = new Map();

  constructor(find) {
    this.#find = find;  // a browser that may keep nothing throws even here
  }

  get(name) {
    if (this.#unkept.has(name)) return this.#unkept.get(name);
    try {
      return this.#find().getItem(name);
    } catch {
      return null;
    }
  }

  // Whether the browser keeps it.
  set(name, value) {
    try {
      this.#find().setItem(name, value);
      this.#unkept.delete(name);
      return true;
    } catch {
      this.remove(name);  // what it was before is not to come back
      this.#unkept.set(name, value);
      return false;
    }
  }

  remove(name) {
    this.#unkept.delete(name);
    try {
      this.#find().removeItem(name);
    } catch { /* so it is not there */ }
  }
}

export const tab = new Store(() => sessionStorage);
export const everywhere = new Store(() => localStorage);

// Pictures are left out where they are too large for what the browser keeps.
export function remember(name, value) {
  if (tab.set(name, JSON.stringify(value))) return;
  tab.set(name, JSON.stringify(value, (key, inner) => (key === "url" ? undefined : inner)));
}

export function remembered(name) {
  return JSON.parse(tab.get(name));
}
