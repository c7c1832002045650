// The last hour: throughput, latencies, the cache and the queue, as charts and as a table.

import { h, keyed, setText } from "./dom.js";
import { clock, integer, number, seconds, share } from "./format.js";
import { Plot } from "./plot.js";

const SPANS = [
  [3600, "1 hour"],
  [900, "15 min"],
  [300, "5 min"],
];
const PERCENTILES = (name) => [
  { field: `${name}_p50_s`, label: "p50" },
  { field: `${name}_p99_s`, label: "p99" },
];
const PLOTS = [
  { title: "Generated tokens a second", series: [{ field: "tokens_per_s", label: "tokens/s" }], format: number },
  { title: "Prompt tokens a second", series: [{ field: "prompt_tokens_per_s", label: "tokens/s" }], format: number },
  { title: "Time to the first token", series: PERCENTILES("ttft"), format: seconds },
  { title: "Time between tokens", series: PERCENTILES("gap"), format: seconds },
  { title: "Prompt tokens from the cache", series: [{ field: "hit_rate", label: "hit rate" }], format: share, top: 1 },
  {
    title: "Requests",
    series: [
      { field: "running", label: "running" },
      { field: "waiting", label: "waiting" },
    ],
    format: number,
  },
];
const COLUMNS = [
  ["Time", (point) => clock(point.at)],
  ["Tokens/s", (point) => number(point.tokens_per_s)],
  ["Prompt tokens/s", (point) => number(point.prompt_tokens_per_s)],
  ["First token p50", (point) => seconds(point.ttft_p50_s)],
  ["p99", (point) => seconds(point.ttft_p99_s)],
  ["Between tokens p50", (point) => seconds(point.gap_p50_s)],
  ["p99", (point) => seconds(point.gap_p99_s)],
  ["Cache", (point) => share(point.hit_rate)],
  ["Running", (point) => integer(point.running)],
  ["Waiting", (point) => integer(point.waiting)],
  ["Finished", (point) => integer(point.finished)],
  ["Failed", (point) => integer(point.failed)],
];

export function makeCharts(root, page) {
  let spanS = SPANS[0][0];
  const plots = PLOTS.map((about) => new Plot(about));
  const body = h("tbody");
  const head = h(
    "thead",
    {},
    h(
      "tr",
      {},
      COLUMNS.map(([text]) => h("th", { scope: "col", text })),
    ),
  );
  const table = h(
    "details",
    { class: "more panel" },
    h("summary", { text: "The same as a table, by the minute" }),
    h(
      "div",
      { class: "scroll" },
      h("table", {}, h("caption", { class: "visually-hidden", text: "The last hour" }), head, body),
    ),
  );
  const buttons = SPANS.map(([span, text]) =>
    h("button", { type: "button", text, "aria-pressed": String(span === spanS), onclick: () => choose(span) }),
  );
  root.append(
    h(
      "div",
      { class: "view-head" },
      h("h2", { text: "Charts" }),
      h("div", { class: "choice", role: "group", "aria-label": "How long" }, buttons),
    ),
    h(
      "div",
      { class: "charts" },
      plots.map((plot) => plot.root),
    ),
    table,
  );
  table.addEventListener("toggle", () => drawTable(body, page.state.points, table.open));

  function choose(span) {
    spanS = span;
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(SPANS[index][0] === span)));
    draw(null);
  }

  function draw(changed) {
    if (changed !== null && !changed.has("point") && !changed.has("hello")) return;
    const { points, now } = page.state;
    for (const plot of plots) plot.show(points, now - spanS, now);
    drawTable(body, points, table.open);
  }

  return { draw };
}

const minute = (point) => point && Math.floor(point.at / 60);

/** One row a minute: that of its last point. */
function drawTable(body, points, isOpen) {
  if (!isOpen) return;
  const rows = points.filter((point, index) => minute(point) !== minute(points[index + 1])).toReversed();
  const make = () =>
    h(
      "tr",
      {},
      COLUMNS.map(() => h("td")),
    );
  keyed(
    body,
    rows,
    (point) => point.at,
    make,
    (row, point) => {
      COLUMNS.forEach(([, say], index) => setText(row.children[index], say(point)));
    },
  );
}
