"""Perplexity: how well a model predicts held-out texts, measured in overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, DataError, TokenizerError
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.evaluation.held_out import HeldOut
from edgelm_training.texts.corpus import Progress

# Longer contexts predict a little better and cost more; 1024 is what most published perplexities have.
DEFAULT_WINDOW = 1024


class Scorer(Protocol):
    """A model that tells how surprised it is. kind: "package" or "checkpoint"; folder: where it is."""

    kind: str
    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer

    def surprises(self, ids: Sequence[int], first: int) -> NDArray[np.float64]:
        """Return -log p (natural) of each of ids[first:], given all ids before it; first is 1 or more."""


class Window(NamedTuple):
    """The model reads tokens start to stop - 1, and first to stop - 1 of them are scored."""

    start: int
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How a text that is longer than a window is scored.

    Windows of `window` tokens end `stride` tokens after each other, the last one with the text, and each scores what
    the one before did not: so each token is scored once, and all but the first window's tokens have at least
    window - stride others before them. None: the smaller of 1024 and the context, and half a window. max_tokens: stop
    after so many scored tokens.

    Raises:
        ConfigError: window is below 2, or stride or max_tokens below 1.
    """

    window: int | None = None
    stride: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("stride", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more.")

    def sizes(self, context: int, leading: int = 0) -> tuple[int, int]:
        """Return window and stride for a model whose texts begin with `leading` tokens of the tokenizer's own.

        Raises:
            ConfigError: the window is longer than the context, or the stride leaves a token without any before it.
        """
        window = self.window if self.window is not None else min(DEFAULT_WINDOW, context)
        if window > context:
            raise ConfigError(f"window is {window}; the model's context holds {context} tokens.")
        stride = self.stride if self.stride is not None else max(1, window // 2)
        most = window - max(1, leading)
        if stride > most:
            raise ConfigError(f"stride is {stride}; with a window of {window} tokens it must be {most} or less.")
        return window, stride


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What was measured: nats is the sum of -log p over `tokens` scored tokens, which spell `bytes` bytes."""

    nats: float
    tokens: int
    bytes: int
    documents: int
    window: int
    stride: int

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise a token; comparable between models of one tokenizer."""
        with np.errstate(over="ignore"):  # where math.exp raises, this is inf
            return float(np.exp(self.nats / self.tokens))

    @property
    def bits_per_byte(self) -> float:
        """Bits that a byte of the text takes; comparable between all models."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


def windows(length: int, given: int, *, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows that score each of `length` tokens once but for the first `given`."""
    stop = min(window, length)
    yield Window(0, given, stop)
    while stop < length:
        first, stop = stop, min(stop + stride, length)
        yield Window(stop - window, first, stop)


def measure_perplexity(
    scorer: Scorer,
    documents: Iterable[HeldOut],
    config: WindowConfig | None = None,
    *,
    progress: Progress = lambda *_: None,
) -> Perplexity:
    """Score every document by itself.

    What a tokenizer puts before every text stands before every window.

    Raises:
        ConfigError: the windows do not fit the model.
        DataError: no document has a token to score.
        TokenizerError: a token is none of the model's.
    """
    config = config or WindowConfig()
    leading = list(scorer.tokenizer.leading_ids)
    window, stride = config.sizes(scorer.config.max_position_embeddings, len(leading))
    chosen = _chosen(documents, scorer, config.max_tokens)
    total = sum(len(document.ids) - document.given for document in chosen)
    if not total:
        raise DataError("The data has no text to score: every document needs two tokens or more.")
    done, nats, size = 0, 0.0, 0
    for document in chosen:
        size -= _begins_with_a_space_put_there(document, scorer.tokenizer)
        for part in windows(len(document.ids), document.given, window=window, stride=stride):
            ids, first = document.ids[part.start : part.stop], part.first - part.start
            if document.ids[: len(leading)] == leading:
                ids[: len(leading)] = leading
            nats += float(scorer.surprises(ids, first).sum())
            size += sum(len(_bytes_of(scorer.tokenizer, id_)) for id_ in ids[first:])
            done += part.stop - part.first
            progress("score", done, total)
    return Perplexity(nats=nats, tokens=total, bytes=size, documents=len(chosen), window=window, stride=stride)


def _chosen(documents: Iterable[HeldOut], scorer: Scorer, max_tokens: int | None) -> list[HeldOut]:
    """Return the documents with something to score, up to so many tokens."""
    chosen: list[HeldOut] = []
    left = math.inf if max_tokens is None else max_tokens
    for document in documents:
        count = int(min(len(document.ids) - document.given, left))
        if count <= 0:
            if not left:
                break
            continue
        if (largest := max(document.ids)) >= scorer.config.vocab_size:
            raise TokenizerError(
                f"The text has token id {largest}; the model's are 0 to {scorer.config.vocab_size - 1}."
            )
        chosen.append(HeldOut(ids=document.ids[: document.given + count], given=document.given))
        left -= count
    return chosen


def _begins_with_a_space_put_there(document: HeldOut, tokenizer: Tokenizer) -> bool:
    """Tell whether what is scored begins with the space that SentencePiece's tokenizers put before every text."""
    begins = tokenizer.control_token_ids.issuperset(document.ids[: document.given])
    return tokenizer.strips_leading_space and begins and _bytes_of(tokenizer, document.ids[document.given])[:1] == b" "


def _bytes_of(tokenizer: Tokenizer, id_: int) -> bytes:
    return b"" if id_ in tokenizer.control_token_ids else tokenizer.token_bytes(id_)
