"""The pydantic-ai package: an agent's text, its stream, and an answer of a type, which it asks for as a tool."""

import asyncio
import json
import os

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    name: str
    age: int


provider = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
settings = {"temperature": 0, "max_tokens": 80}
question = "What is the capital of Japan?"


async def main():
    told = {}
    model = OpenAIChatModel(os.environ["MODEL"], provider=provider)
    told["whole"] = (await Agent(model, model_settings=settings).run(question)).output
    async with Agent(model, model_settings=settings).run_stream(question) as result:
        told["streamed"] = await result.get_output()
    for name, output in (("tool", Person), ("native", NativeOutput(Person))):
        agent = Agent(model, output_type=output, model_settings=settings)
        told[name] = type((await agent.run("Ada is 36 years old.")).output).__name__
    responses = OpenAIResponsesModel(os.environ["MODEL"], provider=provider)
    told["responses"] = (await Agent(responses, model_settings=settings).run(question)).output
    print(json.dumps(told))


asyncio.run(main())
