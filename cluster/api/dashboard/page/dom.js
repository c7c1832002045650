// Making and changing elements. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. properties: attributes by name; `on...` are listeners, `text` its text; what is null or false is left out. */
export function h(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

/** An SVG element. */
export function s(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets a text where it is another one: what stays as it is costs no layout. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets an attribute where it is another one; null removes it. */
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Sets a custom property of CSS, for lengths that come from figures. */
export function setLength(element, name, value) {
  if (element.style.getPropertyValue(name) !== value) element.style.setProperty(name, value);
}

/**
 * Makes the children of `parent` those of `items`, in their order: an element stays with its key, so that focus and
 * selection outlive an update. make(item): a new element; update(element, item): called for each, new ones too.
 */
export function keyed(parent, items, key, make, update) {
  const known = (parent.known ??= new Map());
  const wanted = new Set();
  let before = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    wanted.add(name);
    let element = known.get(name);
    if (element === undefined) known.set(name, (element = make(item)));
    update(element, item);
    if (element === before) before = before.nextElementSibling;
    else parent.insertBefore(element, before);
  }
  for (const [name, element] of known) {
    if (wanted.has(name)) continue;
    element.remove();
    known.delete(name);
  }
}

/** A section with a heading; `tools` stand at its right. */
export function panel(title, { tools = [], ...properties } = {}, ...children) {
  const head = h("div", { class: "panel-head" }, h("h2", { text: title }), h("div", { class: "tools" }, tools));
  return h("section", { class: "panel", "aria-label": title, ...properties }, head, ...children);
}

/** A line in place of a list that has none. */
export function drawEmpty(list, isEmpty, text) {
  list.empty ??= h("p", { class: "empty muted" });
  setText(list.empty, text);
  if (!isEmpty) list.empty.remove();
  else if (!list.empty.isConnected) list.after(list.empty);
}
