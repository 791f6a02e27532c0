// Runs before the first paint: a remembered choice of dark or light must not flash the other.
(() => {
  try {
    const theme = localStorage.getItem("modalign.theme");
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is switched off: the page follows the system.
  }
})();
