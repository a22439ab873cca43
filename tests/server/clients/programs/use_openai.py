"""The openai package, as its documentation uses it."""

import json
import os

import openai

client = openai.OpenAI()
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "What is the capital of Japan?"}]
person = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
tools = [{"type": "function", "function": {"name": "person", "description": "Note a person.", "parameters": person}}]
told = {}

told["models"] = [entry.id for entry in client.models.list()]
told["model"] = client.models.retrieve(model).id

whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_completion_tokens=24)
told["whole"] = whole.choices[0].message.content
told["usage"] = whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

stream = client.chat.completions.create(
    model=model,
    messages=messages,
    temperature=0,
    max_completion_tokens=24,
    stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)
told["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
told["stream_usage"] = chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

with client.chat.completions.stream(model=model, messages=messages, temperature=0, max_completion_tokens=24) as events:
    told["events"] = "".join(event.delta for event in events if event.type == "content.delta")

call = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Ada is 36 years old."}],
    tools=tools,
    tool_choice="required",
    temperature=0,
    max_completion_tokens=80,
).choices[0]
told["tool"] = [call.finish_reason, call.message.tool_calls[0].function.name]
told["arguments"] = sorted(json.loads(call.message.tool_calls[0].function.arguments))

schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": person, "strict": True}}
structured = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Ada is 36 years old."}],
    response_format=schema,
    temperature=0,
    max_completion_tokens=80,
)
told["structured"] = sorted(json.loads(structured.choices[0].message.content))

response = client.responses.create(model=model, input=messages[0]["content"], temperature=0, max_output_tokens=24)
told["response"] = response.output_text
with client.responses.stream(model=model, input=messages[0]["content"], temperature=0, max_output_tokens=24) as events:
    told["response_events"] = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    told["response_status"] = events.get_final_response().status

embeddings = client.embeddings.create(model=model, input=["The sea is blue.", "Water"])  # as base64, unasked
told["embeddings"] = [round(sum(x * x for x in row.embedding), 3) for row in embeddings.data]

completion = client.completions.create(model=model, prompt="The sea is", max_tokens=4, temperature=0, logprobs=1)
told["completion"] = [len(completion.choices[0].logprobs.tokens), completion.choices[0].text]

try:
    client.chat.completions.create(model="gpt-nothing", messages=messages)
except openai.NotFoundError as error:
    told["not_found"] = error.code
try:
    client.chat.completions.create(model=model, messages=messages, temperature=9)
except openai.BadRequestError as error:
    told["bad"] = error.param
try:
    openai.OpenAI(api_key="wrong").models.list()
except openai.AuthenticationError as error:
    told["unauthorized"] = error.code
print(json.dumps(told))
