// The steps of the last seconds, a row for each worker: where a row is empty, its worker waited.

import { Detail } from "./detail.js";
import { h, panel, setAttribute, setText } from "./dom.js";
import { clock, integer, seconds, share } from "./format.js";
import { stagesOf } from "./machines.js";
import { KINDS, Painter } from "./painter.js";
import { listen } from "./pointing.js";
import { Span } from "./span.js";

const ZOOM = 1.5;
const SAY_EACH_MS = 1000;
const NEAR_PIXELS = 3;

const KIND_NAMES = {
  prefill: "prefill: part of a prompt",
  decode: "decode: a batch of next tokens",
  recompute: "recompute: a sequence without a cache",
};
const KEYS = [
  ["Space", "pause"],
  ["\u2190 \u2192", "move"],
  ["+ \u2212", "zoom"],
  ["\u2191 \u2193", "worker"],
  [", .", "step"],
  ["Esc", "let go"],
];
const ABOUT = [
  "The steps of each worker, and the share of the time in which it computes.",
  "Space pauses, the arrow keys left and right move in time, plus and minus zoom, up and down change the worker,",
  "comma and full stop go from step to step, Escape lets go.",
].join(" ");

export function makeTimeline(root, page) {
  return new Timeline(root, page);
}

class Timeline {
  #page;
  #span;
  #painter;
  #drawing = null; // the next frame, while it is shown
  #isStale = false; // whether that has to paint though time stands still
  #saidAt = 0;
  #shares = new Map(); // by worker, how much of the span it computes
  #picked = null; // the step that is described
  #request = null; // the request whose steps stand out
  #hovered = null;

  constructor(root, page) {
    this.#page = page;
    this.#span = new Span(page.state);
    this.canvas = h("canvas", { tabindex: "0", role: "application", "aria-label": ABOUT });
    this.pause = h("button", { type: "button", text: "Pause", "aria-pressed": "false", onclick: () => this.#toggle() });
    this.swatches = KINDS.map((kind) => h("span", { class: `swatch kind-${kind}` }));
    this.span = h("span", { class: "muted span" });
    this.did = h("tbody");
    this.empty = h("p", { class: "muted empty" });
    this.detail = new Detail(page.state, { choose: (id) => this.#choose(id), letGo: () => this.#letGo() });
    const frame = h("div", { class: "timeline" }, this.canvas);
    root.append(
      h("h2", { class: "visually-hidden", text: "Timeline" }),
      panel("Steps by worker", { tools: this.#tools() }, this.#legend(), frame, this.empty, keysHelp()),
      this.detail.root,
      this.#table(),
    );
    this.#painter = new Painter(this.canvas, this.swatches);
    this.#listen();
    new ResizeObserver(() => this.#resized()).observe(frame);
  }

  #tools() {
    const button = (text, name, factor) =>
      h("button", { type: "button", text, "aria-label": name, onclick: () => this.#zoom(factor) });
    return [this.span, button("\u2212", "Longer span", ZOOM), button("+", "Shorter span", 1 / ZOOM), this.pause];
  }

  #legend() {
    const kinds = KINDS.map((kind, index) => h("li", { title: KIND_NAMES[kind] }, this.swatches[index], kind));
    const waits = h("li", {}, h("span", { class: "swatch bubble" }), "waits");
    return h("ul", { class: "legend", "aria-label": "Kinds of steps" }, kinds, waits);
  }

  #table() {
    const head = ["Worker", "Computes", "Waits", "Steps"].map((text) => h("th", { scope: "col", text }));
    const caption = h("caption", { class: "visually-hidden", text: "What each worker did in the span that is shown" });
    return h(
      "details",
      { class: "more panel" },
      h("summary", { text: "The span that is shown as a table" }),
      h("table", {}, caption, h("thead", {}, h("tr", {}, head)), this.did),
    );
  }

  // --- what the page calls

  show(query) {
    if (query.get("request") !== null) this.#choose(query.get("request"));
    if (this.#drawing !== null) return;
    this.#saidAt = 0;
    this.#frame();
  }

  hide() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = null;
  }

  draw(changed) {
    if (changed === null || changed.has("requests")) this.#describe();
    if (changed !== null) return;
    this.#painter.learnColours();
    this.#paint();
  }

  // --- drawing

  #frame() {
    if (!this.#span.isPaused || this.#isStale) this.#paint();
    const now = performance.now();
    if (now - this.#saidAt > SAY_EACH_MS) {
      this.#saidAt = now;
      this.#say();
    }
    this.#drawing = requestAnimationFrame(() => this.#frame());
  }

  get #names() {
    const { status } = this.#page.state;
    const stages = status ? stagesOf(status).map((worker) => worker.name) : [];
    const others = [...this.#span.steps.rows.keys()].filter((name) => !stages.includes(name));
    return [...stages, ...others];
  }

  #resized() {
    this.#painter.resize(this.#names.length);
    this.#paint();
  }

  #paint() {
    this.#isStale = false;
    const { steps, to, length } = this.#span;
    const picked = this.#hovered ?? this.#picked;
    const isChosen = this.#hovered === null && this.#request !== null;
    this.#painter.paint({
      names: this.#names,
      steps,
      fresh: steps.takeFresh(),
      shares: this.#shares,
      from: to - length,
      to,
      request: isChosen ? [this.#request] : (picked?.requests ?? null),
      picked,
    });
  }

  /** What changes slowly: once a second. */
  #say() {
    const { isPaused, steps, from, to, length } = this.#span;
    setText(this.pause, isPaused ? "Go on" : "Pause");
    setAttribute(this.pause, "aria-pressed", String(isPaused));
    setText(this.span, isPaused ? `${seconds(length)} to ${clock(to)}, paused` : `the last ${seconds(length)}`);
    setText(this.empty, steps.rows.size === 0 ? "Steps appear here as soon as a request runs." : "");
    this.#shares.clear();
    const rows = this.#names.map((name) => {
      const row = steps.rows.get(name);
      const busy = row?.busy(from, to) ?? 0;
      this.#shares.set(name, share(busy));
      const count = row ? row.from(to) - row.from(from) : 0;
      const cells = [share(busy), share(1 - busy), integer(count)].map((text) => h("td", { text }));
      return h("tr", {}, h("th", { scope: "row", text: name }), cells);
    });
    this.did.replaceChildren(...rows);
    this.#isStale = true;
  }

  #describe() {
    this.detail.show(this.#picked, this.#request);
  }

  // --- pausing, moving, zooming

  #toggle() {
    if (this.#span.isPaused) this.#span.goOn();
    else this.#span.pause();
    this.#say();
  }

  #move(byS) {
    this.#span.move(byS);
    this.#say();
  }

  #zoom(factor, around = 1) {
    this.#span.zoom(factor, around);
    this.#say();
  }

  // --- picking

  #choose(request) {
    this.#request = request;
    this.#describe();
    this.#isStale = true;
  }

  #pick(step) {
    this.#picked = step;
    this.#choose(step?.requests.length === 1 ? step.requests[0] : null);
  }

  #letGo() {
    this.#pick(null);
  }

  /** The step that follows or goes before on its row; the last that is shown where none is picked. */
  #next(direction) {
    this.#span.pause();
    const row = this.#span.steps.rows.get(this.#picked?.worker ?? this.#names[0]);
    if (row === undefined) return;
    const index = this.#picked === null ? row.from(this.#span.to) - 1 : row.steps.indexOf(this.#picked) + direction;
    if (row.steps[index]) this.#reveal(row.steps[index]);
  }

  /** The same step on the next worker, or what that did at the time. */
  #nextRow(direction) {
    this.#span.pause();
    const names = this.#names;
    const picked = this.#picked;
    const index = picked === null ? (direction > 0 ? -1 : names.length) : names.indexOf(picked.worker);
    const row = this.#span.steps.rows.get(names[(index + direction + names.length) % names.length]);
    const same = picked && row?.steps.find((step) => step.n === picked.n && step.route === picked.route);
    const step = same ?? row?.at(picked?.at ?? this.#span.to, Infinity);
    if (step) this.#reveal(step);
  }

  #reveal(step) {
    this.#span.reveal(step);
    this.#pick(step);
    this.#say();
  }

  // --- pointer and keys

  #listen() {
    const hover = (step) => {
      this.#hovered = step;
      this.#isStale = true;
    };
    const inSeconds = (pixels) => (pixels / this.#painter.width) * this.#span.length;
    listen(this.canvas, {
      hover: (event) => hover(this.#stepAt(event)),
      leave: () => hover(null),
      pick: (event) => this.#pick(this.#stepAt(event)),
      move: (pixels) => this.#move(inSeconds(pixels)),
      zoom: (factor, x) => this.#zoom(factor, this.#painter.shareAt(x)),
      keys: this.#keys(),
    });
  }

  #keys() {
    const move = (spans) => this.#move(spans * this.#span.length);
    return {
      " ": () => this.#toggle(),
      ArrowLeft: () => move(-0.1),
      ArrowRight: () => move(0.1),
      PageUp: () => move(-1),
      PageDown: () => move(1),
      "+": () => this.#zoom(1 / ZOOM),
      "=": () => this.#zoom(1 / ZOOM),
      "-": () => this.#zoom(ZOOM),
      ArrowUp: () => this.#nextRow(-1),
      ArrowDown: () => this.#nextRow(1),
      ",": () => this.#next(-1),
      ".": () => this.#next(1),
      Escape: () => this.#letGo(),
    };
  }

  #stepAt(event) {
    const { steps, from, length } = this.#span;
    const row = steps.rows.get(this.#names[this.#painter.rowAt(event.offsetY)]);
    const near = (NEAR_PIXELS / this.#painter.width) * length;
    return row?.at(from + this.#painter.shareAt(event.offsetX) * length, near) ?? null;
  }
}

function keysHelp() {
  const keys = KEYS.flatMap(([key, what]) => [h("kbd", { text: key }), ` ${what}  `]);
  return h("p", { class: "muted keys hide-narrow" }, keys);
}
