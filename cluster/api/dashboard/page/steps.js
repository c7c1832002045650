// The last seconds of steps, by worker, on the coordinator's clock.

const KEPT_S = 40;

/** Those of one worker, oldest first. */
export class Row {
  steps = [];

  /** The index of the first step that ends after `at`. */
  from(at) {
    let [low, high] = [0, this.steps.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle].end > at) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** The step that ran at that time, or ended or began within `slack` seconds of it; else null. */
  at(at, slack = 0) {
    let found = null;
    let best = slack;
    for (let index = this.from(at - slack); index < this.steps.length; index += 1) {
      const step = this.steps[index];
      if (step.at > at + slack) break;
      const off = Math.max(step.at - at, at - step.end, 0);
      if (off <= best) [found, best] = [step, off];
      if (off === 0) break;
    }
    return found;
  }

  /** The share of a span in which it computed. */
  busy(from, to) {
    let sum = 0;
    for (let index = this.from(from); index < this.steps.length; index += 1) {
      const step = this.steps[index];
      if (step.at >= to) break;
      sum += Math.min(step.end, to) - Math.max(step.at, from);
    }
    return to > from ? Math.min(1, sum / (to - from)) : 0;
  }
}

export class Steps {
  rows = new Map();
  /** The earliest of the steps that came since it was taken. */
  #fresh = Infinity;

  clear() {
    this.rows.clear();
    this.#fresh = -Infinity;
  }

  /** ahead: how far the worker's clock is, in seconds. */
  add(worker, steps, now, ahead = 0) {
    let row = this.rows.get(worker);
    if (row === undefined) this.rows.set(worker, (row = new Row()));
    let last = row.steps.at(-1)?.at ?? 0;
    let inOrder = true;
    for (const step of steps) {
      step.worker = worker;
      step.at -= ahead;
      step.end = step.at + step.s;
      this.#fresh = Math.min(this.#fresh, step.at);
      inOrder &&= step.at >= last;
      last = step.at;
      row.steps.push(step);
    }
    if (!inOrder) row.steps.sort((one, other) => one.at - other.at);
    const old = row.from(now - KEPT_S);
    if (old > 0) row.steps.splice(0, old);
  }

  /** From which time on there are other steps than when this was asked last. */
  takeFresh() {
    const fresh = this.#fresh;
    this.#fresh = Infinity;
    return fresh;
  }

  /** A copy that nothing changes any more. */
  frozen() {
    const copy = new Steps();
    for (const [worker, row] of this.rows) {
      const kept = new Row();
      kept.steps = row.steps.slice();
      copy.rows.set(worker, kept);
    }
    return copy;
  }
}
