// What is said of a picked step or request, and what there is to pick where nothing is.

import { h, setText } from "./dom.js";
import { bytes, clock, plural, route, seconds } from "./format.js";

export class Detail {
  #state;
  #choose;
  #offered = null; // the requests that stand there to be picked, where nothing is

  /** choose(id): a request is to stand out, or none (null); letGo(): nothing is picked any more. */
  constructor(state, { choose, letGo }) {
    this.#state = state;
    this.#choose = choose;
    this.what = h("strong");
    this.more = h("p", { class: "muted" });
    this.close = h("button", { type: "button", class: "quiet", text: "Let go", onclick: letGo });
    this.chips = h("div", { class: "chips" });
    const said = h("div", { role: "status" }, h("p", {}, this.what), this.more);
    this.root = h("div", { class: "detail" }, said, this.chips, this.close);
  }

  /** step and request: what is picked, each null where it is not. */
  show(step, request) {
    this.close.hidden = step === null && request === null;
    if (this.close.hidden) this.#offer();
    else this.#describe(step, request);
  }

  #describe(step, request) {
    this.#offered = null;
    const size = step && `${plural(step.tokens, "token")} in ${seconds(step.s)}`;
    setText(this.what, step ? `Step ${step.n} on ${step.worker}: ${step.kind} of ${size}` : `Request ${request}`);
    const sent = step?.bytes ? `, ${bytes(step.bytes)} sent on` : "";
    setText(this.more, step ? `${route(step.route.split(">"))}, at ${clock(step.at)}${sent}` : this.#told(request));
    this.#show(step?.requests ?? [request], request);
  }

  #offer() {
    const running = this.#state.requests.filter((each) => each.state === "running").map((each) => each.id);
    setText(this.what, "");
    setText(this.more, "Pick a step, or a request, to see where else its requests were computed.");
    if (this.#offered === running.join()) return;
    this.#offered = running.join();
    this.#show(running, null);
  }

  #show(ids, chosen) {
    const chip = (id) => {
      const isChosen = id === chosen;
      const choose = () => this.#choose(isChosen ? null : id);
      return h("button", {
        type: "button",
        class: "chip",
        text: id,
        "aria-pressed": String(isChosen),
        onclick: choose,
      });
    };
    this.chips.replaceChildren(...ids.map(chip));
  }

  #told(id) {
    const found = [...this.#state.requests, ...this.#state.ended].find((each) => each.id === id);
    if (!found) return "Not known any more.";
    return `${found.state}, ${found.strategy}, ${plural(found.completion_tokens, "token")} generated`;
  }
}
