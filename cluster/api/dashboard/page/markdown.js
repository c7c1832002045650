// What answers are written in, as elements: paragraphs, headings, lists, quotes, code, emphasis, links. Made of nodes, never of HTML.

import { h } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
// In this order: code keeps everything in it as it is.
const INLINE =
  /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(\S(?:[\s\S]*?\S)?)\*\*|(?<![\w*])[*_](\S(?:[^*_]*?\S)?)[*_](?![\w*])|\[([^\]]*)\]\((https?:\/\/[^\s)]+)\)/;

/** The elements of a text. */
export function blocks(text) {
  const lines = text.split("\n");
  const made = [];
  while (lines.length) {
    if (lines[0].trim() === "") lines.shift();
    else made.push(block(lines));
  }
  return made;
}

/** Takes the lines of one block away and returns its element. */
function block(lines) {
  const [line] = lines;
  if (FENCE.test(line)) return code(lines);
  if (RULE.test(line)) return lines.shift() && h("hr");
  const heading = HEADING.exec(line);
  if (heading) {
    lines.shift();
    return h(
      "p",
      {
        class: `heading level-${heading[1].length}`,
        role: "heading",
        "aria-level": String(Math.min(heading[1].length + 2, 6)),
      },
      inline(heading[2]),
    );
  }
  if (ITEM.test(line)) return list(lines);
  if (QUOTE.test(line)) {
    const quoted = [];
    while (lines.length && QUOTE.test(lines[0])) quoted.push(QUOTE.exec(lines.shift())[1]);
    return h("blockquote", {}, blocks(quoted.join("\n")));
  }
  const paragraph = [lines.shift()];
  while (
    lines.length &&
    lines[0].trim() !== "" &&
    ![FENCE, HEADING, ITEM, QUOTE, RULE].some((pattern) => pattern.test(lines[0]))
  )
    paragraph.push(lines.shift());
  return h("p", {}, inline(paragraph.join("\n")));
}

/** Up to its end, or of the text where that has not come yet. */
function code(lines) {
  const [, fence, language] = FENCE.exec(lines.shift());
  const held = [];
  while (lines.length) {
    const line = lines.shift();
    if (line.trim().startsWith(fence) && line.trim().replaceAll(fence[0], "") === "") break;
    held.push(line);
  }
  return h("pre", { "data-language": language || null, tabindex: "0" }, h("code", { text: held.join("\n") }));
}

function list(lines) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const ordered = /\d/.test(mark);
  const element = h(ordered ? "ol" : "ul", {
    start: ordered && parseInt(mark, 10) !== 1 ? String(parseInt(mark, 10)) : null,
  });
  while (lines.length) {
    const found = ITEM.exec(lines[0]);
    if (!found || found[1].length < indent.length || /\d/.test(found[2]) !== ordered) break;
    const deep = found[1].length + found[2].length + 1;
    lines.shift();
    const held = [found[3]];
    while (lines.length && isWithin(lines, deep, indent.length))
      held.push(lines.shift().replace(new RegExp(`^\\s{0,${deep}}`), ""));
    const inner = blocks(held.join("\n"));
    const only =
      inner.length > 0 && inner[0].tagName === "P" && !inner[0].className
        ? [...inner[0].childNodes, ...inner.slice(1)]
        : inner;
    element.append(h("li", {}, only));
    while (lines.length > 1 && lines[0].trim() === "" && ITEM.test(lines[1])) lines.shift();
  }
  return element;
}

/** Whether the next line belongs to an item: it stands deeper, or goes on with its paragraph. */
function isWithin(lines, deep, outer) {
  const [line] = lines;
  if (line.trim() === "")
    return lines.length > 1 && /^\s/.test(lines[1]) && lines[1].search(/\S/) >= Math.min(deep, outer + 2);
  if (line.search(/\S/) > outer) return true;
  return ![FENCE, HEADING, ITEM, QUOTE, RULE].some((pattern) => pattern.test(line));
}

function inline(text) {
  const nodes = [];
  let rest = text;
  for (let found = INLINE.exec(rest); found !== null; found = INLINE.exec(rest)) {
    if (found.index > 0) nodes.push(rest.slice(0, found.index));
    const [, , codeText, strong, emphasis, label, address] = found;
    if (codeText !== undefined) nodes.push(h("code", { text: codeText }));
    else if (strong !== undefined) nodes.push(h("strong", {}, inline(strong)));
    else if (emphasis !== undefined) nodes.push(h("em", {}, inline(emphasis)));
    else nodes.push(h("a", { href: address, rel: "noopener noreferrer", target: "_blank", text: label || address }));
    rest = rest.slice(found.index + found[0].length);
  }
  return rest ? [...nodes, rest] : nodes;
}
