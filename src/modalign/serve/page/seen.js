// Work that waits until its element comes near the screen.

const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      target.dispatchEvent(new Event("seen"));
    }
  },
  { rootMargin: "300px" },
);

/** Call a function once an element comes near the screen. */
export function whenSeen(element, then) {
  element.addEventListener("seen", then, { once: true });
  seen.observe(element);
}
