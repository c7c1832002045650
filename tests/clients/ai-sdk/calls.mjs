// Vercel's AI SDK, with its provider for what is compatible with OpenAI.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { ANSWER, PLAYED, QUESTION, TANDEM, call, script } from "./helpers/calls.mjs";

const options = { name: "tandem", includeUsage: true, supportsStructuredOutputs: true };
const tandem = createOpenAICompatible({ ...options, baseURL: `${TANDEM}/v1` });
const played = createOpenAICompatible({ ...options, baseURL: `${PLAYED}/v1` });
const asked = { model: tandem("default"), prompt: QUESTION, maxRetries: 0 };
const Capital = z.object({ capital: z.enum(["Paris", "Tokyo"]), certain: z.boolean() });
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.enum(["Paris", "Tokyo"]) }),
  execute: async () => "rain",
});
const words = script([{ call: "weather", arguments: { city: "Paris" } }], "It rains.");

await call("generateText", async () => {
  const { text, usage } = await generateText(asked);
  assert(text.startsWith(ANSWER));
  assert(usage.outputTokens > 0);
});

await call("streamText", async () => {
  const result = streamText(asked);
  let text = "";
  for await (const piece of result.textStream) text += piece;
  assert(text.startsWith(ANSWER));
  assert((await result.usage).outputTokens > 0);
});

await call("generateObject", async () => {
  Capital.parse((await generateObject({ ...asked, schema: Capital })).object);
});

await call("generateObject without a schema", async () => {
  const prompt = "Give me the capital of France as JSON.";
  const { object } = await generateObject({ ...asked, prompt, output: "no-schema" });
  assert.deepEqual(object, { country: "France", capital: "Paris" });
});

await call("streamObject", async () => {
  const result = streamObject({ ...asked, schema: Capital });
  for await (const part of result.partialObjectStream) assert.equal(typeof part, "object");
  Capital.parse(await result.object);
});

await call("tool that is required", async () => {
  const { toolCalls } = await generateText({ ...asked, tools: { weather }, toolChoice: "required" });
  assert(["Paris", "Tokyo"].includes(toolCalls[0].input.city));
});

await call("tools in a loop", async () => {
  const loop = { model: played("default"), prompt: words, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
  const { text, steps } = await generateText(loop);
  assert.equal(text, "It rains.");
  assert.equal(steps.length, 2);
});

await call("tools in a loop, streamed", async () => {
  const loop = { model: played("default"), prompt: words, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
  assert.equal(await streamText(loop).text, "It rains.");
});

await call("tools of the bundled model in a loop", async () => {
  const inputSchema = z.object({ city: z.string() });
  const get_weather = tool({ description: "The weather of a city.", inputSchema, execute: async () => "18 degrees and sunny" });
  const loop = { ...asked, prompt: "What is the weather in Paris?", tools: { get_weather }, stopWhen: stepCountIs(3) };
  assert.equal((await generateText(loop)).text, "In Paris it is 18 degrees and sunny.");
});

await call("embed", async () => {
  const { embedding } = await embed({ model: tandem.textEmbeddingModel("default"), value: "one", maxRetries: 0 });
  assert(embedding.length > 0);
});

await call("embedMany", async () => {
  const many = await embedMany({ model: tandem.textEmbeddingModel("default"), values: ["one", "two"], maxRetries: 0 });
  assert.equal(many.embeddings.length, 2);
});
