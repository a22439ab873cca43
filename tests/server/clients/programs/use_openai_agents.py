"""The openai-agents package: an agent that calls a tool and then answers with a type, over both of OpenAI's forms."""

import asyncio
import json
import os

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class City(BaseModel):
    name: str
    is_capital: bool


# Once alone: a small model would go on noting.
@function_tool(is_enabled=lambda context, agent: not noted)
def note(name: str) -> str:
    """Note the name of a city."""
    noted.append(name)
    return "noted"


noted = []
question = "What is the capital of Japan?"


async def main():
    told = {}
    client = AsyncOpenAI()
    for form, of in (("chat", OpenAIChatCompletionsModel), ("responses", OpenAIResponsesModel)):
        model = of(os.environ["MODEL"], openai_client=client)
        settings = ModelSettings(temperature=0, max_tokens=80)
        plain = Agent(name="plain", model=model, model_settings=settings)
        told[form] = (await Runner.run(plain, question)).final_output
        settings = ModelSettings(temperature=0, max_tokens=80, tool_choice="required")
        agent = Agent(name="notes", model=model, model_settings=settings, tools=[note], output_type=City)
        result = Runner.run_streamed(agent, question)
        async for _ in result.stream_events():
            pass
        told[f"{form}_output"] = [len(noted), type(result.final_output).__name__]
        noted.clear()
    print(json.dumps(told))


asyncio.run(main())
