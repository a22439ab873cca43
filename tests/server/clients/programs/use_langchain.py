"""The langchain-openai package: invoke, stream, tools and structured output."""

import json
import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def note(name: str, age: int) -> str:
    """Note a person."""
    return f"{name}: {age}"


model = ChatOpenAI(model=os.environ["MODEL"], temperature=0, max_completion_tokens=80, stream_usage=True)
question = "What is the capital of Japan?"
told = {
    "whole": model.invoke(question).content,
    "streamed": "".join(chunk.text for chunk in model.stream(question)),
    "tool": model.bind_tools([note], tool_choice="required").invoke("Ada is 36 years old.").tool_calls[0]["name"],
}
for method in ("json_schema", "function_calling"):
    structured = model.with_structured_output(Person, method=method).invoke("Ada is 36 years old.")
    told[method] = type(structured.age).__name__
print(json.dumps(told))
