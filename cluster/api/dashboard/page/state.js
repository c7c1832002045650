// What the page knows. Events of the feed change it; views read it and are told which parts changed.

import { Steps } from "./steps.js";

const HISTORY_S = 3600;
const MOST_ENDED = 200;
const MOST_LINES = 2000;

export class State {
  hello = null;
  status = null;
  requests = [];
  ended = [];
  points = [];
  findings = null;
  lines = [];
  steps = new Steps();
  link = { state: "connecting", retryAt: null };
  /** What the coordinator's clock is ahead of this one, in seconds. */
  ahead = 0;

  /** The coordinator's time. */
  get now() {
    return Date.now() / 1000 + this.ahead;
  }

  get mayAct() {
    return this.hello?.may_act ?? false;
  }

  /** Whether the page could act with a key that it has not got. */
  get isLocked() {
    return this.hello !== null && !this.hello.may_act;
  }

  /** Takes an event; what it does not know, a later coordinator may have reasons for. Returns whether it was one of ours. */
  take(name, data) {
    const taken = this[`_${name}`];
    if (typeof taken !== "function") return false;
    taken.call(this, data);
    return true;
  }

  _hello(data) {
    this.hello = data;
    this.ahead = data.now - Date.now() / 1000;
    this.points = data.history;
    this.ended = [];
    this.lines = [];
    this.steps.clear();
  }

  _status(data) {
    this.status = data;
  }

  _requests({ requests, ended }) {
    this.requests = requests;
    const at = this.now;
    for (const request of ended)
      request.ended_at ??= request.total_s === null ? at : request.arrived_at + request.total_s;
    this.ended = [...ended.toReversed(), ...this.ended].slice(0, MOST_ENDED);
  }

  _point(data) {
    this.points.push(data);
    while (this.points.length && this.points[0].at < data.at - HISTORY_S) this.points.shift();
  }

  _steps({ worker, steps, clock_ahead_s }) {
    this.steps.add(worker, steps, this.now, clock_ahead_s);
  }

  _logs({ lines }) {
    this.lines.push(...lines);
    if (this.lines.length > MOST_LINES) this.lines.splice(0, this.lines.length - MOST_LINES);
  }

  _findings({ findings }) {
    this.findings = findings;
  }
}
