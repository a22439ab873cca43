// Light and dark: the system's, until the person chooses.

import { byId } from "./dom.js";
import { forEver } from "./storage.js";

const STORED = "edgelm.theme";

export function followTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    document.documentElement.dataset.theme = forEver.getItem(STORED) ?? (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", apply);
  byId("theme").addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    // What the system says anyway is not a choice: the page follows it again.
    if ((next === "dark") === system.matches) forEver.removeItem(STORED);
    else forEver.setItem(STORED, next);
    apply();
  });
  apply();
}
