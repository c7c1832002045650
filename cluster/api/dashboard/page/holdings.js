// Who holds which layers, and what each worker's memory is used for: a row for each worker.

import { h, keyed, panel, setAttribute, setLength, setText } from "./dom.js";
import { bytes, layers, number, share } from "./format.js";
import { machinesOf } from "./machines.js";

const PARTS = [
  ["weights", "weights"],
  ["kv", "running requests' KV"],
  ["kept", "kept prefixes"],
  ["free", "free"],
];

/** The memory of a worker by what it is used for, in bytes. */
export function memoryOf(worker) {
  const { limit_bytes: limit, weights_bytes: weights, kv_bytes: kv } = worker.memory;
  const kept = worker.cache.prefix_bytes;
  return { limit, weights, kv, kept, free: Math.max(0, limit - weights - kv - kept) };
}

export function makeHoldings() {
  const body = h("tbody");
  const legend = h(
    "ul",
    { class: "legend", "aria-label": "Uses of memory" },
    PARTS.map(([part, text]) => h("li", {}, h("span", { class: `swatch part-${part}` }), text)),
  );
  const heads = ["Worker", "Layers", "Memory", "Busy", "Measured alone"];
  const table = h(
    "table",
    { class: "holdings" },
    h("caption", { class: "visually-hidden", text: "Layers and memory of each worker" }),
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
  const root = panel("Layers and memory", { tools: [legend] }, table);
  return {
    root,
    draw(status) {
      const hosts = machinesOf(status);
      const hue = (worker) => hosts.findIndex((host) => host.workers.includes(worker.name));
      const workers = status.workers.toSorted(
        (one, other) => (one.layers?.[0] ?? Infinity) - (other.layers?.[0] ?? Infinity),
      );
      keyed(
        body,
        workers,
        (worker) => worker.name,
        makeRow,
        (row, worker) => drawRow(row, worker, status.model.layers, hue(worker)),
      );
    },
  };
}

function makeRow() {
  const name = h(
    "th",
    { scope: "row" },
    h("span", { class: "dot", "aria-hidden": "true" }),
    h("span", { class: "name" }),
    h("small", { class: "muted" }),
  );
  const held = h(
    "td",
    { "data-label": "Layers" },
    h("div", { class: "track", "aria-hidden": "true" }, h("i")),
    h("small"),
  );
  const memory = h(
    "td",
    { "data-label": "Memory" },
    h(
      "div",
      { class: "stack", "aria-hidden": "true" },
      PARTS.map(([part]) => h("i", { class: `part-${part}` })),
    ),
    h("small"),
  );
  const busy = h(
    "td",
    { "data-label": "Busy" },
    h("div", { class: "meter", "aria-hidden": "true" }, h("i")),
    h("small"),
  );
  return h("tr", {}, name, held, memory, busy, h("td", { "data-label": "Measured alone" }, h("small")));
}

function drawRow(row, worker, numLayers, hue) {
  const [name, held, memory, busy, alone] = row.children;
  setAttribute(row, "class", `hue-${Math.max(hue, 0) % 8}`);
  setAttribute(row, "data-state", worker.state);
  setText(name.children[1], worker.name);
  setText(name.children[2], worker.state === "ready" ? "" : (worker.why_away ?? worker.state));
  drawLayers(held, worker, numLayers);
  drawMemory(memory, worker);
  setLength(busy.firstElementChild, "--share", `${worker.load.busy_share * 100}%`);
  setText(busy.lastElementChild, `${share(worker.load.busy_share)}, ${number(worker.load.steps_per_s)} steps/s`);
  const speed = worker.speed?.stage ?? worker.speed?.full_model;
  setText(alone.firstElementChild, speed ? `${number(speed.decode_tokens_per_s)} tokens/s` : "not measured");
  setAttribute(alone, "title", speed ? `A prompt: ${number(speed.prefill_tokens_per_s)} tokens/s` : null);
}

function drawLayers(cell, worker, numLayers) {
  const [track, text] = cell.children;
  const [first, last] = worker.layers ?? [0, 0];
  const of = numLayers || 1;
  setAttribute(track, "class", worker.holds_full_model ? "track whole" : "track");
  setLength(track.firstElementChild, "--from", `${(first / of) * 100}%`);
  setLength(track.firstElementChild, "--share", `${((last - first) / of) * 100}%`);
  const part = worker.layers ? layers(worker.layers) : "none";
  setText(text, worker.holds_full_model ? `${part} and the whole model` : part);
}

function drawMemory(cell, worker) {
  const found = memoryOf(worker);
  const [stack, text] = cell.children;
  PARTS.forEach(([part], index) =>
    setLength(stack.children[index], "--share", `${(found[part] / (found.limit || 1)) * 100}%`),
  );
  const said = PARTS.filter(([part]) => part !== "free").map(([part, name]) => `${name} ${bytes(found[part])}`);
  setText(text, `${bytes(found.limit - found.free)} of ${bytes(found.limit)}`);
  setAttribute(cell, "title", `${said.join(", ")}, free ${bytes(found.free)}`);
}
