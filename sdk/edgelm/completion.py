"""What a generation gives back: chunks while it runs, a completion at its end. Plain data, no text logic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from edgelm.errors import ConfigError

FinishReason = Literal["stop", "length", "cancelled", "tool_calls"]
"""Why an answer ended; `Chunk` says what each stands for."""


class Message(TypedDict):
    """One turn of a conversation, in OpenAI's form.

    An answer that calls tools has `tool_calls` (`Completion.message` writes them); what a tool returned is a message of
    the role "tool", with the call's id as `tool_call_id` and the tool's name as `name`. `reasoning_content` is what was
    thought before a call; whether the model reads it again, its template says.
    """

    role: str
    content: str | None
    tool_calls: NotRequired[Sequence[Any]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call that the model asks for: the tool's name, and its arguments as JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call: the first one of each `index` has id and name, the others more of the arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token, its natural-log probability, and the most likely alternatives at its place."""

    id: int
    text: str
    logprob: float
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How many tokens went in and came out: counts of tokens, all of them.

    `cached_tokens` of the prompt were not computed again; `reasoning_tokens` of the answer were thought before it.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds spent on the prompt and on the answer, and the rates that follow (0.0 where nothing was computed).

    `prefill_tokens` are those of the prompt that were computed, `decode_tokens` those of the answer after the first,
    which comes with the prompt. `queued_seconds` is how long an engine let the request wait before that.
    `drafted_tokens` were guessed ahead (speculation), of which `accepted_tokens` were right.
    """

    prefill_seconds: float
    decode_seconds: float
    prefill_tokens: int
    decode_tokens: int
    queued_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed per second."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """New tokens per second, after the first one."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of the answer: whole characters, and the tokens that are new in it.

    `reasoning` is what the model thinks before it answers a conversation; it is no part of the text. The last chunk,
    and it alone, has `usage`, `timings` and `finish_reason`, why the answer ended: "stop" (at an end token of the
    model's, or before a stop text, which is `stop` then), "length" (max_new_tokens are there, or the context is full),
    "cancelled" (by somebody, or a deadline) or "tool_calls"; its text may be empty.
    """

    text: str
    token_ids: tuple[int, ...]
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer; `reasoning` is what the model thought before it, empty where it did not.

    `stop` is the stop text that ended it, None where something else did.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    stop: str | None = None

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of the tokens, by which answers to one prompt compare.

        Raises:
            ConfigError: the answer has no `logprobs`.
        """
        if not self.logprobs:
            raise ConfigError("The answer has no log-probabilities; ask for them with logprobs=0 in its config.")
        return sum(token.logprob for token in self.logprobs) / len(self.logprobs)

    @property
    def message(self) -> Message:
        """The answer as a turn of the conversation, tool calls included; what was thought stays before a call alone."""
        if not self.tool_calls:
            return Message(role="assistant", content=self.text)
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.tool_calls
        ]
        turn = Message(role="assistant", content=self.text or None, tool_calls=calls)
        return Message(**turn, reasoning_content=self.reasoning) if self.reasoning else turn


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The natural log-probability of each token of a text after the first, before which nothing stands.

    perplexity: e to the power of minus their mean.
    """

    tokens: tuple[TokenLogprob, ...]
    perplexity: float
