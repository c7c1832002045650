// What the plan promises: each of its routes, with the figures that are predicted for one stream.

import { drawEmpty, h, keyed, panel, setAttribute, setText } from "./dom.js";
import { number, route as routeText } from "./format.js";

const SHARED = "tensor-parallel";

/** The workers of a route: one after the other, or all at once. */
function workersText({ strategy, workers }) {
  return strategy === SHARED ? workers.join(" + ") : routeText(workers);
}

export function makeRoutes() {
  const body = h("tbody");
  const heads = ["Route", "Reads a prompt", "Generates"];
  const table = h(
    "table",
    { class: "routes" },
    h("caption", { class: "visually-hidden", text: "Predicted figures of each route" }),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((text) => h("th", { scope: "col", text })),
      ),
    ),
    body,
  );
  const about = h("span", { class: "muted" });
  return {
    root: panel("Predicted for one stream", { tools: [about] }, table),
    draw({ predicted }) {
      const routes = predicted?.routes ?? [];
      const key = ({ strategy, workers }) => `${strategy} ${workers.join(" ")}`;
      keyed(body, routes, key, makeRow, drawRow);
      table.hidden = routes.length === 0;
      setText(about, predicted ? `a prompt of ${number(predicted.prompt_tokens)} tokens, nothing else running` : "");
      drawEmpty(table, routes.length === 0, "Nothing was measured of this plan: policy measured does that.");
    },
  };
}

function makeRow() {
  const way = h("th", { scope: "row" }, h("span"), h("small", { class: "muted" }));
  return h("tr", {}, way, h("td", {}), h("td", {}));
}

function drawRow(row, route) {
  const [way, reads, generates] = row.children;
  setText(way.children[0], workersText(route));
  setText(way.children[1], route.strategy);
  setAttribute(way, "title", route.workers.join(", "));
  setText(reads, `${number(route.prefill_tokens_per_s)} tokens/s`);
  setText(generates, `${number(route.decode_tokens_per_s)} tokens/s`);
}
