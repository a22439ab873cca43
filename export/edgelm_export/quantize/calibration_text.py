"""The text that a calibration runs the source on: the bundled one, or a user's own texts and chats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, EdgeLMError, ExportError
from edgelm.text.chat_encoding import encode_chat
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer

_WINDOW_TOKENS = 512
_CALIBRATION_TOKENS = 8192
# The largest size of each channel shows early: more gave no better package (docs/results/quantization.md).
_SMOOTHING_TOKENS = 512
# More of the bundled text than a token has on average in any vocabulary: to encode all of it takes 6 times as long.
_TOKEN_CHARACTERS = 16
_READ_AT_ONCE = 1 << 22  # characters; Python sets aside as much memory as is asked for, however short the file is


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What quantizers with calibration run on, and where they keep what is done.

    text: a text file, or a .jsonl file with an object a line that has `text`, or `messages` as chats have them; None
    is the bundled text. max_tokens: of it; more take longer and hold more memory; None takes 8192, and 512 where the
    weights are only smoothed. cache: a folder in which a calibration that was stopped goes on; None keeps nothing.
    """

    text: Path | None = None
    max_tokens: int | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and (not isinstance(self.max_tokens, int) or self.max_tokens < 1):
            raise ConfigError(f"max_tokens is {self.max_tokens!r}; it must be a whole number of 1 or more.")

    @property
    def tokens(self) -> int:
        """How many tokens are taken at most."""
        return _CALIBRATION_TOKENS if self.max_tokens is None else self.max_tokens

    def for_smoothing(self) -> CalibrationOptions:
        """Return what is taken where the weights are only smoothed."""
        return dataclasses.replace(self, max_tokens=_SMOOTHING_TOKENS) if self.max_tokens is None else self

    def describe(self, sequences: list[list[int]]) -> str:
        """Say in a few words what `sequences` are, which `calibration_sequences` made of it."""
        count = min(self.tokens, sum(map(len, sequences)))  # leading tokens of a sequence are not of the text
        return f"{count} tokens of {'the bundled text' if self.text is None else self.text.name}"


class CalibrationText:
    """The text of one export as token ids, which the tokenizer of a folder makes of it: read once, whoever asks."""

    def __init__(self, options: CalibrationOptions, folder: Path, config: ModelConfig) -> None:
        self.options = options
        self._folder, self._config = folder, config

    @cached_property
    def sequences(self) -> list[list[int]]:
        """What a calibration runs the source on."""
        return self._read(self.options)

    @cached_property
    def smoothing_sequences(self) -> list[list[int]]:
        """What it is run on where the weights are only smoothed."""
        return self._read(self.options.for_smoothing())

    def _read(self, options: CalibrationOptions) -> list[list[int]]:
        tokenizer, template = Tokenizer.load(self._folder), ChatTemplate.load(self._folder)
        return calibration_sequences(options, tokenizer, template, self._config)


def bundled_text() -> str:
    """Return 45 KB of prose, chats, code and tables, none of which is in the text that packages are checked on.

    Ours, but for prose from the Jargon File 4.4.7, which is in the public domain.
    """
    return resources.files("edgelm_export").joinpath("data", "calibration.txt").read_text(encoding="utf-8")


def calibration_sequences(
    options: CalibrationOptions, tokenizer: Tokenizer, template: ChatTemplate | None, config: ModelConfig
) -> list[list[int]]:
    """Return the text as sequences of token ids, each of at most 512.

    Raises:
        ExportError: the file cannot be read, is no text or JSON lines, or holds nothing.
    """
    documents: Iterable[list[int]]
    if options.text is None:
        documents = [tokenizer.encode(bundled_text()[: options.tokens * _TOKEN_CHARACTERS])]
    else:
        documents = _documents(options.text, tokenizer, template, options.tokens)
    leading = list(tokenizer.leading_ids)
    length = min(_WINDOW_TOKENS, config.max_position_embeddings) - len(leading)
    sequences: list[list[int]] = []
    left = options.tokens
    for ids in documents:
        known = [id_ for id_ in ids if id_ < config.vocab_size][:left]
        sequences += [leading + known[start : start + length] for start in range(0, len(known), length)]
        left -= len(known)
        if not left:  # a text may be far longer than what is taken of it
            break
    if not sequences:
        raise ExportError(f"{options.text} holds no text to calibrate on.")
    return sequences


def _documents(path: Path, tokenizer: Tokenizer, template: ChatTemplate | None, tokens: int) -> Iterator[list[int]]:
    """Yield the documents of a file as they are read: of a text its beginning, which has `tokens` if all has them."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix.lower() not in (".jsonl", ".json"):
                yield _beginning(file, tokenizer, tokens)
                return
            # Not splitlines: JSON may have the other line separators of Unicode inside a text as they are.
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _encoded_line(line.removesuffix("\n"), f"{path}, line {number}", tokenizer, template)
    except (OSError, UnicodeDecodeError) as error:
        instead = "" if isinstance(error, OSError) else " Give a text in UTF-8, or texts and chats in JSON lines."
        raise ExportError(f"{path} cannot be read as a text to calibrate on: {error}.{instead}") from error


def _beginning(file: TextIO, tokenizer: Tokenizer, tokens: int) -> list[int]:
    text = file.read(min(tokens * _TOKEN_CHARACTERS, _READ_AT_ONCE))
    ids = tokenizer.encode(text)
    while len(ids) <= tokens and (more := file.read(len(text))):
        text += more
        ids = tokenizer.encode(text)
    return ids


def _encoded_line(line: str, where: str, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    try:
        return _encode(json.loads(line), tokenizer, template)
    except json.JSONDecodeError as error:
        broken = f"no JSON ({error.msg} at character {error.colno})"
        raise ExportError(f"{where}: {broken}; each line is one object.") from error
    except (ValueError, RecursionError, EdgeLMError) as error:
        raise ExportError(f"{where}: {error}") from error


def _encode(row: Any, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return tokenizer.encode(row["text"])
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError("a line is an object with a `text`, or with `messages`.")
    if template is None:
        raise ValueError("it holds a chat, and the model has no chat template.")
    return encode_chat(template, tokenizer, row["messages"], add_generation_prompt=False)
