"""Reasoning: what a model thinks before it answers, apart from the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgelm.completion import Chunk
from edgelm.generation_config import GenerationConfig
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer

# The longest mark that a prompt ends with has 34 characters in no more tokens; line breaks may stand behind it.
_TAIL = 48


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """Describe how a family of models marks what it thinks.

    sign: what its chat templates have. control_tokens: those that the marks are made of. openings: marks that may stand
    before the answer, whether it was thought about or not.
    """

    start: str
    end: str
    sign: str
    control_tokens: tuple[str, ...]
    openings: tuple[str, ...] = ()


FORMATS = (
    # Qwen3, QwQ, DeepSeek-R1 and what was distilled from it, SmolLM3, Phi-4-reasoning.
    ReasoningFormat(start="<think>", end="</think>", sign="</think>", control_tokens=("<think>", "</think>")),
    # GPT-OSS (https://github.com/openai/harmony); a prompt ends with <|start|>assistant.
    ReasoningFormat(
        start="<|channel|>analysis<|message|>",
        end="<|end|>",
        sign="<|channel|>analysis<|message|>",
        control_tokens=("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
        openings=("<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """Say how the answer to one prompt tells what it thinks.

    is_open: the prompt ends inside of it. ends: texts that end it though they belong to the answer.
    """

    format: ReasoningFormat
    is_open: bool
    ends: Sequence[str] = ()

    def splitter(self) -> ReasoningSplitter:
        """Return what takes one answer apart."""
        return ReasoningSplitter(self)


def reasoning_format(template: ChatTemplate | None) -> ReasoningFormat | None:
    """Return how the models of a chat template mark what they think; None where they do not think."""
    return None if template is None else next((row for row in FORMATS if row.sign in template.source), None)


def reasoning_settings(
    config: GenerationConfig, template: ChatTemplate | None, tokenizer: Tokenizer, prompt_ids: Sequence[int]
) -> tuple[GenerationConfig, Reasoning | None]:
    """Return the settings of an answer to a conversation, its marks as text, and how it thinks; None where it does not.

    A config that names the marks as visible wants them in the text: nothing is taken out of that.
    """
    format_ = reasoning_format(template)
    if format_ is None or not set(format_.control_tokens).isdisjoint(config.visible_control_tokens):
        return config, None
    constraint = config.constraint
    # What has a form from its first token on is an answer, whatever the prompt ends with. What begins with one of the
    # constraint's texts has it too, though the model may think that it still thinks.
    is_formed = constraint is not None and not constraint.after
    ends = () if constraint is None or constraint.at_start else constraint.after
    tail = tokenizer.decode(prompt_ids[-_TAIL:], skip_control_tokens=False)
    is_open = not is_formed and tail.rstrip().endswith(format_.start)
    visible = (*config.visible_control_tokens, *format_.control_tokens)
    return config.replace(visible_control_tokens=visible), Reasoning(format=format_, is_open=is_open, ends=ends)


class ReasoningSplitter:
    """Take the text of one answer in pieces; separate what is thought from what is answered.

    Where the pieces were cut changes nothing. Half of a mark is never shown, and white space around the marks is left
    out. An answer that begins with no mark, to a prompt that does not end with one, is answer alone, as it stands.
    """

    def __init__(self, reasoning: Reasoning) -> None:
        self._reasoning = reasoning
        self._ends = (reasoning.format.end, *reasoning.ends)
        self._held = ""
        self._step = self._begin
        self._has_thought = False  # anything but white space

    def push(self, text: str) -> tuple[str, str]:
        """Take a piece; return what is thought in it, and what is answered, as far as both can be shown now."""
        self._held += text
        thought = said = ""
        step = None
        while step != (step := self._step):
            more_thought, more_said = step()
            thought, said = thought + more_thought, said + more_said
        return thought, said

    def flush(self) -> tuple[str, str]:
        """Return what was held back, as the answer ended."""
        held, self._held = self._held, ""
        if self._step == self._think or (self._step == self._begin and self._reasoning.is_open):
            return held.rstrip() if self._has_thought else held.strip(), ""
        return "", held if self._step == self._begin else ""

    def take(self, chunk: Chunk) -> Chunk:
        """Return the chunk with its text taken apart."""
        thought, said = self.push(chunk.text)
        if chunk.finish_reason is not None:
            more_thought, more_said = self.flush()
            thought, said = thought + more_thought, said + more_said
        return dataclasses.replace(chunk, reasoning=thought, text=said)

    # Each step takes what it can of the text that is held, and may hand the rest to another one.

    def _begin(self) -> tuple[str, str]:
        format_, core = self._reasoning.format, self._held.lstrip()
        if core.startswith(format_.start):
            self._held, self._step = core.removeprefix(format_.start), self._think
        elif opening := next(filter(core.startswith, format_.openings), None):
            self._held, self._step = core.removeprefix(opening), self._say
        elif not any(mark.startswith(core) for mark in (format_.start, *format_.openings)):
            self._step = self._think if self._reasoning.is_open else self._say
        return "", ""

    def _think(self) -> tuple[str, str]:
        text = self._held if self._has_thought else self._held.lstrip()
        found = [(place + len(end), place) for end in self._ends if (place := text.find(end)) >= 0]
        if found:
            place = min(found)[1]  # of the one that is complete first
            self._held, self._step = text[place:].removeprefix(self._reasoning.format.end), self._turn
            return text[:place].rstrip(), ""
        begun = max(
            next(n for n in range(min(len(end) - 1, len(text)), -1, -1) if text.endswith(end[:n])) for end in self._ends
        )
        thought = text[: len(text) - begun].rstrip()
        self._held = text[len(thought) :]
        self._has_thought = self._has_thought or bool(thought)
        return thought, ""

    def _turn(self) -> tuple[str, str]:
        openings, core = self._reasoning.format.openings, self._held.lstrip()
        opening = next(filter(core.startswith, openings), None)
        if opening is not None or not any(mark.startswith(core) for mark in ("", *openings)):
            self._held, self._step = core.removeprefix(opening or ""), self._say
        return "", ""

    def _say(self) -> tuple[str, str]:
        said, self._held = self._held, ""
        return "", said


class Parser(Protocol):
    """What takes the text of an answer apart: a ReasoningSplitter, a ToolCallParser."""

    def take(self, chunk: Chunk) -> Chunk:
        """Return the chunk with its text taken apart."""


def take_in_turn(*parsers: Parser | None) -> Callable[[Chunk], Chunk] | None:
    """Return what hands a chunk to each of some parsers, one after the other; None where there are none."""
    first, *others = [parser for parser in parsers if parser is not None] or (None,)
    if first is None:
        return None

    def take(chunk: Chunk) -> Chunk:
        for parser in (first, *others):
            chunk = parser.take(chunk)
        return chunk

    return take
