// Draws rows of steps on a canvas. Knows pixels and colours, nothing of where steps come from.

const ROW = 34;
const BAR = 24;
const AXIS = 22;
const LABELS = { wide: 104, narrow: 76 };
const SHARES = 46; // at the right, the share of the span in which a worker computes
const NARROW = 560;
const FONT = '12px -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
const TICKS_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];
const TICK_PIXELS = 72;
const DIMMED = 0.16;
const SLACK_S = 0.05; // a step that ended just before may reach into the strip by its least width

/** What steps are told apart by; all others are drawn as the last. */
export const KINDS = ["decode", "prefill", "recompute", "other"];

export class Painter {
  #context;
  #colours = null;
  #ratio = 1;
  #rows = 0;
  #painted = { looks: null }; // what stands on the canvas

  /** swatches: elements whose background is the colour of a kind, in the order of KINDS. */
  constructor(canvas, swatches) {
    this.canvas = canvas;
    this.swatches = swatches;
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  /** How wide the part with steps is, in pixels. */
  get width() {
    return Math.max(1, this.canvas.clientWidth - this.#left - SHARES);
  }

  get #left() {
    return this.canvas.clientWidth < NARROW ? LABELS.narrow : LABELS.wide;
  }

  shareAt(x) {
    return (x - this.#left) / this.width;
  }

  rowAt(y) {
    return Math.floor(y / ROW);
  }

  /** Colours come from the style sheet, so that they follow the theme. */
  learnColours() {
    const of = (element, name) => getComputedStyle(element)[name];
    const frame = this.canvas.parentElement;
    this.#painted = { looks: null };
    this.#colours = {
      kinds: this.swatches.map((swatch) => of(swatch, "backgroundColor")),
      surface: of(frame, "backgroundColor"),
      ink: of(frame, "color"),
      line: of(frame, "borderTopColor"),
      row: of(frame, "outlineColor"),
      muted: of(frame, "caretColor"),
    };
  }

  resize(numRows) {
    this.#painted = { looks: null };
    this.#rows = Math.max(numRows, 1);
    this.#ratio = Math.min(devicePixelRatio || 1, 2);
    const height = this.#rows * ROW + AXIS;
    this.canvas.style.height = `${height}px`;
    const [width, tall] = [this.canvas.clientWidth, height].map((each) => Math.round(each * this.#ratio));
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== tall) this.canvas.height = tall;
  }

  /**
   * names: of the rows; steps: what to draw, and `fresh`, the time from which there are others than when it was painted last;
   * shares: by name, as texts; request: the ids whose steps stand out, or null; picked: the step with a frame, or null.
   */
  paint({ names, steps, fresh, shares, from, to, request, picked }) {
    if (this.canvas.clientWidth === 0) return;
    if (names.length !== this.#rows && names.length > 0) this.resize(names.length);
    if (this.#colours === null) this.learnColours();
    const context = this.#context;
    const perS = (this.width * this.#ratio) / (to - from);
    // Whole device pixels: the picture moves as one and does not shimmer.
    const origin = Math.round(from * perS);
    const [left, width] = [this.#left * this.#ratio, this.width * this.#ratio];
    const looks = [
      names.join(),
      steps === this.#painted.steps,
      perS,
      request?.join(),
      picked?.worker,
      picked?.n,
    ].join();
    const view = { context, to, left, width, x: (at) => at * perS - origin, perS, request, picked };
    view.begin = looks === this.#painted.looks ? this.#moved(view, origin - this.#painted.origin, fresh) : 0;
    this.#painted = { looks, steps, origin, to };
    if (view.begin < width) this.#strip(view, names, steps);
    this.#seconds(view, from, names.length);
    this.#sides(view, names, shares);
  }

  /** Moves what is painted to the left; returns from where on, in pixels, it has to be painted. */
  #moved({ context, x, left, width }, by, fresh) {
    const begin = Math.max(0, Math.min(width - by, Math.floor(x(Math.min(fresh, this.#painted.to)))));
    if (by < 0 || begin === 0) return 0;
    const tall = this.#rows * ROW * this.#ratio;
    if (by > 0) context.drawImage(this.canvas, left + by, 0, width - by, tall, left, 0, width - by, tall);
    return begin;
  }

  /** All rows, from `begin` on. */
  #strip(view, names, steps) {
    const { context, left, width, begin, x, perS, to } = view;
    const tall = names.length * ROW * this.#ratio;
    context.save();
    context.beginPath();
    context.rect(left + begin, 0, width - begin, tall);
    context.clip();
    context.fillStyle = this.#colours.surface;
    context.fillRect(left, 0, width, tall);
    context.translate(left, 0);
    const tick = this.#tick(perS);
    context.fillStyle = this.#colours.line;
    for (let number = Math.floor(this.#time(view, begin) / tick); number * tick <= to; number += 1) {
      context.fillRect(Math.round(x(number * tick)), 0, this.#ratio, tall);
    }
    names.forEach((name, index) => this.#row(view, steps.rows.get(name), index));
    context.restore();
  }

  #time({ x, perS }, pixels) {
    return (pixels - x(0)) / perS;
  }

  #row(view, row, index) {
    const { context, x, perS, request, width } = view;
    const [top, height] = [(index * ROW + (ROW - BAR) / 2) * this.#ratio, BAR * this.#ratio];
    context.fillStyle = this.#colours.row;
    context.fillRect(0, top, width, height);
    if (row === undefined) return;
    const found = KINDS.map(() => []);
    const faint = KINDS.map(() => []);
    for (let number = row.from(this.#time(view, view.begin) - SLACK_S); number < row.steps.length; number += 1) {
      const step = row.steps[number];
      if (step.at > view.to) break;
      const kind = KINDS.indexOf(step.kind);
      const stands = request === null || step.requests.some((id) => request.includes(id));
      (stands ? found : faint).at(kind).push(step);
    }
    const gap = perS * 0.01 > 6 ? 1 : 0; // two steps in a row are told apart once they are wide enough
    for (const [steps, alpha] of [
      [faint, DIMMED],
      [found, 1],
    ]) {
      context.globalAlpha = alpha;
      steps.forEach((of, kind) => {
        if (of.length === 0) return;
        context.fillStyle = this.#colours.kinds[kind];
        for (const step of of) context.fillRect(x(step.at), top, Math.max(step.s * perS - gap, 0.7), height);
      });
    }
    context.globalAlpha = 1;
    if (perS * 0.02 > 40 * this.#ratio) this.#numbers(view, [...found.flat()], top, height);
    this.#frame(view, row, top, height);
  }

  /** The number of each step that is wide enough for it. */
  #numbers({ context, x, perS }, steps, top, height) {
    context.font = this.#font;
    context.fillStyle = this.#colours.surface;
    context.textBaseline = "middle";
    for (const step of steps) {
      const text = String(step.n);
      if (step.s * perS > (7 * text.length + 10) * this.#ratio)
        context.fillText(text, x(step.at) + 5 * this.#ratio, top + height / 2);
    }
  }

  /** A frame around the picked step, on every stage where it was. */
  #frame({ context, x, perS, picked }, row, top, height) {
    if (picked === null) return;
    for (let number = row.from(picked.at - 1); number < row.steps.length; number += 1) {
      const step = row.steps[number];
      if (step.at > picked.at + 1) return;
      if (step.n !== picked.n || step.route !== picked.route) continue;
      context.lineWidth = (step === picked ? 2 : 1) * this.#ratio;
      context.strokeStyle = this.#colours.ink;
      context.strokeRect(x(step.at), top, Math.max(step.s * perS, 2 * this.#ratio), height);
    }
  }

  #tick(perS) {
    return TICKS_S.find((each) => each * perS >= TICK_PIXELS * this.#ratio) ?? TICKS_S.at(-1);
  }

  /** The seconds below the rows. */
  #seconds({ context, to, left, width, x, perS }, from, numRows) {
    const bottom = numRows * ROW * this.#ratio;
    context.fillStyle = this.#colours.surface;
    context.fillRect(0, bottom, this.canvas.width, AXIS * this.#ratio);
    const tick = this.#tick(perS);
    const digits = tick >= 1 ? 0 : tick >= 0.1 ? 1 : tick >= 0.01 ? 2 : 3;
    context.font = this.#font;
    context.textBaseline = "middle";
    context.textAlign = "center";
    context.fillStyle = this.#colours.muted;
    for (let number = Math.ceil(from / tick); number * tick <= to; number += 1) {
      const at = Math.round(x(number * tick));
      const text = `${((number * tick) % 60).toFixed(digits)} s`;
      const half = context.measureText(text).width / 2;
      if (at > half && at + half < width) context.fillText(text, left + at, bottom + (AXIS / 2) * this.#ratio);
    }
    context.textAlign = "start";
  }

  /** What stands beside the rows: names and shares. */
  #sides({ context, left, width }, names, shares) {
    context.fillStyle = this.#colours.surface;
    context.fillRect(0, 0, left, this.#rows * ROW * this.#ratio);
    context.fillRect(left + width, 0, this.canvas.width, this.#rows * ROW * this.#ratio);
    const middle = (index) => (index + 0.5) * ROW * this.#ratio;
    context.fillStyle = this.#colours.ink;
    names.forEach((name, index) => context.fillText(this.#fitting(name), 0, middle(index)));
    context.fillStyle = this.#colours.muted;
    names.forEach((name, index) =>
      context.fillText(shares.get(name) ?? "", left + width + 8 * this.#ratio, middle(index)),
    );
  }

  #fitting(name) {
    const room = (this.#left - 10) * this.#ratio;
    let text = name;
    while (text.length > 2 && this.#context.measureText(text).width > room) text = `${text.slice(0, -2)}\u2026`;
    return text;
  }

  get #font() {
    return FONT.replace("12px", `${12 * this.#ratio}px`);
  }
}
