// What calls in JavaScript are written with: `await call("name", async () => { ... })`, which passes when it returns.

import { spawnSync } from "node:child_process";
import { appendFileSync } from "node:fs";

export const TANDEM = process.env.TANDEM_URL;
export const PLAYED = process.env.PLAYED_URL;
export const QUESTION = "What is a KV cache?";
// How the bundled model's answer to it begins.
export const ANSWER = "A KV cache";

// The words that make the played model say texts, or make calls: each {call: name, arguments: {...}}.
export function script(...steps) {
  return "PLAY:" + Buffer.from(JSON.stringify(steps)).toString("base64").replaceAll("+", "-").replaceAll("/", "_");
}

// A program of the client's; what it printed. It must succeed.
export function run(command, args, options = {}) {
  const limits = { timeout: 300_000, maxBuffer: 2 ** 26, encoding: "utf-8", stdio: ["ignore", "pipe", "pipe"] };
  const done = spawnSync(command, args, { ...limits, ...options });
  console.log(command, args, done.status, done.stdout, done.stderr);
  if (done.status !== 0) throw new Error(`it ended with ${done.status}: ${(done.stdout + done.stderr).slice(-1000)}`);
  return done.stdout;
}

export async function call(name, make) {
  let failure = null;
  try {
    await make();
  } catch (error) {
    console.log(error);
    const where = /calls\.mjs:\d+/.exec(error?.stack ?? "") ?? [""];
    failure = `${error} (${where[0]})`.slice(0, 1000);
  }
  console.log(name, failure ?? "passed");
  appendFileSync(process.env.CALLS_RESULTS, JSON.stringify({ call: name, failure }) + "\n");
}
