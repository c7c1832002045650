// Codex CLI, which speaks /v1/responses.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { PLAYED, call, run, script } from "./helpers/calls.mjs";

const provider = `{ name = "Tandem", base_url = "${PLAYED}/v1", wire_api = "responses" }`;
mkdirSync(`${homedir()}/.codex`);
writeFileSync(
  `${homedir()}/.codex/config.toml`,
  `model = "default"\nmodel_provider = "tandem"\nmodel_providers.tandem = ${provider}\n`,
);

function codex(words) {
  const options = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"];
  return run("codex", ["exec", ...options, words]);
}

await call("answer", () => {
  assert(codex(script("It is done.")).includes("It is done."));
});

await call("command that writes a file", () => {
  const write = { call: "exec_command", arguments: { cmd: "echo written > by-codex.txt" } };
  assert(codex(script([write], "It is written.")).includes("It is written."));
  assert.equal(readFileSync("by-codex.txt", "utf-8"), "written\n");
});

await call("turn resumed", () => {
  const options = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"];
  const again = run("codex", ["exec", "resume", "--last", ...options, script("It goes on.")]);
  assert(again.includes("It goes on."));
});
