// Figures as people read them. What is not known is a dash.

export const UNKNOWN = "\u2013";
const UNITS = ["B", "kB", "MB", "GB", "TB"];

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** With at most three digits that mean something. */
export function number(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return String(value >= 100 ? Math.round(value) : Number(value.toFixed(value >= 10 ? 1 : 2)));
}

export function integer(value) {
  return known(value) ? Math.round(value).toLocaleString("en") : UNKNOWN;
}

export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${value >= 100 ? Math.round(value) : Number(value.toFixed(1))} ${UNITS[unit]}`;
}

export function seconds(value) {
  if (!known(value)) return UNKNOWN;
  if (value === 0) return "0 s";
  if (value < 0.0009995) return `${Math.round(value * 1e6)} \u00b5s`;
  if (value < 0.09995) return `${Number((value * 1000).toFixed(1))} ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 99.95) return `${value.toFixed(value < 9.995 ? 2 : 1)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

export function share(value) {
  return known(value) ? `${Math.round(value * 100)} %` : UNKNOWN;
}

/** The time of day of a Unix time in seconds. */
export function clock(at, { withSeconds = true } = {}) {
  const second = withSeconds ? "2-digit" : undefined;
  return new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second });
}

export function ago(s) {
  if (s < 5) return "now";
  if (s < 60) return `${Math.round(s)} s ago`;
  if (s < 3600) return `${Math.round(s / 60)} min ago`;
  return s < 172800 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
}

export function plural(count, one, many = `${one}s`) {
  return `${integer(count)} ${count === 1 ? one : many}`;
}

/** Half-open layers, as people count them. */
export function layers(range) {
  if (!range || range[1] <= range[0]) return UNKNOWN;
  return range[1] - range[0] === 1 ? `${range[0]}` : `${range[0]}\u2013${range[1] - 1}`;
}

/** A route: all of it where it is short, else its ends. */
export function route(workers) {
  if (!workers?.length) return UNKNOWN;
  if (workers.length <= 3) return workers.join(" \u2192 ");
  return `${workers[0]} \u2192 \u2026 \u2192 ${workers.at(-1)}`;
}

/** The answer of the API to what went wrong, as a sentence. */
export async function problem(response) {
  try {
    const { error } = await response.json();
    const text = typeof error === "string" ? error : error.message;
    if (text) return sentence(text);
  } catch {
    // not one of ours: its status has to do
  }
  return `The cluster answered with status ${response.status}.`;
}

export function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
