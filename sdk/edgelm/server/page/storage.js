// What this browser keeps besides the conversations; where it keeps nothing, as long as the page is open.

export const forEver = storage("localStorage");
export const forThisTab = storage("sessionStorage");

function storage(name) {
  try {
    const store = window[name];
    store.getItem(""); // a browser that is told to keep nothing throws here
    return {
      getItem: (key) => store.getItem(key),
      setItem: (key, value) => {
        try {
          store.setItem(key, value);
        } catch {
          // It is full, of a draft of megabytes: what is on the page stays there, and is lost with it.
        }
      },
      removeItem: (key) => store.removeItem(key),
    };
  } catch {
    const values = new Map();
    return {
      getItem: (key) => values.get(key) ?? null,
      setItem: (key, value) => values.set(key, value),
      removeItem: (key) => values.delete(key),
    };
  }
}
