// What this browser keeps besides the conversations; where it keeps nothing, as long as the page is open.

export const forEver = storage("localStorage");
export const forThisTab = storage("sessionStorage");

function storage(name) {
  try {
    window[name].getItem(""); // a browser that is told to keep nothing throws here
    return window[name];
  } catch {
    const values = new Map();
    return {
      getItem: (key) => values.get(key) ?? null,
      setItem: (key, value) => values.set(key, value),
      removeItem: (key) => values.delete(key),
    };
  }
}
