// Elements made from names, attributes and text. Nothing here reads markup, so no data can be any.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element. Attributes that are functions listen (`onclick`), true is an empty attribute,
 * false and null are left out. Children are nodes or text.
 */
export function make(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function draw(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return one of icons.svg; it says nothing to a screen reader. */
export function icon(name) {
  return draw("svg", { "aria-hidden": "true" }, draw("use", { href: `page/icons.svg#${name}` }));
}

/** Return a button of an icon, and of words that are seen or only read out. */
export function button(words, iconName, attributes = {}, { seen = true } = {}) {
  const named = seen ? attributes : { "aria-label": words, title: words, ...attributes };
  return make(
    "button",
    { type: "button", ...named },
    iconName ? icon(iconName) : null,
    seen ? make("span", {}, words) : null,
  );
}

/** Return the element of an id in the page. */
export function byId(id) {
  return document.getElementById(id);
}

/** Whether the user asked the system for less motion. */
export function calm() {
  return window.matchMedia("(prefers-reduced-motion: reduce)").matches;
}
