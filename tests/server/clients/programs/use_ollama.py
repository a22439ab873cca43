"""The ollama package, as its documentation uses it."""

import json
import os

import ollama

client = ollama.Client(host=os.environ["BASE_URL"], headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"})
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "What is the capital of Japan?"}]
options = {"temperature": 0, "num_predict": 24}
person = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
told = {}

told["models"] = [entry.model for entry in client.list().models]
told["context"] = client.show(model).modelinfo["llama.context_length"]
told["whole"] = client.chat(model, messages, options=options).message.content
told["streamed"] = "".join(part.message.content for part in client.chat(model, messages, options=options, stream=True))
told["generated"] = client.generate(model, messages[0]["content"], options=options).response
answer = client.chat(model, [{"role": "user", "content": "Ada is 36."}], format=person, options={"temperature": 0})
told["structured"] = sorted(json.loads(answer.message.content))
told["embeddings"] = len(client.embed(model, ["The sea is blue.", "Water"]).embeddings)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


told["tools"] = client.chat(model, messages, tools=[add], options=options).done_reason
try:
    client.chat("nothing", messages)
except ollama.ResponseError as error:
    told["not_found"] = error.status_code
print(json.dumps(told))
