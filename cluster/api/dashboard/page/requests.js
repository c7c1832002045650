// The requests that run and wait, and those that ended last: where each went and why, what was predicted and what came.

import { drawEmpty, h, keyed, panel, setAttribute, setLength, setText } from "./dom.js";
import { clock, integer, number, plural, problem, route, seconds, sentence } from "./format.js";

const HEADS = ["Request", "Route", "Tokens", "First token", "Speed", "Time", ""];
const FEW = 12;
const MORE = 50;
const ORDER = { running: 0, reassigned: 1, waiting: 2 };

export function makeRequests(root, page) {
  const live = table("Requests that run or wait");
  const ended = table("Requests that ended");
  const counts = h("p", { class: "muted" });
  let shownEnded = FEW;
  const more = h("button", {
    type: "button",
    class: "quiet",
    text: "Show more",
    onclick: () => drawEnded((shownEnded += MORE)),
  });
  const said = h("p", { class: "problem", role: "alert" });
  root.append(
    h("div", { class: "view-head" }, h("h2", { text: "Requests" }), counts),
    said,
    panel("Running and waiting", {}, live.table),
    panel("Ended", {}, ended.table, more),
  );

  async function cancel(id, button) {
    button.disabled = true;
    setText(said, "");
    try {
      const response = await page.ask(`v1/requests/${encodeURIComponent(id)}`, { method: "DELETE" });
      if (!response.ok) setText(said, await problem(response));
    } catch {
      setText(said, "The cluster does not answer; the request was not cancelled.");
      button.disabled = false;
    }
  }

  function drawEnded() {
    const { state } = page;
    keyed(
      ended.body,
      state.ended.slice(0, shownEnded),
      (request) => request.id,
      () => makeRow(null),
      (row, request) => drawRow(row, request, state),
    );
    drawEmpty(ended.table, state.ended.length === 0, "Nothing ended yet.");
    more.hidden = state.ended.length <= shownEnded;
  }

  return {
    draw(changed) {
      const { state } = page;
      const isLive = changed === null || changed.has("requests") || changed.has("hello");
      if (!isLive && !changed.has("status")) return;
      const sorted = state.requests.toSorted(
        (one, other) => (ORDER[one.state] ?? 3) - (ORDER[other.state] ?? 3) || one.arrived_at - other.arrived_at,
      );
      const make = () => makeRow((id, button) => cancel(id, button));
      keyed(
        live.body,
        sorted,
        (request) => request.id,
        make,
        (row, request) => drawRow(row, request, state),
      );
      drawEmpty(live.table, sorted.length === 0, "Nothing runs and nothing waits.");
      if (isLive) drawEnded();
      if (state.status === null) return;
      const { running, waiting, finished, failed, resumed } = state.status.requests;
      const losses = resumed ? `, went on after a loss ${plural(resumed, "time")}` : "";
      const past = `${integer(finished)} finished, ${integer(failed)} failed${losses}`;
      setText(counts, `${integer(running)} running, ${integer(waiting)} waiting, ${past}`);
    },
  };
}

function table(caption) {
  const body = h("tbody");
  const head = h(
    "thead",
    {},
    h(
      "tr",
      {},
      HEADS.map((text) =>
        h(
          "th",
          { scope: "col", text: text || null },
          text ? null : h("span", { class: "visually-hidden", text: "What to do" }),
        ),
      ),
    ),
  );
  return {
    body,
    table: h("table", { class: "requests" }, h("caption", { class: "visually-hidden", text: caption }), head, body),
  };
}

/** cancel(id, button): null where the row's request has ended. */
function makeRow(cancel) {
  const name = h(
    "th",
    { scope: "row" },
    h("a", { class: "id" }),
    h("span", { class: "pill small" }),
    h("small", { class: "muted" }),
  );
  const way = h(
    "td",
    { "data-label": "Route" },
    h("span", { class: "strategy" }),
    h("span", { class: "way" }),
    h("small", { class: "muted" }),
  );
  const tokens = h(
    "td",
    { "data-label": "Tokens" },
    h("span"),
    h("div", { class: "meter", "aria-hidden": "true" }, h("i")),
    h("small", { class: "muted" }),
  );
  const pair = (label) => h("td", { "data-label": label, class: "number" }, h("span"), h("small", { class: "muted" }));
  const row = h(
    "tr",
    {},
    name,
    way,
    tokens,
    pair("First token"),
    pair("Speed"),
    pair("Time"),
    h("td", { class: "act" }),
  );
  if (cancel !== null) {
    const button = h("button", {
      type: "button",
      class: "quiet danger",
      text: "Cancel",
      onclick: () => cancel(row.request, button),
    });
    row.lastElementChild.append(button);
  }
  return row;
}

function drawRow(row, request, state) {
  const [name, way, tokens, first, speed, time, act] = row.children;
  row.request = request.id;
  drawName(name, request);
  setText(way.children[0], request.strategy ?? "not decided yet");
  setText(way.children[1], route(request.workers));
  setAttribute(way.children[1], "title", request.workers?.join(" \u2192 ") || null);
  const why = request.state === "waiting" && request.waits_for ? `waits for ${request.waits_for}` : request.reason;
  setText(way.children[2], why ? sentence(why) : "");
  drawTokens(tokens, request);
  drawTimes({ first, speed, time }, request, state.now);
  const button = act.firstElementChild;
  if (button === null) return;
  button.hidden = !state.mayAct;
  setAttribute(button, "aria-label", `Cancel request ${request.id}`);
}

function drawName(cell, request) {
  const [id, pill, more] = cell.children;
  setText(id, request.id);
  setAttribute(id, "href", `#timeline?request=${encodeURIComponent(request.id)}`);
  setAttribute(id, "title", "Show its steps on the timeline");
  setText(pill, request.state);
  setAttribute(pill, "data-state", request.state);
  const resumed = request.resumed ? `went on ${plural(request.resumed, "time")}` : null;
  setText(more, [request.key, resumed].filter(Boolean).join(", "));
}

function drawTokens(cell, request) {
  const [text, meter, more] = cell.children;
  const most = request.max_tokens;
  setText(text, `${integer(request.completion_tokens)}${most ? ` of ${integer(most)}` : ""}`);
  setLength(
    meter.firstElementChild,
    "--share",
    `${most ? Math.min(100, (request.completion_tokens / most) * 100) : 0}%`,
  );
  const cached = request.cached_tokens ? `, ${integer(request.cached_tokens)} cached` : "";
  setText(more, `prompt ${integer(request.prompt_tokens)}${cached}`);
}

function drawTimes({ first, speed, time }, request, now) {
  setText(first.children[0], seconds(request.ttft_s));
  setText(first.children[1], request.predicted ? `predicted ${seconds(request.predicted.ttft_s)}` : "");
  setText(speed.children[0], request.tokens_per_s === null ? number(null) : `${number(request.tokens_per_s)}/s`);
  setText(speed.children[1], "");
  const total = request.total_s ?? (request.ended_at === undefined ? Math.max(0, now - request.arrived_at) : null);
  setText(time.children[0], seconds(total));
  const ended =
    request.ended_at === undefined ? null : `${request.finish_reason ?? request.state}, ${clock(request.ended_at)}`;
  const predicted = request.predicted ? `predicted ${seconds(request.predicted.total_s)}` : null;
  setText(time.children[1], [predicted, ended].filter(Boolean).join("; "));
}
