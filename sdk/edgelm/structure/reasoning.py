"""Reasoning: what a model thinks before it answers, apart from the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgelm.completion import Chunk
from edgelm.generation_config import GenerationConfig
from edgelm.structure.channel_splitter import ChannelSplitter
from edgelm.structure.reasoning_splitter import ReasoningSplitter
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer

# The longest mark that a prompt ends with has 34 characters in no more tokens; line breaks may stand behind it.
_TAIL = 48


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """Describe how a family of models marks what it thinks.

    signs: what its chat templates have, at least one of them. control_tokens: those that the marks are made of, and all
    that the splitter reads. splitter: what takes an answer apart.
    """

    start: str
    end: str
    signs: tuple[str, ...]
    control_tokens: tuple[str, ...]
    splitter: type[ReasoningSplitter] = ReasoningSplitter


FORMATS = (
    # Qwen3, QwQ, DeepSeek-R1 and what was distilled from it, SmolLM3, Phi-4-reasoning; OLMo 3's prompt ends with the
    # first mark, and its template has no other.
    ReasoningFormat(
        start="<think>", end="</think>", signs=("<think>", "</think>"), control_tokens=("<think>", "</think>"),
    ),
    # GPT-OSS (https://github.com/openai/harmony); a prompt ends with <|start|>assistant.
    ReasoningFormat(
        start="<|channel|>analysis<|message|>", end="<|end|>", signs=("<|channel|>analysis<|message|>",),
        control_tokens=("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>"),
        splitter=ChannelSplitter,
    ),
    # Seed-OSS.
    ReasoningFormat(
        start="<seed:think>", end="</seed:think>", signs=("<seed:think>",),
        control_tokens=("<seed:think>", "</seed:think>"),
    ),
    # Gemma 4.
    ReasoningFormat(
        start="<|channel>thought", end="<channel|>", signs=("<|channel>thought",),
        control_tokens=("<|channel>", "<channel|>"),
    ),
    # Magistral since 2507 (before, `<think>`), Ministral 3 Reasoning.
    ReasoningFormat(start="[THINK]", end="[/THINK]", signs=("[THINK]",), control_tokens=("[THINK]", "[/THINK]")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """Say how the answer to one prompt tells what it thinks.

    is_open: the prompt ends inside of it; has_begun: and says some of it. ends: texts that end it though they belong
    to the answer.
    """

    format: ReasoningFormat
    is_open: bool
    has_begun: bool = False
    ends: Sequence[str] = ()

    def splitter(self) -> ReasoningSplitter:
        """Return what takes one answer apart."""
        return self.format.splitter(
            start=self.format.start,
            end=self.format.end,
            is_open=self.is_open,
            has_begun=self.has_begun,
            ends=self.ends,
        )


def reasoning_format(template: ChatTemplate | None) -> ReasoningFormat | None:
    """Return how the models of a chat template mark what they think; None where they do not think."""
    if template is None:
        return None
    return next((row for row in FORMATS if any(sign in template.source for sign in row.signs)), None)


def reasoning_settings(
    config: GenerationConfig,
    template: ChatTemplate | None,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    begun: str,
) -> tuple[GenerationConfig, Reasoning | None]:
    """Return the settings of an answer to a conversation, its marks as text, and how it thinks; None where it does not.

    A config that names the marks as visible wants them in the text: nothing is taken out of that. begun: the words of
    the assistant's, at the prompt's end, that the answer continues.
    """
    format_ = reasoning_format(template)
    if format_ is None or not set(format_.control_tokens).isdisjoint(config.visible_control_tokens):
        return config, None
    constraint = config.constraint
    # A text that a constraint holds for from the first token on is an answer, whatever the prompt ends with. So is what
    # begins with a text that turns a constraint on, even where the model has not ended its thinking.
    is_formed = constraint is not None and not constraint.after
    ends = () if constraint is None or constraint.at_start else constraint.after
    tail = begun or tokenizer.decode(prompt_ids[-_TAIL:], skip_control_tokens=False)
    _, start, thought = tail.rpartition(format_.start)
    is_open = bool(start) and not is_formed and (format_.end not in thought if begun else not thought.strip())
    visible = (*config.visible_control_tokens, *format_.control_tokens)
    return config.replace(visible_control_tokens=visible), Reasoning(
        format=format_, is_open=is_open, has_begun=is_open and bool(thought.strip()), ends=ends
    )


class Parser(Protocol):
    """What takes the text of an answer apart: a ReasoningSplitter, a ToolCallParser."""

    def take(self, chunk: Chunk) -> Chunk:
        """Return the chunk with its text taken apart."""


def take_in_turn(*parsers: Parser | None) -> Callable[[Chunk], Chunk] | None:
    """Return what hands a chunk to each of some parsers, one after the other; None where there are none."""
    there = [parser for parser in parsers if parser is not None]

    def take(chunk: Chunk) -> Chunk:
        for parser in there:
            chunk = parser.take(chunk)
        return chunk

    return take if there else None
