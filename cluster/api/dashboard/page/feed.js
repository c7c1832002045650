// The one stream that feeds the page. It is read with fetch, since an EventSource cannot carry a key.

const FIRST_PAUSE_S = 0.5;
const LONGEST_PAUSE_S = 15;
const SILENCE_S = 25; // the server says something each 15 s
const HIDDEN_S = 60;

/** Cuts a stream of text into events and gives each, parsed, to `take(name, data)`. */
export class EventReader {
  #rest = "";

  constructor(take) {
    this.take = take;
  }

  read(text) {
    const blocks = (this.#rest + text).split("\n\n");
    this.#rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      }
      if (data.length) this.take(name, data.join("\n"));
    }
  }
}

/**
 * Holds the stream open: what breaks is opened again after a growing pause, what nobody sees for a minute is closed.
 *
 * take(name, value): an event; linked(state, retryAt): "open", "lost" or "refused" (the key is not known), and when it is tried
 * again, in milliseconds as Date.now().
 */
export class Feed {
  #key = null;
  #ending = null;
  #wake = null;
  #pause = FIRST_PAUSE_S;
  #hiding = null;

  constructor(take, linked) {
    this.take = take;
    this.linked = linked;
    document.addEventListener("visibilitychange", () => this.#seen());
  }

  /** Opens the stream, with another key where there was one open. */
  start(key) {
    this.#key = key;
    this.#pause = FIRST_PAUSE_S;
    this.stop();
    const ending = (this.#ending = new AbortController());
    this.#run(ending.signal);
  }

  stop() {
    this.#ending?.abort();
    this.#ending = null;
    this.#wake?.();
  }

  /** Ends the pause before the next try. */
  tryNow() {
    this.#wake?.();
  }

  async #run(stopped) {
    while (!stopped.aborted) {
      try {
        if (!(await this.#once(stopped))) return;
      } catch {
        // the connection broke, which is told below
      }
      if (stopped.aborted) return;
      const pause = this.#pause * (0.75 + Math.random() / 2);
      this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE_S);
      this.linked("lost", Date.now() + pause * 1000);
      await this.#sleep(pause);
    }
  }

  /** One connection until it ends; false where it makes no sense to try again. */
  async #once(stopped) {
    const silence = new AbortController();
    let timer = null;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_S * 1000);
    };
    try {
      heard();
      const headers = this.#key ? { Authorization: `Bearer ${this.#key}` } : {};
      const signal = AbortSignal.any([stopped, silence.signal]);
      const response = await fetch("dashboard/feed", { headers, signal, cache: "no-store" });
      if (response.status === 401) {
        this.linked("refused", null);
        return false;
      }
      if (!response.ok) throw new Error(`status ${response.status}`);
      const reader = new EventReader((name, data) => this.#took(name, data));
      const texts = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await texts.read();
        if (done) return true;
        heard();
        if (!stopped.aborted) reader.read(value);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #took(name, data) {
    if (name === "hello") {
      this.#pause = FIRST_PAUSE_S;
      this.linked("open", null);
    }
    this.take(name, JSON.parse(data));
  }

  #sleep(pause) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, pause * 1000);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #seen() {
    clearTimeout(this.#hiding);
    if (document.hidden) this.#hiding = setTimeout(() => this.stop(), HIDDEN_S * 1000);
    else if (this.#ending === null) this.start(this.#key);
  }
}
