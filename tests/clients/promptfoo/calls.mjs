// promptfoo, with its providers for each dialect.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { ANSWER, PLAYED, QUESTION, TANDEM, call, run, script } from "./helpers/calls.mjs";

const openai = { apiBaseUrl: `${TANDEM}/v1`, apiKey: "unused" };
const schema = {
  type: "object",
  properties: { capital: { enum: ["Paris", "Tokyo"] } },
  required: ["capital"],
  additionalProperties: false,
};
const format = { type: "json_schema", json_schema: { name: "capital", strict: true, schema } };
const weather = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};

// Evaluates one prompt; every assertion must hold.
function evaluate(provider, asserts, { prompt = QUESTION, environment = {}, defaultTest = {} } = {}) {
  const config = { prompts: [prompt], providers: [provider], tests: [{ assert: asserts }], defaultTest };
  writeFileSync("config.json", JSON.stringify(config));
  const own = { PROMPTFOO_CONFIG_DIR: `${process.cwd()}/promptfoo`, PROMPTFOO_FAILED_TEST_EXIT_CODE: "0" };
  const env = { ...process.env, ...own, ...environment };
  const options = ["--no-cache", "--no-progress-bar", "--no-table", "--no-write", "-o", "results.json"];
  run("promptfoo", ["eval", "-c", "config.json", ...options], { env });
  const [result] = JSON.parse(readFileSync("results.json", "utf-8")).results.results;
  assert(result.success, result.error);
}

const startsRight = [{ type: "starts-with", value: ANSWER }];

await call("chat", () => evaluate({ id: "openai:chat:default", config: openai }, startsRight));

await call("completion", () => {
  const said = [{ type: "javascript", value: "output.length > 0" }];
  evaluate({ id: "openai:completion:default", config: { ...openai, max_tokens: 4 } }, said, { prompt: "Once upon a time" });
});

await call("responses", () => evaluate({ id: "openai:responses:default", config: openai }, startsRight));

await call("messages", () => {
  const config = { apiBaseUrl: TANDEM, apiKey: "unused", max_tokens: 100 };
  evaluate({ id: "anthropic:messages:default", config }, startsRight);
});

await call("ollama", () => {
  evaluate({ id: "ollama:chat:tandem-demo" }, startsRight, { environment: { OLLAMA_BASE_URL: TANDEM } });
});

await call("structured output", () => {
  const config = { ...openai, response_format: format };
  evaluate({ id: "openai:chat:default", config }, [{ type: "is-json", value: schema }]);
});

await call("tool call", () => {
  const config = { apiBaseUrl: `${PLAYED}/v1`, apiKey: "unused", tools: [weather] };
  const prompt = script([{ call: "weather", arguments: { city: "Paris" } }], "It rains.");
  evaluate({ id: "openai:chat:default", config }, [{ type: "is-valid-openai-tools-call" }], { prompt });
});

await call("similarity by embeddings", () => {
  const embedding = { id: "openai:embedding:default", config: openai };
  const defaultTest = { options: { provider: { embedding } } };
  const similar = [{ type: "similar", value: "A KV cache keeps keys and values.", threshold: 0.1 }];
  evaluate({ id: "openai:chat:default", config: openai }, similar, { defaultTest });
});
