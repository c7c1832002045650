// opencode, with a provider for what is compatible with OpenAI.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { PLAYED, call, run, script } from "./helpers/calls.mjs";

const tandem = {
  npm: "@ai-sdk/openai-compatible",
  name: "Tandem",
  options: { baseURL: `${PLAYED}/v1`, apiKey: "unused" },
  models: { default: { name: "default" } },
};
writeFileSync("opencode.json", JSON.stringify({ provider: { tandem } }));

function opencode(words) {
  return run("opencode", ["run", "-m", "tandem/default", words]);
}

await call("answer", () => {
  assert(opencode(script("It is done.")).includes("It is done."));
});

await call("file written and read", () => {
  const filePath = `${process.cwd()}/by-opencode.txt`;
  const write = { call: "write", arguments: { filePath, content: "written\n" } };
  const read = { call: "read", arguments: { filePath } };
  assert(opencode(script([write], [read], "It is written.")).includes("It is written."));
  assert.equal(readFileSync(filePath, "utf-8"), "written\n");
});
