// OpenAI's client for JavaScript.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ANSWER, PLAYED, QUESTION, TANDEM, call, script } from "./helpers/calls.mjs";

const client = new OpenAI({ baseURL: `${TANDEM}/v1`, apiKey: "unused", maxRetries: 0 });
const played = new OpenAI({ baseURL: `${PLAYED}/v1`, apiKey: "unused", maxRetries: 0 });
const model = "default";
const messages = [{ role: "user", content: QUESTION }];
const parameters = { type: "object", properties: { city: { enum: ["Paris", "Tokyo"] } }, required: ["city"] };
const weather = { type: "function", function: { name: "weather", description: "The weather of a city.", parameters } };
const Capital = z.object({ capital: z.enum(["Paris", "Tokyo"]), certain: z.boolean() });

await call("models", async () => {
  const listed = [];
  for await (const item of client.models.list()) listed.push(item.id);
  assert.deepEqual(listed, ["tandem-demo"]);
});

await call("chat", async () => {
  const answer = await client.chat.completions.create({ model, messages });
  assert(answer.choices[0].message.content.startsWith(ANSWER));
});

await call("stream", async () => {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
    text += chunk.choices[0]?.delta?.content ?? "";
  assert(text.startsWith(ANSWER));
});

await call("stream with its helper", async () => {
  const answer = await client.chat.completions.stream({ model, messages }).finalContent();
  assert(answer.startsWith(ANSWER));
});

await call("tool by name", async () => {
  const tool_choice = { type: "function", function: { name: "weather" } };
  const answer = await client.chat.completions.create({ model, messages, tools: [weather], tool_choice });
  const made = answer.choices[0].message.tool_calls[0].function;
  assert.equal(made.name, "weather");
  assert(["Paris", "Tokyo"].includes(JSON.parse(made.arguments).city));
});

await call("tools run by its helper", async () => {
  const asked = [];
  const run = played.chat.completions.runTools({
    model,
    messages: [{ role: "user", content: script([{ call: "weather", arguments: { city: "Paris" } }], "It rains.") }],
    tools: [
      {
        type: "function",
        function: { ...weather.function, parse: JSON.parse, function: ({ city }) => (asked.push(city), "rain") },
      },
    ],
  });
  assert.equal(await run.finalContent(), "It rains.");
  assert.deepEqual(asked, ["Paris"]);
});

await call("parse", async () => {
  const response_format = zodResponseFormat(Capital, "capital");
  const answer = await client.chat.completions.parse({ model, messages, response_format });
  Capital.parse(answer.choices[0].message.parsed);
});

await call("logprobs", async () => {
  const answer = await client.chat.completions.create({ model, messages, logprobs: true, top_logprobs: 2, max_tokens: 4 });
  assert.equal(answer.choices[0].logprobs.content.length, 4);
});

await call("responses", async () => {
  const answer = await client.responses.create({ model, input: QUESTION });
  assert(answer.output_text.startsWith(ANSWER));
});

await call("responses streamed", async () => {
  let text = "";
  for await (const event of await client.responses.create({ model, input: QUESTION, stream: true }))
    if (event.type === "response.output_text.delta") text += event.delta;
  assert(text.startsWith(ANSWER));
});

await call("responses parse", async () => {
  const text = { format: zodTextFormat(Capital, "capital") };
  Capital.parse((await client.responses.parse({ model, input: QUESTION, text })).output_parsed);
});

await call("embeddings", async () => {
  const answer = await client.embeddings.create({ model, input: ["one", "two"] });
  assert.equal(answer.data.length, 2);
  assert(Math.abs(answer.data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);
});
