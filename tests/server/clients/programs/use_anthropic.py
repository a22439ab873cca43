"""The anthropic package, as its documentation uses it."""

import json
import os

import anthropic

client = anthropic.Anthropic()
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "What is the capital of Japan?"}]
person = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
tools = [{"name": "person", "description": "Note a person.", "input_schema": person}]
greedy = {"model": model, "extra_body": {"temperature": 0}}  # the package knows no temperature any more
told = {}

told["models"] = [entry.id for entry in client.models.list()]
told["model"] = client.models.retrieve(model).display_name

whole = client.messages.create(**greedy, messages=messages, max_tokens=24)
told["whole"] = whole.content[0].text
counted = client.messages.count_tokens(model=model, messages=messages, system="Be brief.", tools=tools)
briefly = client.messages.create(**greedy, messages=messages, system="Be brief.", tools=tools, max_tokens=1).usage
told["counted"] = counted.input_tokens == briefly.input_tokens + briefly.cache_read_input_tokens

with client.messages.stream(**greedy, messages=messages, max_tokens=24) as stream:
    told["streamed"] = "".join(stream.text_stream)
    final = stream.get_final_message()
told["final"] = [final.stop_reason == whole.stop_reason, final.usage.output_tokens == whole.usage.output_tokens]
told["final_text"] = final.content[0].text

asked = {"messages": [{"role": "user", "content": "Ada is 36 years old."}], "tools": tools, "max_tokens": 80}
called = client.messages.create(**greedy, **asked, tool_choice={"type": "any", "disable_parallel_tool_use": True})
told["tool"] = [called.stop_reason, called.content[0].name]
told["input"] = sorted(called.content[0].input)
with client.messages.stream(**greedy, **asked, tool_choice={"type": "tool", "name": "person"}) as stream:
    told["streamed_input"] = sorted(stream.get_final_message().content[0].input)
result = {"type": "tool_result", "tool_use_id": called.content[0].id, "content": "noted"}
turns = [*asked["messages"], called.to_param(), {"role": "user", "content": [result]}]
told["after"] = client.messages.create(**{**greedy, **asked, "messages": turns}, tool_choice={"type": "none"}).role

form = {"format": {"type": "json_schema", "schema": person}}
structured = client.messages.create(**greedy, messages=asked["messages"], output_config=form, max_tokens=80)
told["structured"] = sorted(json.loads(structured.content[0].text))


@anthropic.beta_tool
def note(name: str) -> str:
    """Note a name."""
    return f"noted: {name}"


runner = client.beta.messages.tool_runner(
    **greedy, messages=asked["messages"], tools=[note], tool_choice={"type": "any"}, max_tokens=80, max_iterations=2
)
told["tools_run"] = [message.stop_reason for message in runner]

for name, error, fields in (
    ("not_found", anthropic.NotFoundError, {"model": "claude-nothing"}),
    ("bad", anthropic.BadRequestError, {"extra_body": {"temperature": 9}}),
):
    try:
        client.messages.create(**{**greedy, "messages": messages, "max_tokens": 1, **fields})
    except error as refusal:
        told[name] = refusal.body["error"]["type"]
try:
    anthropic.Anthropic(api_key="wrong").messages.create(**greedy, messages=messages, max_tokens=1)
except anthropic.AuthenticationError as refusal:
    told["unauthorized"] = refusal.body["error"]["type"]
print(json.dumps(told))
