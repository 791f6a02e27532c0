// Dark and light: as the system has it, or as it was chosen here. theme.js applies it before the first paint.

import { toast } from "./dialogs.js";
import { remember } from "./store.js";

/** Take the other of dark and light; what the system has too is not remembered. */
export function switchTheme() {
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const root = document.documentElement;
  const isDark = (root.dataset.theme ?? (systemIsDark ? "dark" : "light")) === "dark";
  const next = isDark ? "light" : "dark";
  root.dataset.theme = next;
  remember("theme", (next === "dark") === systemIsDark ? null : next);
  toast(next === "dark" ? "Dark" : "Light");
}
