// Lines over time, drawn as SVG.

import { h, s, setAttribute, setText } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 176;
const INSET = { left: 56, right: 12, top: 10, bottom: 22 };

/** The path of a field; it breaks where the value is not known or points are missing. */
export function linePath(points, field, x, y, breakS = 12) {
  let path = "";
  let last = -Infinity;
  for (const point of points) {
    const value = point[field];
    if (value === null || value === undefined) continue;
    const begins = point.at - last > breakS;
    path += `${begins ? "M" : "L"}${x(point.at).toFixed(1)} ${y(value).toFixed(1)}`;
    if (begins) path += "h.01";
    last = point.at;
  }
  return path;
}

/** The index of the first point at or after a time. */
export function firstAt(points, at) {
  let [low, high] = [0, points.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle].at >= at) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** At most `most` round values from 0 to at least `top`. */
export function ticks(top, most = 4) {
  if (!(top > 0)) return [0, 1];
  const raw = top / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const count = Math.ceil(top / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, index) => index * step);
}

/** Without zeros that say nothing: 2 s, not 2.00 s. */
function short(text) {
  return text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");
}

/** A small line without axes; `show` draws it. */
export function sparkline() {
  const path = s("path", { class: "line series-0", "vector-effect": "non-scaling-stroke" });
  const svg = s(
    "svg",
    { class: "spark", viewBox: "0 0 200 32", preserveAspectRatio: "none", "aria-hidden": "true" },
    path,
  );
  svg.show = (points, field, from, to) => {
    const seen = points.slice(firstAt(points, from));
    const top = Math.max(1e-9, ...seen.map((point) => point[field] ?? 0));
    setAttribute(
      path,
      "d",
      linePath(
        seen,
        field,
        (at) => ((at - from) / (to - from)) * 200,
        (value) => 30 - (value / top) * 28,
      ),
    );
  };
  return svg;
}

/**
 * A chart with axes whose values can be read by pointing, or with the arrow keys.
 *
 * series: [{field, label}]; format(value) says one; top: the end of the axis where that is known.
 */
export class Plot {
  #points = [];
  #from = 0;
  #to = 1;
  #at = null;

  constructor({ title, series, format, top = null }) {
    this.series = series;
    this.format = format;
    this.top = top;
    this.grid = s("g", { class: "grid" });
    this.lines = series.map((_, index) => s("path", { class: `line series-${index}` }));
    this.cursor = s("line", { class: "cursor", y1: INSET.top, y2: HEIGHT - INSET.bottom, visibility: "hidden" });
    this.dots = series.map((_, index) => s("circle", { class: `dot series-${index}`, r: 3.5, visibility: "hidden" }));
    this.svg = s(
      "svg",
      { class: "plot", tabindex: "0", role: "slider", "aria-label": title, "aria-valuemin": "0" },
      this.grid,
      this.lines,
      this.cursor,
      this.dots,
    );
    this.values = series.map(() => h("b"));
    this.when = h("span", { class: "muted when" });
    const legend = h(
      "ul",
      { class: "legend" },
      series.map(({ label }, index) =>
        h(
          "li",
          {},
          s(
            "svg",
            { viewBox: "0 0 20 8", "aria-hidden": "true" },
            s("path", { d: "M1 4H19", class: `line series-${index}` }),
          ),
          label,
          this.values[index],
        ),
      ),
      h("li", {}, this.when),
    );
    this.root = h("figure", { class: "chart panel" }, h("figcaption", {}, h("h3", { text: title }), legend), this.svg);
    this.#listen();
    new ResizeObserver(() => this.#draw()).observe(this.svg);
  }

  show(points, from, to) {
    this.#points = points.slice(firstAt(points, from));
    [this.#from, this.#to] = [from, to];
    this.#draw();
  }

  #listen() {
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      this.#pick(this.#from + ((event.clientX - box.left - INSET.left) / this.#width) * (this.#to - this.#from));
    });
    this.svg.addEventListener("pointerleave", () => this.#pick(null));
    this.svg.addEventListener("blur", () => this.#pick(null));
    this.svg.addEventListener("focus", () => this.#pick(this.#points.at(-1)?.at ?? null));
    this.svg.addEventListener("keydown", (event) => {
      const index = this.#at === null ? this.#points.length - 1 : firstAt(this.#points, this.#at);
      const moved = {
        ArrowLeft: index - 1,
        ArrowRight: index + 1,
        PageUp: index - 12,
        PageDown: index + 12,
        Home: 0,
        End: this.#points.length - 1,
      }[event.key];
      if (moved === undefined || this.#points.length === 0) return;
      event.preventDefault();
      this.#pick(this.#points[Math.min(Math.max(moved, 0), this.#points.length - 1)].at);
    });
  }

  get #width() {
    return Math.max(10, this.svg.clientWidth - INSET.left - INSET.right);
  }

  #pick(at) {
    if (at === null || this.#points.length === 0) this.#at = null;
    else {
      const after = Math.min(firstAt(this.#points, at), this.#points.length - 1);
      const before = Math.max(after - 1, 0);
      this.#at = this.#points[at - this.#points[before].at < this.#points[after].at - at ? before : after].at;
    }
    this.#drawCursor();
  }

  #scales() {
    const most = Math.max(0, ...this.#points.flatMap((point) => this.series.map(({ field }) => point[field] ?? 0)));
    const marks = this.top === null ? ticks(most) : ticks(this.top);
    const end = marks.at(-1);
    const x = (at) => INSET.left + ((at - this.#from) / (this.#to - this.#from)) * this.#width;
    const y = (value) => HEIGHT - INSET.bottom - (value / end) * (HEIGHT - INSET.top - INSET.bottom);
    return { x, y, marks };
  }

  #draw() {
    if (this.svg.clientWidth === 0) return;
    const { x, y, marks } = this.#scales();
    setAttribute(this.svg, "viewBox", `0 0 ${this.svg.clientWidth} ${HEIGHT}`);
    const right = INSET.left + this.#width;
    const level = (value) => [
      s("line", { x1: INSET.left, x2: right, y1: y(value), y2: y(value) }),
      s("text", { x: INSET.left - 8, y: y(value) + 4, "text-anchor": "end", text: short(this.format(value)) }),
    ];
    const stepS =
      [60, 300, 600, 900, 1200].find((each) => ((this.#to - this.#from) / each) * 56 <= this.#width) ?? 1800;
    const times = [];
    for (let at = Math.ceil(this.#from / stepS) * stepS; at <= this.#to; at += stepS) {
      times.push(
        s("text", { x: x(at), y: HEIGHT - 5, "text-anchor": "middle", text: clock(at, { withSeconds: false }) }),
      );
    }
    this.grid.replaceChildren(...marks.flatMap(level), ...times);
    this.series.forEach(({ field }, index) =>
      setAttribute(this.lines[index], "d", linePath(this.#points, field, x, y)),
    );
    this.#drawCursor();
  }

  #drawCursor() {
    const { x, y } = this.#scales();
    const point = this.#at === null ? null : this.#points[firstAt(this.#points, this.#at)];
    const said = point ?? this.#points.at(-1);
    setAttribute(this.cursor, "visibility", point ? "visible" : "hidden");
    if (point) for (const end of ["x1", "x2"]) setAttribute(this.cursor, end, x(point.at));
    this.series.forEach(({ field }, index) => {
      const value = said?.[field] ?? null;
      setText(this.values[index], this.format(value));
      setAttribute(this.dots[index], "visibility", point && value !== null ? "visible" : "hidden");
      if (point && value !== null)
        for (const [name, at] of [
          ["cx", x(point.at)],
          ["cy", y(value)],
        ])
          setAttribute(this.dots[index], name, at);
    });
    setText(this.when, point ? clock(point.at) : "now");
    const all = this.series.map(({ label }, index) => `${label} ${this.values[index].textContent}`).join(", ");
    setAttribute(this.svg, "aria-valuenow", point ? this.#points.indexOf(point) : Math.max(0, this.#points.length - 1));
    setAttribute(this.svg, "aria-valuemax", Math.max(0, this.#points.length - 1));
    setAttribute(this.svg, "aria-valuetext", said ? `${clock(said.at)}: ${all}` : "nothing yet");
  }
}
