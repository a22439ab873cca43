// The npm package openai, as its documentation uses it.
import OpenAI from "openai";

const client = new OpenAI();
const model = process.env.MODEL;
const messages = [{ role: "user", content: "What is the capital of Japan?" }];
const parameters = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};
const settings = { model, messages, temperature: 0, max_completion_tokens: 24 };
const told = {};

told.models = [];
for await (const entry of client.models.list()) told.models.push(entry.id);
told.whole = (await client.chat.completions.create(settings)).choices[0].message.content;
told.streamed = "";
for await (const chunk of await client.chat.completions.create({ ...settings, stream: true })) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
}
told.final = await client.chat.completions.stream(settings).finalContent();
const call = await client.chat.completions.create({
  ...settings,
  messages: [{ role: "user", content: "Ada is 36 years old." }],
  tools: [{ type: "function", function: { name: "person", parameters } }],
  tool_choice: { type: "function", function: { name: "person" } },
  max_completion_tokens: 80,
});
told.tool = call.choices[0].message.tool_calls[0].function.name;
told.arguments = Object.keys(JSON.parse(call.choices[0].message.tool_calls[0].function.arguments)).sort();
const response = await client.responses.create({ model, input: messages[0].content, temperature: 0, max_output_tokens: 24 });
told.response = response.output_text;
const error = await client.chat.completions.create({ ...settings, model: "gpt-nothing" }).catch((error) => error);
told.not_found = [error.status, error.code];
console.log(JSON.stringify(told));
