// A conversation with the cluster, which shows for each answer where it was computed, why, and how fast. Kept on this page alone.

import { h, setAttribute, setText } from "./dom.js";
import { EventReader } from "./feed.js";
import { integer, number, plural, problem, route, seconds, sentence } from "./format.js";
import { blocks } from "./markdown.js";

const STRATEGIES = [
  "single-device-cached",
  "distributed-cached",
  "distributed-no-cache",
  "distributed-prefill",
  "tensor-parallel",
];
const LENGTHS = [
  [null, "Length: any"],
  [50, "up to 50 tokens"],
  [256, "up to 256 tokens"],
  [1024, "up to 1,024 tokens"],
];
const STARTERS = ["What is a KV cache?", "Why does a pipeline have bubbles?", "Hello"];

export function makeChat(root, page) {
  return new Chat(root, page);
}

class Chat {
  #page;
  #messages = [];
  #answering = null;

  constructor(root, page) {
    this.#page = page;
    this.log = h("div", { class: "messages", role: "log", "aria-label": "Conversation" });
    this.strategy = h(
      "select",
      { "aria-label": "Strategy" },
      h("option", { value: "", text: "Strategy: automatic" }),
      STRATEGIES.map((name) => h("option", { value: name, text: name })),
    );
    this.length = h(
      "select",
      { "aria-label": "Longest answer" },
      LENGTHS.map(([value, text]) => h("option", { value: value ?? "", text })),
    );
    this.text = h("textarea", { rows: "1", placeholder: "Ask something", "aria-label": "Message" });
    this.send = h("button", { type: "submit", class: "main", text: "Send" });
    this.anew = h("button", { type: "button", class: "quiet", text: "New chat", onclick: () => this.#begin() });
    this.form = h(
      "form",
      { class: "composer" },
      this.text,
      h("div", { class: "row" }, this.strategy, this.length, h("span", { class: "fill" }), this.anew, this.send),
    );
    this.locked = h("p", { class: "muted locked", text: "Enter the key of this cluster to chat with it." });
    root.append(
      h("h2", { class: "visually-hidden", text: "Chat" }),
      h("div", { class: "chat" }, this.log, this.locked, this.form),
    );
    this.#listen();
    this.#begin();
  }

  show() {
    if (!this.form.hidden && matchMedia("(pointer: fine)").matches) this.text.focus({ preventScroll: true });
  }

  draw(changed) {
    if (changed !== null && !changed.has("hello")) return;
    this.locked.hidden = !this.#page.state.isLocked;
    this.form.hidden = this.#page.state.isLocked;
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#answering) this.#answering.abort();
      else if (this.text.value.trim()) this.#ask(this.text.value.trim());
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#answering) this.form.requestSubmit();
    });
    this.text.addEventListener("input", () => this.#fit());
  }

  #fit() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight + 2, 200)}px`;
  }

  #begin() {
    this.#answering?.abort();
    this.#messages = [];
    const starters = STARTERS.map((text) =>
      h("button", { type: "button", class: "chip", text, onclick: () => this.#ask(text) }),
    );
    this.log.replaceChildren(
      h(
        "div",
        { class: "hello" },
        h("p", { text: "Ask the cluster something. Below each answer stands where it was computed and how fast." }),
        h("div", { class: "chips" }, starters),
      ),
    );
  }

  async #ask(text) {
    if (this.#answering) return;
    const messages = this.#messages; // a new chat begins with others
    if (messages.length === 0) this.log.replaceChildren();
    this.text.value = "";
    this.#fit();
    messages.push({ role: "user", content: text });
    const asked = [...messages];
    this.log.append(h("article", { class: "message user", "aria-label": "You" }, h("p", { text })));
    const answer = new Answer(this.log);
    const stopping = (this.#answering = new AbortController());
    setText(this.send, "Stop");
    try {
      await this.#stream(answer, asked, stopping.signal);
    } catch (error) {
      if (stopping.signal.aborted) answer.end("Stopped.");
      else
        answer.fail(error instanceof Refused ? error.message : "The connection broke before the answer was complete.");
    } finally {
      this.#answering = null;
      setText(this.send, "Send");
      // Where nothing came, the question is asked again with the next one, not kept as if it had been answered.
      if (answer.text) messages.push({ role: "assistant", content: answer.text });
      else messages.pop();
    }
    this.#offerWhy(answer, asked);
  }

  #body(messages) {
    const body = { model: "default", messages };
    if (this.strategy.value) body.strategy = this.strategy.value;
    if (this.length.value) body.max_tokens = Number(this.length.value);
    return body;
  }

  async #stream(answer, messages, signal) {
    const body = { ...this.#body(messages), stream: true, stream_options: { include_usage: true } };
    const response = await this.#page.ask("v1/chat/completions", { body, signal });
    if (!response.ok) throw new Refused(await problem(response));
    const reader = new EventReader((_, data) => {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(sentence(chunk.error.message));
      answer.take(chunk);
    });
    const texts = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await texts.read();
      if (done) break;
      reader.read(value);
    }
    answer.end(null);
  }

  /** A button that asks what was decided for such a request, and what else could have been. */
  #offerWhy(answer, messages) {
    const place = h("div", { class: "why", role: "status" });
    const button = h("button", { type: "button", class: "quiet", text: "Why this way?" });
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        const response = await this.#page.ask("v1/explain", { body: this.#body(messages) });
        place.replaceChildren(response.ok ? candidates(await response.json()) : await problem(response));
        button.hidden = response.ok;
      } catch {
        setText(place, "The cluster does not answer.");
      }
      button.disabled = false;
    });
    answer.foot.append(button, place);
  }
}

/** What the cluster says against a request. */
class Refused extends Error {}

/** One answer as it comes. Drawn once a frame, however fast that is. */
class Answer {
  text = "";
  #thought = "";
  #planned = false;

  constructor(log) {
    this.log = log;
    this.thoughts = h("details", { class: "thoughts", hidden: true }, h("summary", { text: "Its reasoning" }), h("p"));
    this.body = h(
      "div",
      { class: "text" },
      h("span", { class: "waiting", "aria-label": "Waiting for the first token" }),
    );
    this.about = h("p", { class: "about" });
    this.foot = h("footer", {}, this.about);
    this.root = h(
      "article",
      { class: "message", "aria-label": "Answer", "aria-busy": "true" },
      this.thoughts,
      this.body,
      this.foot,
    );
    log.append(this.root);
    this.#follow(true);
  }

  take({ choices, tandem, usage }) {
    const delta = choices?.[0]?.delta;
    this.text += delta?.content ?? "";
    this.#thought += delta?.reasoning_content ?? delta?.reasoning ?? "";
    if (tandem) this.#tell(tandem, usage);
    if (this.#planned) return;
    this.#planned = true;
    requestAnimationFrame(() => this.#draw());
  }

  /** note: what stands below an answer that was not completed. */
  end(note) {
    this.#draw();
    setAttribute(this.root, "aria-busy", null);
    if (!this.text) this.body.replaceChildren(...(note ? [] : [h("p", { class: "muted", text: "An empty answer." })]));
    if (note) this.about.append(h("span", { text: note }));
  }

  fail(message) {
    this.end(null);
    if (!this.text) this.body.replaceChildren();
    setAttribute(this.root, "class", "message failed");
    this.body.append(h("p", { class: "problem", role: "alert", text: message }));
  }

  #draw() {
    this.#planned = false;
    const isNear = this.#isNear();
    if (this.text) this.body.replaceChildren(...blocks(this.text));
    this.thoughts.hidden = !this.#thought;
    setText(this.thoughts.lastElementChild, this.#thought);
    this.#follow(isNear);
  }

  #tell(tandem, usage) {
    const isNear = this.#isNear();
    const facts = [
      ["strategy", tandem.strategy],
      [null, route(tandem.workers)],
      [null, `first token ${seconds(tandem.ttft_s)}`],
      [null, tandem.decode_tokens_per_s ? `${number(tandem.decode_tokens_per_s)} tokens/s` : null],
      [null, usage ? plural(usage.completion_tokens, "token") : null],
      [null, tandem.cached_tokens ? `${integer(tandem.cached_tokens)} of the prompt cached` : null],
      [null, tandem.resumed ? `went on after a loss ${plural(tandem.resumed, "time")}` : null],
    ];
    this.about.replaceChildren(
      ...facts.filter(([, text]) => text).map(([kind, text]) => h("span", { class: kind, text })),
    );
    const reasons = [tandem.reason, ...(tandem.notes ?? [])].filter(Boolean).map(sentence);
    this.foot.append(h("p", { class: "muted reason", text: reasons.join(" ") }));
    this.#follow(isNear);
  }

  #isNear() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
  }

  #follow(wanted) {
    if (wanted) this.log.scrollTop = this.log.scrollHeight;
  }
}

function candidates({ candidates: found }) {
  const heads = ["Strategy", "First token", "In all", "Can it run?"].map((text) => h("th", { scope: "col", text }));
  const rows = found.map((each) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", text: each.strategy }),
      h("td", { text: seconds(each.predicted_ttft_s) }),
      h("td", { text: seconds(each.predicted_total_s) }),
      h("td", { text: each.feasible ? "yes" : (each.why_not ?? "no") }),
    ),
  );
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      {},
      h("caption", { class: "visually-hidden", text: "What else could have been" }),
      h("thead", {}, h("tr", {}, heads)),
      h("tbody", {}, rows),
    ),
  );
}
