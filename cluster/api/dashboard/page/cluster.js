// The first view: figures of now, the machines and their cables, who holds what, what that promises, and what happened last.

import { drawEmpty, h, keyed, panel, setAttribute, setText } from "./dom.js";
import { ago, integer, number, seconds, sentence, share, UNKNOWN } from "./format.js";
import { makeHoldings } from "./holdings.js";
import { makeMachines } from "./machines.js";
import { sparkline } from "./plot.js";
import { makeRoutes } from "./routes.js";

const SPARK_S = 900;
const MOST_EVENTS = 7;

/** The last value of a field that is known, of the last minute. */
function latest(points, field, now) {
  for (let index = points.length - 1; index >= 0; index -= 1) {
    if (points[index].at < now - 60) return null;
    if (points[index][field] !== null) return points[index][field];
  }
  return null;
}

const TILES = [
  {
    title: "Generated",
    field: "tokens_per_s",
    say: ({ points, now }) => [number(latest(points, "tokens_per_s", now) ?? 0), "tokens/s"],
    more: ({ points, now }) => `${number(latest(points, "prompt_tokens_per_s", now) ?? 0)} prompt tokens/s read`,
  },
  {
    title: "Requests",
    field: "running",
    say: ({ status }) => [number(status.requests.running), "running"],
    more: ({ status }) =>
      `${status.requests.waiting} waiting, ${number(status.requests.finished)} finished, ${number(status.requests.failed)} failed`,
  },
  {
    title: "First token",
    field: "ttft_p50_s",
    say: ({ points, now }) => [seconds(latest(points, "ttft_p50_s", now)), "median"],
    more: ({ points, now }) => `${seconds(latest(points, "ttft_p99_s", now))} at p99`,
  },
  {
    title: "Between tokens",
    field: "gap_p50_s",
    say: ({ points, now }) => [seconds(latest(points, "gap_p50_s", now)), "median"],
    more: ({ points, now }) => `${seconds(latest(points, "gap_p99_s", now))} at p99`,
  },
  {
    title: "From the cache",
    field: "hit_rate",
    say: ({ points, now, status }) => [share(latest(points, "hit_rate", now) ?? status.cache.hit_rate), "hits"],
    more: ({ status }) => `${integer(status.cache.cached_tokens)} tokens so far`,
  },
];

export function makeCluster(root, page) {
  const tiles = h("div", { class: "tiles" });
  const machines = makeMachines();
  const holdings = makeHoldings();
  const routes = makeRoutes();
  const events = h("ol", { class: "events" });
  const findings = h("ul", { class: "findings" });
  const all = h("a", { href: "#journal", text: "Journal" });
  root.append(
    h("h2", { class: "visually-hidden", text: "Cluster" }),
    tiles,
    machines.root,
    holdings.root,
    routes.root,
    h(
      "div",
      { class: "two" },
      panel("What happened", { tools: [all] }, events),
      panel("What doctor finds", {}, findings),
    ),
  );
  return {
    draw(changed) {
      const { status } = page.state;
      if (status === null) return;
      const has = (...names) => changed === null || names.some((name) => changed.has(name));
      if (has("status", "point", "hello")) drawTiles(tiles, page.state);
      if (has("status")) {
        machines.draw(status);
        holdings.draw(status);
        routes.draw(status);
        drawEvents(events, status.events.slice(-MOST_EVENTS), page.state.now);
      }
      if (has("findings")) drawFindings(findings, page.state.findings);
    },
  };
}

function drawTiles(tiles, state) {
  const make = (tile) =>
    h(
      "div",
      { class: "tile" },
      h("h3", { text: tile.title }),
      h("p", { class: "value" }, h("b"), h("span")),
      h("p", { class: "muted" }),
      sparkline(),
    );
  keyed(
    tiles,
    TILES,
    (tile) => tile.title,
    make,
    (element, tile) => {
      const [value, unit] = tile.say(state);
      setText(element.querySelector("b"), value);
      setText(element.querySelector(".value span"), value === UNKNOWN ? "" : unit);
      setText(element.querySelector(".muted"), tile.more(state));
      const begin = state.now - SPARK_S;
      element.lastElementChild.show(state.points, tile.field, begin, state.now);
    },
  );
}

/** Newest first. */
export function drawEvents(list, events, now) {
  const make = () =>
    h(
      "li",
      {},
      h("span", { class: "dot", "aria-hidden": "true" }),
      h("span", { class: "what" }),
      h("time", { class: "muted" }),
    );
  const key = (event) => `${event.at} ${event.what}`;
  keyed(list, events.toReversed(), key, make, (element, event) => {
    const [, what, time] = element.children;
    setAttribute(element, "data-kind", /^\w*/.exec(event.what)[0]);
    setText(what, sentence(event.what));
    setText(time, ago(now - event.at));
    setAttribute(time, "title", new Date(event.at * 1000).toLocaleString("en-GB"));
  });
  drawEmpty(list, events.length === 0, "Nothing yet.");
}

const LEVELS = { ok: "in order", warning: "to look at", problem: "a problem" };

export function drawFindings(list, findings) {
  const make = () =>
    h("li", {}, h("span", { class: "mark" }), h("div", {}, h("p", { class: "what" }), h("p", { class: "muted" })));
  const order = ["problem", "warning", "ok"];
  const sorted = (findings ?? []).toSorted((one, other) => order.indexOf(one.level) - order.indexOf(other.level));
  keyed(
    list,
    sorted,
    (finding) => finding.what,
    make,
    (element, finding) => {
      setAttribute(element, "data-level", finding.level);
      setText(element.querySelector(".mark"), LEVELS[finding.level] ?? finding.level);
      setText(element.querySelector(".what"), sentence(finding.what));
      setText(element.querySelector(".muted"), finding.do ? sentence(finding.do) : "");
    },
  );
  drawEmpty(list, sorted.length === 0, findings === null ? "Not examined yet." : "Nothing found.");
}
