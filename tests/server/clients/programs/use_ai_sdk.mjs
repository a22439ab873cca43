// The AI SDK with @ai-sdk/openai-compatible, as its documentation uses it.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "edgelm",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(process.env.MODEL);
const prompt = "What is the capital of Japan?";
const person = z.object({ name: z.string(), age: z.number().int() });
const told = {};

const whole = await generateText({ model, prompt, temperature: 0, maxOutputTokens: 24 });
told.whole = whole.text;
told.usage = whole.usage.outputTokens > 0;
const stream = streamText({ model, prompt, temperature: 0, maxOutputTokens: 24 });
told.streamed = "";
for await (const text of stream.textStream) told.streamed += text;
told.reason = await stream.finishReason;
const structured = await generateText({
  model,
  prompt: "Ada is 36 years old.",
  temperature: 0,
  maxOutputTokens: 80,
  output: Output.object({ schema: person }),
});
told.structured = Object.keys(structured.output).sort();
const called = await generateText({
  model,
  prompt: "Ada is 36 years old.",
  temperature: 0,
  maxOutputTokens: 80,
  tools: { person: tool({ description: "Note a person.", inputSchema: person }) },
  toolChoice: "required",
});
told.tool = called.toolCalls[0].toolName;
told.arguments = Object.keys(called.toolCalls[0].input).sort();
console.log(JSON.stringify(told));
