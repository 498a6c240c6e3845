// What the Vercel AI SDK does with a server; clients.py runs it in a folder with the packages.
// Prints how much went well, of how much, and what failed, as JSON.

import { embedMany, generateText, jsonSchema, streamText, tool } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const url = process.argv[2];
const place = createOpenAICompatible({ name: "m3mlx", baseURL: `${url}/v1`, apiKey: "none" });
const newer = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const model = place("m3mlx"), maxOutputTokens = 24, maxRetries = 0;
const tools = { add: tool({ description: "Add two numbers.", inputSchema: jsonSchema({ type: "object", properties: { a: { type: "integer" } } }) }) };
const greeted = [{ role: "system", content: "Be brief." }, { role: "assistant", content: "Hi." }, { role: "user", content: "Hello?" }];

async function text(stream) {
  let said = "";
  for await (const part of stream.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") said += part.text;
  }
  return said;
}

const acts = {
  chat: () => generateText({ model, prompt: "Hello?", maxOutputTokens, maxRetries }),
  stream: () => text(streamText({ model, prompt: "Hello?", maxOutputTokens, maxRetries })),
  greeted: () => generateText({ model, messages: greeted, allowSystemInMessages: true, maxOutputTokens, maxRetries, topK: 5, presencePenalty: 1, seed: 3 }),
  completion: () => generateText({ model: place.completionModel("m3mlx"), prompt: "Hello", maxOutputTokens, maxRetries }),
  tools: () => generateText({ model, prompt: "Hello?", tools, maxOutputTokens, maxRetries }),
  "a forced call": async () => {
    const { toolCalls } = await generateText({ model, prompt: "Add 2.", tools, toolChoice: "required", maxOutputTokens: 200, maxRetries });
    if (toolCalls[0]?.toolName !== "add") throw new Error("no call");
  },
  embeddings: () => embedMany({ model: place.embeddingModel("x"), values: ["a", "b"], maxRetries }),
  response: () => generateText({ model: newer("m3mlx"), prompt: "Hello?", maxOutputTokens, maxRetries }),
  "response in events": () => text(streamText({ model: newer("m3mlx"), prompt: "Hello?", maxOutputTokens, maxRetries })),
};

const lost = [];
for (const [what, act] of Object.entries(acts)) {
  try {
    await act();
  } catch (error) {
    lost.push(`${what}: ${error.name} ${error.message}`.slice(0, 300));
  }
}
const count = Object.keys(acts).length;
console.log(JSON.stringify([count - lost.length, count, lost]));
