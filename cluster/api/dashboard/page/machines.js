// The machines and the cables between them: cards that stand in the order of the pipeline, lines behind them, and the same as a table.

import { drawEmpty, h, keyed, panel, s, setAttribute, setLength, setText } from "./dom.js";
import { bytes, layers, seconds, sentence, share } from "./format.js";

const CARD = 256;
const GAP = { wide: 140, narrow: 76 };
const MARGIN = 8;
const NARROW = 560;
const KINDS = { thunderbolt: "Thunderbolt", ethernet: "Ethernet", wifi: "Wi-Fi", other: "other" };

/** What there is between two machines: of the ways between their workers the one in use that is slowest, with all warnings. */
export function cables(status) {
  const hostOf = new Map(status.hosts.flatMap((host) => host.workers.map((worker) => [worker, host.name])));
  const stages = stagesOf(status);
  const consecutive = new Set();
  for (let index = 0; index + 1 < stages.length; index += 1) {
    consecutive.add(pair(stages[index].host, stages[index + 1].host));
  }
  const found = new Map();
  for (const link of status.links) {
    const [from, to] = [hostOf.get(link.from), hostOf.get(link.to)];
    if (!link.in_use || from === undefined || to === undefined || from === to) continue;
    const name = pair(from, to);
    const known = found.get(name);
    const warning = known?.warning ?? link.warning;
    if (known === undefined || (link.round_trip_us ?? Infinity) > (known.link.round_trip_us ?? Infinity)) {
      found.set(name, { name, ends: name.split("\n"), link, warning, carries: consecutive.has(name) });
    } else known.warning = warning;
  }
  return [...found.values()];
}

const pair = (one, other) => [one, other].sort().join("\n");

/** The workers that hold layers, in their order. */
export function stagesOf(status) {
  return status.workers.filter((worker) => worker.layers).sort((one, other) => one.layers[0] - other.layers[0]);
}

/** The machines in the order of the pipeline; those without a part in it last. */
export function machinesOf(status) {
  const first = new Map();
  stagesOf(status).forEach((worker, index) => first.has(worker.host) || first.set(worker.host, index));
  const place = (host) => first.get(host.name) ?? first.get(hostKey(status, host)) ?? Infinity;
  return status.hosts.toSorted((one, other) => place(one) - place(other) || 0);
}

const hostKey = (status, host) => status.workers.find((worker) => host.workers.includes(worker.name))?.host;

/** Where each card stands, in pixels: rows that run back and forth, so that neighbours in the pipeline are neighbours here. */
export function arranged(count, width, heights) {
  const narrow = width < NARROW;
  const gap = narrow ? GAP.narrow : GAP.wide;
  const fits = Math.max(1, Math.floor((width - 2 * MARGIN + gap) / (CARD + gap)));
  const columns = narrow ? 1 : Math.min(fits, count <= 3 ? count : Math.ceil(count / 2));
  const card = narrow ? width - 2 * MARGIN - 44 : CARD;
  const between = columns > 1 ? Math.min((width - 2 * MARGIN - columns * card) / (columns - 1), GAP.wide * 2.2) : 0;
  const left = narrow ? MARGIN : (width - columns * card - (columns - 1) * between) / 2;
  const places = [];
  let top = MARGIN;
  for (let first = 0; first < count; first += columns) {
    const row = heights.slice(first, first + columns);
    const tall = Math.max(...row);
    row.forEach((_, index) => {
      const column = (first / columns) % 2 ? columns - 1 - index : index;
      places.push({ x: left + column * (card + between), y: top, width: card, height: tall });
    });
    top += tall + (columns > 1 ? GAP.narrow : gap);
  }
  return { places, height: Math.max(0, top - (columns > 1 ? GAP.narrow : gap) + MARGIN), narrow };
}

export function makeMachines() {
  const [lines, flows] = [s("g"), s("g")];
  const drawing = s("svg", { class: "cables", "aria-hidden": "true" }, lines, flows);
  const cards = h("ul", { class: "machines", "aria-label": "Machines" });
  const labels = h("div", { class: "cable-labels" });
  const desk = h("div", { class: "desk" }, drawing, cards, labels);
  const legend = h("ul", { class: "legend", "aria-label": "Kinds of cables" });
  const body = h("tbody");
  const head = ["From", "To", "Kind", "Interface", "Round trip", "Bandwidth", "In use", "Warning"];
  const table = h(
    "details",
    { class: "more" },
    h("summary", { text: "All links as a table" }),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h("caption", { class: "visually-hidden", text: "Links between workers" }),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            head.map((text) => h("th", { scope: "col", text })),
          ),
        ),
        body,
      ),
    ),
  );
  const warnings = h("ul", { class: "warnings" });
  const root = panel("Machines and cables", { tools: [legend] }, desk, warnings, table);
  const parts = { desk, drawing, lines, flows, cards, labels };
  let shown = null;
  const draw = (status) => {
    shown = status;
    drawCards(cards, status);
    drawEmpty(desk, status.hosts.length === 0, "No machine has joined yet.");
    place(status, parts);
    drawLegend(legend, cables(status));
    drawWarnings(warnings, cables(status));
    table.hidden = status.links.length === 0;
    if (table.open) drawTable(body, status.links);
  };
  table.addEventListener("toggle", () => shown && drawTable(body, shown.links));
  new ResizeObserver(() => shown && place(shown, parts)).observe(desk);
  return { root, draw };
}

function drawCards(list, status) {
  const workers = new Map(status.workers.map((worker) => [worker.name, worker]));
  const machines = machinesOf(status);
  keyed(
    list,
    machines,
    (host) => host.name,
    makeCard,
    (card, host) => {
      setAttribute(card, "class", `machine hue-${machines.indexOf(host) % 8}`);
      const [title, about, held] = card.children;
      setText(title.firstElementChild, host.name);
      setAttribute(title.firstElementChild, "title", host.address);
      title.lastElementChild.hidden = host.name !== "local";
      setText(about, `${host.chip} \u00b7 ${bytes(host.memory_bytes)} \u00b7 ${host.os}`);
      setAttribute(
        about,
        "title",
        Object.entries(host.versions)
          .map((each) => each.join(" "))
          .join(", "),
      );
      keyed(
        held,
        host.workers.map((name) => workers.get(name)).filter(Boolean),
        (worker) => worker.name,
        makeWorker,
        drawWorker,
      );
    },
  );
}

function makeCard() {
  const title = h("h3", {}, h("span"), h("small", { class: "tag", text: "coordinator" }));
  return h("li", { class: "machine" }, title, h("p", { class: "muted" }), h("ul", { class: "workers" }));
}

function makeWorker() {
  return h(
    "li",
    {},
    h("span", { class: "dot", "aria-hidden": "true" }),
    h("span", { class: "name" }),
    h("span", { class: "muted" }),
    h("span", { class: "busy", "aria-hidden": "true" }),
  );
}

function drawWorker(element, worker) {
  const [, name, what, busy] = element.children;
  setAttribute(element, "data-state", worker.state);
  setText(name, worker.name);
  const held = worker.layers ? `layers ${layers(worker.layers)}` : "no layers";
  setText(what, worker.state === "ready" ? held : worker.state);
  setAttribute(what, "title", worker.why_away);
  setLength(busy, "--share", `${worker.load.busy_share * 100}%`);
  setAttribute(busy, "title", `computes ${share(worker.load.busy_share)} of the time`);
}

function place(status, { desk, drawing, lines, flows, cards, labels }) {
  const width = desk.clientWidth;
  if (width === 0) return;
  const machines = machinesOf(status);
  const heights = machines.map((host) => 68 + 27 * Math.max(1, host.workers.length));
  const { places, height, narrow } = arranged(machines.length, width, heights);
  setLength(desk, "height", `${height}px`);
  setAttribute(drawing, "viewBox", `0 0 ${width} ${height}`);
  [...cards.children].forEach((card, index) => {
    const at = places[index];
    setLength(card, "left", `${at.x}px`);
    setLength(card, "top", `${at.y}px`);
    setLength(card, "width", `${at.width}px`);
    setLength(card, "height", `${at.height}px`);
  });
  const index = new Map(machines.map((host, number) => [host.name, number]));
  const ways = cables(status).map((cable, number) => {
    const [a, b] = cable.ends.map((name) => index.get(name)).sort((one, other) => one - other);
    return {
      ...cable,
      ...(narrow ? down(places, a, b, number) : across(places[a], places[b])),
      busy: cable.carries && status.requests.running > 0,
    };
  });
  keyed(
    lines,
    ways,
    (way) => way.name,
    () => s("path"),
    (path, way) => {
      setAttribute(path, "d", way.path);
      setAttribute(
        path,
        "class",
        `cable ${way.link.kind}${way.carries ? " carries" : ""}${way.warning ? " warns" : ""}`,
      );
    },
  );
  keyed(
    flows,
    ways.filter((way) => way.busy),
    (way) => way.name,
    () => s("path", { class: "flow" }),
    (path, way) => setAttribute(path, "d", way.path),
  );
  const named = ways.filter((way) => way.carries || way.warning);
  keyed(
    labels,
    named,
    (way) => way.name,
    () => h("div", { class: "cable-label" }, h("b"), h("span")),
    drawLabel,
  );
}

/** A straight line from card to card, at whose nearest edges it begins and ends. */
function across(one, other) {
  const centre = (at) => [at.x + at.width / 2, at.y + at.height / 2];
  const [[ax, ay], [bx, by]] = [centre(one), centre(other)];
  const level = Math.abs(ay - by) < 1;
  const upright = Math.abs(ax - bx) < 1;
  const far = level && Math.abs(ax - bx) > one.width * 2.3;
  const bend = far ? one.height * 0.75 : 0;
  const path = far ? `M${ax} ${ay}Q${(ax + bx) / 2} ${ay - 2 * bend} ${bx} ${by}` : `M${ax} ${ay}L${bx} ${by}`;
  const along = level || upright ? 0.5 : 0.42;
  return { path, x: ax + (bx - ax) * along, y: ay + (by - ay) * along - bend };
}

/** On narrow screens cards stand one above the other: neighbours are joined straight, others round the side. */
function down(places, a, b, number) {
  const [one, other] = [places[a], places[b]];
  const x = one.x + one.width;
  if (b - a === 1) {
    const middle = one.x + one.width / 2;
    return {
      path: `M${middle} ${one.y + one.height}L${middle} ${other.y}`,
      x: middle,
      y: (one.y + one.height + other.y) / 2,
    };
  }
  const out = x + 10 + 6 * (number % 5);
  const [from, to] = [one.y + one.height / 2 + 5 * (number % 4), other.y + other.height / 2 - 5 * (number % 4)];
  return { path: `M${x} ${from}L${out} ${from + 8}L${out} ${to - 8}L${x} ${to}`, x: null, y: 0 };
}

function drawLabel(element, way) {
  element.hidden = way.x === null;
  setLength(element, "left", `${way.x ?? 0}px`);
  setLength(element, "top", `${way.y}px`);
  setAttribute(element, "class", `cable-label${way.warning ? " warns" : ""}`);
  setAttribute(element, "title", way.warning ?? `${way.ends.join(" \u2013 ")}, ${way.link.interface}`);
  const [kind, figures] = element.children;
  setText(kind, `${way.warning ? "\u26a0 " : ""}${KINDS[way.link.kind] ?? way.link.kind}`);
  const trip = way.link.round_trip_us === null ? "no answer" : seconds(way.link.round_trip_us / 1e6);
  setText(figures, way.link.bytes_per_s === null ? trip : `${trip} \u00b7 ${bytes(way.link.bytes_per_s)}/s`);
}

function drawLegend(list, found) {
  const kinds = Object.keys(KINDS).filter((kind) => found.some((cable) => cable.link.kind === kind));
  const make = (kind) =>
    h(
      "li",
      {},
      s("svg", { viewBox: "0 0 28 8", class: "cables" }, s("path", { d: "M1 4L27 4", class: `cable ${kind} carries` })),
      KINDS[kind],
    );
  keyed(
    list,
    kinds,
    (kind) => kind,
    make,
    () => {},
  );
}

function drawWarnings(list, found) {
  const warned = found.filter((cable) => cable.warning);
  keyed(
    list,
    warned,
    (cable) => cable.name,
    () => h("li"),
    (element, cable) => setText(element, `\u26a0 ${cable.ends.join(" \u2013 ")}: ${sentence(cable.warning)}`),
  );
}

function drawTable(body, links) {
  const key = (link) => `${link.from} ${link.to} ${link.interface} ${link.address}`;
  keyed(
    body,
    links,
    key,
    () =>
      h(
        "tr",
        {},
        Array.from({ length: 8 }, () => h("td")),
      ),
    (row, link) => {
      const trip = link.round_trip_us === null ? "no answer" : seconds(link.round_trip_us / 1e6);
      const speed = link.bytes_per_s === null ? "" : `${bytes(link.bytes_per_s)}/s`;
      const cells = [
        link.from,
        link.to,
        KINDS[link.kind] ?? link.kind,
        link.interface,
        trip,
        speed,
        link.in_use ? "yes" : "no",
        link.warning ?? "",
      ];
      cells.forEach((text, index) => setText(row.children[index], text));
    },
  );
}
