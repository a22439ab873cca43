"""The instructor package: tools with a named choice, and JSON schemas."""

import json
import os

import instructor
import openai
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


model = os.environ["MODEL"]
messages = [{"role": "user", "content": "Ada is 36 years old."}]
told = {}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(), mode=mode)
    person = client.chat.completions.create(
        model=model, messages=messages, response_model=Person, temperature=0, max_tokens=80
    )
    told[mode.value] = type(person.age).__name__
client = instructor.from_openai(openai.OpenAI(), mode=instructor.Mode.TOOLS)
partial = list(
    client.chat.completions.create_partial(
        model=model, messages=messages, response_model=Person, temperature=0, max_tokens=80
    )
)
told["partial"] = type(partial[-1].age).__name__
print(json.dumps(told))
