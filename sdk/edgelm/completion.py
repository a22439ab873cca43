"""What a generation gives back: chunks while it runs, a completion at its end. Plain data, no text logic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

FinishReason = Literal["stop", "length", "cancelled"]


class Message(TypedDict):
    """One turn of a conversation, in OpenAI's form."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token, its natural-log probability, and the most likely alternatives at its place."""

    id: int
    text: str
    logprob: float
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How many tokens went in and came out; `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds spent on the prompt and on the answer, and the rates that follow (0.0 where nothing was computed)."""

    prefill_seconds: float
    decode_seconds: float
    prefill_tokens: int
    decode_tokens: int

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

    The last chunk, and it alone, has `finish_reason`, `usage` and `timings`; its text may be empty.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The log-probability of each token of a text after the first (nothing stands before the first), and their mean."""

    tokens: tuple[TokenLogprob, ...]
    perplexity: float
