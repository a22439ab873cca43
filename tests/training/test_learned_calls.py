"""Calls of tools in conversations: learned as each family of models writes them, behind the prompts of inference."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from tool_families import EVERY_FORMAT, ONE_CALL, OSLO, SCHEMAS, TEMPLATES, TOOLS, row

from edgelm.completion import Chunk
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.testing import scripted_model
from edgelm.text.chat_template import ChatTemplate
from edgelm_training.conversations.assistant_tokens import encode_conversation
from edgelm_training.conversations.conversations import read_conversations

ASKING = {"harmony": "", "generic": "{% if add_generation_prompt %}assistant: {% endif %}"}


def template(name: str) -> ChatTemplate:
    """Return a family's small template, with the definitions before the messages and a beginning of an answer."""
    turns, _, tools = TEMPLATES[name].rpartition("{% if tools %}") if name not in ASKING else (TEMPLATES[name], "", "")
    asking = ASKING.get(name, "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    return ChatTemplate(("{% if tools %}" + tools if tools else "") + turns + asking)


def called(name: str, text: str) -> list[tuple[str, Any]]:
    """Read the calls in an answer as inference does."""
    parser = ToolCallParser(row(name), SCHEMAS)
    deltas = parser.take(Chunk(text=text, token_ids=(1,), finish_reason="stop")).tool_calls
    numbers = dict.fromkeys(delta.index for delta in deltas)
    parts = [[delta for delta in deltas if delta.index == number] for number in numbers]
    return [(str(part[0].name), json.loads("".join(delta.arguments for delta in part))) for part in parts]


@EVERY_FORMAT
def test_calls_are_learned_as_the_family_writes_them_behind_the_prompt_of_inference(name: str, tmp_path: Path) -> None:
    model = scripted_model("x")
    model.chat_template = template(name)
    # As OpenAI's data sets have them: the arguments are JSON text.
    calls = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for name, arguments in (("get_weather", OSLO), ("stop", {}))
    ]
    calls = calls[:1] if name == "generic" else calls  # whose calls stand in one turn as they are
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is the weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "Fine."} for call in calls),
        {"role": "assistant", "content": "It is fine."},
    ]
    data = tmp_path / "c.jsonl"
    data.write_text(json.dumps({"messages": messages, "tools": TOOLS}))
    (conversation,) = read_conversations([data])

    encoded = encode_conversation(model.chat_template, model.tokenizer, conversation)

    pairs = zip(encoded.learned, encoded.token_ids, strict=True)
    pieces = [(learned, [id_ for _, id_ in run]) for learned, run in groupby(pairs, key=lambda pair: pair[0])]
    assert pieces[0] == (False, model.encode_chat(messages[:1], TOOLS))  # type: ignore[arg-type]
    answers = [model.tokenizer.decode(ids, skip_control_tokens=False) for learned, ids in pieces if learned]
    said = [re.sub(r"(<\|im_end\|>|<\|call\|>)?\s*$", "", answer) for answer in answers]
    found = [call for answer in said for call in called(name, answer)]
    assert found == [("get_weather", OSLO), ("stop", {})][: len(calls)]
    assert len(answers) == (3 if name in ONE_CALL and len(calls) > 1 else 2)
    assert "It is fine." in answers[-1]
    before_last = [id_ for _, ids in pieces[: 2 * len(answers) - 1] for id_ in ids]
    assert before_last == model.encode_chat(messages[:-1], TOOLS)  # type: ignore[arg-type]
