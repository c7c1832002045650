// Which part of time the timeline shows: the last seconds as they go by, or some that stand still.

// Steps come each quarter of a second or so: what is shown ends a little before now, so that it comes in whole.
const LAG_S = 0.8;
const FIRST_S = 10;
const SHORTEST_S = 0.05;
const LONGEST_S = 30;
const FARTHEST_S = 60;

export class Span {
  /** In seconds. */
  length = FIRST_S;
  #state;
  #end = null; // where it is paused
  #frozen = null; // the steps as they were then

  constructor(state) {
    this.#state = state;
  }

  get isPaused() {
    return this.#end !== null;
  }

  get steps() {
    return this.#frozen ?? this.#state.steps;
  }

  get to() {
    return this.#end ?? this.#latest;
  }

  get from() {
    return this.to - this.length;
  }

  get #latest() {
    return this.#state.now - LAG_S;
  }

  pause() {
    if (this.isPaused) return;
    this.#end = this.#latest;
    this.#frozen = this.#state.steps.frozen();
  }

  goOn() {
    this.#end = null;
    this.#frozen = null;
  }

  /** By so many seconds; pauses. */
  move(by) {
    this.pause();
    this.#end = Math.min(Math.max(this.#end + by, this.#latest - FARTHEST_S), this.#latest);
  }

  /** around: the share of the width that stays where it is. */
  zoom(factor, around) {
    const length = Math.min(Math.max(this.length * factor, SHORTEST_S), LONGEST_S);
    if (this.isPaused) this.#end += (length - this.length) * (1 - around);
    this.length = length;
  }

  /** Moves, where it has to, until a step is within; pauses. */
  reveal(step) {
    this.pause();
    if (step.at < this.from) this.#end = step.at + this.length * 0.9;
    else if (step.end > this.#end) this.#end = step.end + this.length * 0.1;
  }
}
