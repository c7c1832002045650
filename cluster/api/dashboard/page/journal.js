// What happened and what was written: events, doctor's findings, the ends of the logs.

import { drawEvents, drawFindings } from "./cluster.js";
import { h, panel, setAttribute, setText } from "./dom.js";

const MOST_SHOWN = 1000;
const SERIOUS = [
  [/\b(ERROR|CRITICAL)\b|"level": ?"(error|critical)"/, "error"],
  [/\bWARNING\b|"level": ?"warning"/, "warning"],
];

export function makeJournal(root, page) {
  const events = h("ol", { class: "events long" });
  const findings = h("ul", { class: "findings" });
  const lines = h("div", { class: "log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": "Log lines" });
  const filter = h("input", {
    type: "search",
    placeholder: "Show lines with \u2026",
    "aria-label": "Show only lines with",
    oninput: () => drawLines(),
  });
  const follow = h("input", { type: "checkbox", checked: true });
  const locked = h("p", { class: "muted", text: "Logs are shown to those who have a key." });
  root.append(
    h("div", { class: "view-head" }, h("h2", { text: "Journal" })),
    h("div", { class: "two" }, panel("Events", {}, events), panel("What doctor finds", {}, findings)),
    panel("Logs", { tools: [filter, h("label", { class: "check" }, follow, "Follow")] }, lines, locked),
  );
  let numDrawn = 0;
  let first = null;

  /** Adds what is new; draws all where the filter, or the beginning, is another one. */
  function drawLines({ anew = true } = {}) {
    const all = page.state.lines;
    const wanted = filter.value.toLowerCase();
    if (anew || first !== all[0] || numDrawn > all.length) {
      lines.replaceChildren();
      numDrawn = 0;
    }
    const fresh = all.slice(numDrawn).filter((line) => line.toLowerCase().includes(wanted));
    lines.append(...fresh.slice(-MOST_SHOWN).map(logLine));
    while (lines.childElementCount > MOST_SHOWN) lines.firstElementChild.remove();
    [numDrawn, first] = [all.length, all[0]];
    if (follow.checked) lines.scrollTop = lines.scrollHeight;
  }

  return {
    draw(changed) {
      const { status, hello } = page.state;
      const has = (name) => changed === null || changed.has(name);
      if (status !== null && has("status")) drawEvents(events, status.events, page.state.now);
      if (has("findings")) drawFindings(findings, page.state.findings);
      if (has("logs") || has("hello")) drawLines({ anew: changed === null || changed.has("hello") });
      lines.hidden = hello !== null && !hello.may_act;
      locked.hidden = !lines.hidden;
      setAttribute(filter, "disabled", lines.hidden ? "" : null);
    },
  };
}

function logLine(text) {
  const level = SERIOUS.find(([pattern]) => pattern.test(text))?.[1] ?? null;
  const element = h("p", { "data-level": level });
  setText(element, text);
  return element;
}
