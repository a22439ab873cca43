"""DocumentTokens: what a tokenizer puts around each document of a corpus."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import TokenizerError
from edgelm.package.manifest import sha256_of
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.texts.shards import TOKENIZER_FILES


@dataclass(frozen=True, kw_only=True)
class DocumentTokens:
    """The tokens that begin and end each document, and the tokenizer they belong to.

    start, end: token ids. A tokenizer that begins its texts with a token of its own (Llama's `<|begin_of_text|>`)
    keeps it, and the end token follows the document. For all others the end token stands in front of each document and
    `end` is empty: between two documents stands one token, which ends the one and begins the other, as in GPT-2.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    vocab_size: int
    tokenizer_hash: str

    @property
    def dtype(self) -> str:
        """The smallest type that holds every token id."""
        return "<u2" if self.vocab_size <= 1 << 16 else "<u4"

    @classmethod
    def of(cls, folder: str | Path, *, end_token: str | None = None) -> DocumentTokens:
        """Read the tokenizer of a folder; end_token: another one than its eos_token.

        Raises:
            TokenizerError: it cannot be read, names no end token, or has no such token.
        """
        folder = Path(folder)
        tokenizer = Tokenizer.load(folder)
        path = folder / TOKENIZER_FILES[0]
        literal = end_token or _eos_token(folder)
        end = tokenizer.id_of(literal)
        if end is None:
            raise TokenizerError(f"{path} has no token {literal!r}; its control tokens are {_names(tokenizer)}.")
        # Some begin every text with the token that ends documents.
        start = tuple(id_ for id_ in tokenizer.leading_ids if id_ != end)
        return cls(
            start=start or (end,),
            end=(end,) if start else (),
            vocab_size=tokenizer.vocab_size,
            tokenizer_hash=sha256_of(path),
        )


def _eos_token(folder: Path) -> str:
    path = folder / "tokenizer_config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        token = values.get("eos_token")
        literal = token["content"] if isinstance(token, dict) else token
    except (OSError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise TokenizerError(
            f"Cannot read the eos_token of {path}: {error}. Name the token that ends a document: --end-token."
        ) from error
    if not isinstance(literal, str):
        raise TokenizerError(f"{path} has no eos_token. Name the token that ends a document: --end-token.")
    return literal


def _names(tokenizer: Tokenizer) -> str:
    return ", ".join(map(repr, tokenizer.control_tokens)) or "none"
