import json
from typing import Any

import jsonschema

import edgelm
from edgelm.completion import Message
from edgelm.generation_config import GenerationConfig
from edgelm.testing import scripted_model, tiny_model_path

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Tell it.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop"}},
]
QUESTION = [Message(role="user", content="How is the weather in Oslo?")]


def test_a_model_that_must_call_calls_well(tmp_path: Any) -> None:
    model = edgelm.load(tiny_model_path())
    for seed in range(3):
        config = GenerationConfig(max_new_tokens=300, temperature=1.0, seed=seed)
        completion = model.chat(QUESTION, config, tools=TOOLS, tool_choice="required")
        assert (completion.finish_reason, completion.text) == ("tool_calls", "")
        (call,) = completion.tool_calls
        schema = {"get_weather": WEATHER, "stop": {"additionalProperties": False}}[call.name]
        jsonschema.validate(json.loads(call.arguments), schema)


def test_a_call_in_an_answer_is_apart_from_its_text() -> None:
    said = 'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "celsius"}}\n</tool_call>'
    completion = scripted_model(said).chat(QUESTION, tools=TOOLS)
    assert completion.text == "Let me see."
    assert [(call.name, json.loads(call.arguments)) for call in completion.tool_calls] == [
        ("get_weather", {"city": "Oslo", "unit": "celsius"})
    ]
    assert completion.finish_reason == "tool_calls"
