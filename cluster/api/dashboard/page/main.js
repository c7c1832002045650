// The page: its header, which view is shown, the theme and the key. Views are drawn when something of theirs changed and they are seen.

import { makeCharts } from "./charts.js";
import { makeChat } from "./chat.js";
import { makeCluster } from "./cluster.js";
import { setAttribute, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { bytes, number, plural } from "./format.js";
import { makeJournal } from "./journal.js";
import { makeRequests } from "./requests.js";
import { State } from "./state.js";
import { makeTimeline } from "./timeline.js";

const KEY = "tandem.key";
const THEME = "tandem.theme";
const THEMES = { auto: ["\u25d0", "as the system"], light: ["\u2600", "light"], dark: ["\u263e", "dark"] };
const MAKERS = {
  cluster: makeCluster,
  timeline: makeTimeline,
  requests: makeRequests,
  charts: makeCharts,
  chat: makeChat,
  journal: makeJournal,
};

const byId = (id) => document.getElementById(id);

class Page {
  state = new State();
  #views = new Map();
  #shown = null;
  #changed = new Set();
  #planned = false;
  #feed = new Feed(
    (name, data) => this.#took(name, data),
    (state, retryAt) => this.#linked(state, retryAt),
  );

  begin() {
    this.#beginTheme();
    this.#beginKey();
    byId("link")
      .querySelector("button")
      .addEventListener("click", () => this.#feed.tryNow());
    addEventListener("hashchange", () => this.#route());
    this.#route();
    this.#feed.start(this.key);
    setInterval(() => this.#drawLink(), 500);
  }

  get key() {
    return sessionStorage.getItem(KEY);
  }

  /** Asks the API for something, with the key where there is one. */
  ask(path, { method = "POST", body = null, signal = null } = {}) {
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    if (body !== null) headers["Content-Type"] = "application/json";
    return fetch(path, { method, headers, signal, body: body === null ? null : JSON.stringify(body) });
  }

  // --- what comes

  #took(name, data) {
    if (this.state.take(name, data)) this.#touch(name);
  }

  #linked(state, retryAt) {
    this.state.link = { state, retryAt };
    if (state === "refused") {
      sessionStorage.removeItem(KEY);
      this.#feed.start(null);
      this.#askForKey("This key is not known here.");
    }
    this.#drawLink();
    this.#touch("link");
  }

  #touch(name) {
    this.#changed.add(name);
    if (this.#planned) return;
    this.#planned = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#planned = false;
    const changed = this.#changed;
    this.#changed = new Set();
    if (["hello", "status", "point", "link"].some((name) => changed.has(name))) this.#drawHeader();
    this.#shown?.draw(changed);
  }

  // --- which view

  #route() {
    const [name, query] = location.hash.slice(1).split("?");
    if (name === "content") return;
    const wanted = name in MAKERS ? name : "cluster";
    for (const link of document.querySelectorAll(".tabs a")) {
      setAttribute(link, "aria-current", link.hash === `#${wanted}` ? "page" : null);
    }
    for (const known of Object.keys(MAKERS)) byId(`view-${known}`).hidden = known !== wanted;
    if (!this.#views.has(wanted)) this.#views.set(wanted, MAKERS[wanted](byId(`view-${wanted}`), this));
    const view = this.#views.get(wanted);
    if (view !== this.#shown) {
      this.#shown?.hide?.();
      this.#shown = view;
      scrollTo(0, 0);
    }
    document.title = `${wanted.charAt(0).toUpperCase()}${wanted.slice(1)} \u00b7 Tandem`;
    view.show?.(new URLSearchParams(query));
    view.draw(null);
  }

  // --- the header

  #drawHeader() {
    const { status, hello, points } = this.state;
    byId("key").hidden = !hello?.asks_for_key;
    setText(byId("key"), this.state.mayAct ? "Key in use" : "Enter key");
    if (status === null) return;
    const state = this.state.link.state === "open" ? status.state : "unknown";
    setText(byId("state"), state);
    setAttribute(byId("state"), "data-state", state);
    const { model } = status;
    const size = model.layers === null ? "" : ` ${model.layers} layers, ${bytes(model.bytes)}`;
    byId("model").replaceChildren(strong(model.id), size);
    setAttribute(byId("model"), "title", model.id);
    setText(byId("mode"), `mode ${status.mode}, policy ${status.policy}`);
    const { running, waiting } = status.requests;
    const rate = points.at(-1)?.tokens_per_s;
    setText(
      byId("rate"),
      `${number(rate ?? 0)} tokens/s \u00b7 ${plural(running, "request")}${waiting ? `, ${waiting} wait` : ""}`,
    );
  }

  #drawLink() {
    const { state, retryAt } = this.state.link;
    const banner = byId("link");
    banner.hidden = state !== "lost";
    document.body.classList.toggle("stale", state === "lost");
    if (state !== "lost") return;
    const left = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
    const next = left > 0 ? `trying again in ${left} s.` : "trying again now.";
    setText(
      banner.querySelector("span"),
      `The connection to the cluster is lost; ${next} What you see is from before.`,
    );
  }

  // --- theme and key

  #beginTheme() {
    const button = byId("theme");
    const names = Object.keys(THEMES);
    const use = (name) => {
      document.documentElement.dataset.theme = name;
      setText(button, THEMES[name][0]);
      setAttribute(button, "aria-label", `Colours: ${THEMES[name][1]}`);
      setAttribute(button, "title", `Colours: ${THEMES[name][1]}`);
      this.#shown?.draw(null);
    };
    const kept = localStorage.getItem(THEME);
    use(kept in THEMES ? kept : "auto");
    button.addEventListener("click", () => {
      const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
      localStorage.setItem(THEME, next);
      use(next);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#shown?.draw(null));
  }

  #beginKey() {
    const dialog = byId("key-dialog");
    const form = dialog.querySelector("form");
    const use = (key) => {
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
      form.reset();
      dialog.close();
      this.#feed.start(key || null);
    };
    byId("key").addEventListener("click", () => this.#askForKey(""));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      use(new FormData(form).get("key").trim());
    });
    form.querySelector("[value=forget]").addEventListener("click", () => use(null));
  }

  #askForKey(why) {
    const dialog = byId("key-dialog");
    setText(dialog.querySelector(".problem"), why);
    if (!dialog.open) dialog.showModal();
  }
}

function strong(text) {
  const element = document.createElement("strong");
  element.textContent = text;
  return element;
}

new Page().begin();
