// The npm package @anthropic-ai/sdk, as its documentation uses it.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic();
const model = process.env.MODEL;
const messages = [{ role: "user", content: "What is the capital of Japan?" }];
const input_schema = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};
const settings = { model, messages, temperature: 0, max_tokens: 24 };
const told = {};

told.models = [];
for await (const entry of client.models.list()) told.models.push(entry.id);
told.whole = (await client.messages.create(settings)).content[0].text;
told.streamed = "";
for await (const event of await client.messages.create({ ...settings, stream: true })) {
  if (event.type === "content_block_delta") told.streamed += event.delta.text;
}
const stream = client.messages.stream(settings);
told.final = await stream.finalText();
const call = await client.messages
  .stream({
    ...settings,
    messages: [{ role: "user", content: "Ada is 36 years old." }],
    tools: [{ name: "person", input_schema }],
    tool_choice: { type: "tool", name: "person" },
    max_tokens: 80,
  })
  .finalMessage();
told.tool = [call.stop_reason, call.content[0].name];
told.input = Object.keys(call.content[0].input).sort();
const runner = client.beta.messages.toolRunner({
  ...settings,
  messages: [{ role: "user", content: "Ada is 36 years old." }],
  tools: [{ type: "custom", name: "note", description: "Note a name.", input_schema, run: () => "noted", parse: (input) => input }],
  tool_choice: { type: "any" },
  max_tokens: 80,
  max_iterations: 2,
});
told.tools_run = [];
for await (const message of runner) told.tools_run.push(message.stop_reason);
const error = await client.messages.create({ ...settings, model: "claude-nothing" }).catch((error) => error);
told.not_found = [error.status, error.error.error.type];
console.log(JSON.stringify(told));
