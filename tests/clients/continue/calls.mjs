// Continue's CLI.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { PLAYED, call, run, script } from "./helpers/calls.mjs";

writeFileSync(
  "config.yaml",
  `name: local
version: 1.0.0
schema: v1
models:
  - name: tandem
    provider: openai
    model: default
    apiBase: ${PLAYED}/v1
    apiKey: unused
    roles: [chat]
    capabilities: [tool_use]
`,
);

function ask(words) {
  return run("cn", ["-p", words, "--config", "config.yaml", "--auto"]);
}

await call("answer", () => {
  assert(ask(script("It is done.")).includes("It is done."));
});

await call("file written and command run", () => {
  const write = { call: "Write", arguments: { filepath: "by-continue.txt", content: "written\n" } };
  const copy = { call: "Bash", arguments: { command: "cp by-continue.txt copied.txt" } };
  assert(ask(script([write], [copy], "It is written.")).includes("It is written."));
  assert.equal(readFileSync("copied.txt", "utf-8"), "written\n");
});
