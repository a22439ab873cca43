"""Log-probabilities, as OpenAI's chats and responses and Ollama's protocol ask for them and have them in answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgelm.completion import Chunk, TokenLogprob
from edgelm.server.api_error import ApiError
from edgelm.server.schema import BOOLEAN, Schema, whole
from edgelm.structure.reasoning import Parser
from edgelm.text.stream_decoder import StreamDecoder
from edgelm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

LOGPROBS: dict[str, Schema] = {"logprobs": BOOLEAN, "top_logprobs": whole(0, 20)}


def alternatives(body: Mapping[str, Any]) -> int | None:
    """Return how many other tokens a request asks for beside each of the answer's; None: no log-probabilities at all.

    Raises:
        ApiError: 400, it asks for others without the answer's own.
    """
    top_logprobs: int = body.get("top_logprobs", 0)
    if top_logprobs and not body.get("logprobs"):
        raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    return top_logprobs if body.get("logprobs") else None


@dataclass(frozen=True, kw_only=True)
class LogprobWriter:
    """Write the tokens of an answer. An end token is nobody's text: its log-probability is left out."""

    tokenizer: Tokenizer
    end_ids: frozenset[int]

    @classmethod
    def of(cls, model: LanguageModel, body: Mapping[str, Any]) -> LogprobWriter | None:
        """Return the writer of a model's answer; None where the request asks for no log-probabilities."""
        if not body.get("logprobs"):
            return None
        return cls(tokenizer=model.tokenizer, end_ids=frozenset(model.config.eos_token_ids))

    def write(self, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        """Return an object for each token."""
        return [
            self._token(token) | {"top_logprobs": [self._token(other) for other in token.alternatives]}
            for token in tokens
            if token.id not in self.end_ids
        ]

    def _token(self, token: TokenLogprob) -> dict[str, Any]:
        return {
            "token": token.text,
            "logprob": finite(token.logprob),
            "bytes": list(self.tokenizer.token_bytes(token.id)),
        }


@dataclass(kw_only=True)
class LogprobsOfText:
    """A parser that leaves a chunk the log-probabilities of its text, and none of thoughts and calls of tools.

    before: what takes those apart. held: those of tokens of which it is not told yet what they belong to.
    """

    before: Parser | None = None
    held: tuple[TokenLogprob, ...] = ()

    def take(self, chunk: Chunk) -> Chunk:
        """Return the chunk with those of its text."""
        chunk = chunk if self.before is None else self.before.take(chunk)
        held = (*self.held, *chunk.logprobs)
        self.held = () if chunk.text or chunk.reasoning or chunk.tool_calls else held
        return replace(chunk, logprobs=held if chunk.text else ())


@dataclass(kw_only=True)
class TokenPlaces:
    """Say where tokens begin in a text, in characters; one that begins inside a character begins where that does.

    end: where the next one begins, if it does not go on with a character.
    """

    decoder: StreamDecoder
    end: int = 0

    def take(self, token_id: int) -> int:
        """Return the place of the next token."""
        place = self.end
        self.end += len(self.decoder.push(token_id))
        return place


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can write; OpenAI too has -9999 for the impossible."""
    return max(logprob, -9999.0)
