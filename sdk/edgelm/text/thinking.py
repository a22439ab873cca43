"""Thinking: the variables by which chat templates are told whether a model thinks before it answers, and how much."""

from __future__ import annotations

from edgelm.text.chat_template import ChatTemplate

SWITCHES = ("enable_thinking", "thinking")  # of Qwen3, SmolLM3 and most others; of Granite and DeepSeek
EFFORT = "reasoning_effort"  # of gpt-oss


def switches_thinking(template: ChatTemplate | None) -> bool:
    """Tell whether a template reads what switches thinking on and off."""
    return template is not None and not template.variables.isdisjoint(SWITCHES)


def knows_thinking(template: ChatTemplate | None) -> bool:
    """Tell whether a template reads any of these variables."""
    return switches_thinking(template) or (template is not None and EFFORT in template.variables)


def thinking_variables(think: bool, effort: str | None = None) -> dict[str, object]:
    """Return the variables that ask for thinking, or for none. effort: a word such as "low"; None: the template's."""
    return dict.fromkeys(SWITCHES, think) | ({} if effort is None else {EFFORT: effort})
