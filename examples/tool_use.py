"""Let a model call a function of yours, and answer with what it returned: python examples/tool_use.py [MODEL]"""

import json
import sys

import edgelm


def get_weather(city: str, unit: str = "celsius") -> str:
    return f"In {city} it is 21 degrees {unit} and sunny."


FUNCTIONS = {"get_weather": get_weather}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city"],
}
WEATHER = {"name": "get_weather", "description": "Tell the weather of a city.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": WEATHER}]

model = edgelm.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
config = edgelm.GenerationConfig(max_new_tokens=200)
messages = [edgelm.Message(role="user", content="How is the weather in Oslo?")]
answer = model.chat(messages, config, tools=TOOLS, tool_choice="required")
messages.append(answer.message)
for call in answer.tool_calls:
    result = FUNCTIONS[call.name](**json.loads(call.arguments))
    print(f"{call.name}({call.arguments}) -> {result}")
    messages.append(edgelm.Message(role="tool", content=result, tool_call_id=call.id))
print(model.chat(messages, config).text)
