"""POST /v1/completions: plain continuation, with what evaluation needs: token ids, batches, echo, log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response

from edgelm.completion import Chunk, Completion, TokenLogprob, Usage
from edgelm.decoding.answer import goes_on
from edgelm.server.answers import MAX_TEXTS, Answers, Job
from edgelm.server.api_error import ApiError
from edgelm.server.delivery import deliver
from edgelm.server.endpoint import Call
from edgelm.server.forms import FORMS, constraint_of
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.logprobs import TokenPlaces, finite
from edgelm.server.openai_chat import STREAM_OPTIONS, Frame
from edgelm.server.sampling_fields import HARMLESS, MAX_CHOICES, REFUSED, SAMPLING, generation_config, with_seed
from edgelm.server.schema import BOOLEAN, TEXT, Schema, listing, record, whole
from edgelm.server.sse import DONE, KEEPALIVE, event
from edgelm.text.fill_in_middle import fill_in_ids
from edgelm.text.stream_decoder import StreamDecoder
from edgelm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

Piece = TypeVar("Piece", Chunk, Completion)

MAX_PROMPTS = 128
MAX_LOGPROBS = 20
_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_IDS: Schema = listing(whole(0), fewest=1, most=1 << 20)


def texts_or_ids(most: int) -> Schema:
    """Return the schema of what `token_ids` reads: a text, its ids, or up to `most` of either."""
    texts, id_lists = (listing(one, fewest=1, most=most) for one in (TEXT, _IDS))
    return {"anyOf": [TEXT, texts, _IDS, id_lists]}


BODY = record(
    {
        "model": TEXT,
        "prompt": texts_or_ids(MAX_PROMPTS),
        "suffix": TEXT,
        **SAMPLING,
        "max_tokens": whole(-1),
        "n": whole(1, MAX_CHOICES),
        "best_of": whole(1, MAX_CHOICES),
        "echo": BOOLEAN,
        "logprobs": whole(0, MAX_LOGPROBS),
        **FORMS,
        "stream": BOOLEAN,
        "stream_options": STREAM_OPTIONS,
    },
    required=("prompt",),
    ignored=HARMLESS,
    refused={name: why for name, why in REFUSED.items() if name != "best_of"}
    | {"reasoning_effort": "/v1/chat/completions has it."},
)


async def create_completion(call: Call) -> Response:
    """Continue one or several texts."""
    body = call.body
    streaming = bool(body.get("stream"))
    kept = body.get("n", 1)
    copies = body.get("best_of", kept)
    if copies < kept:
        raise ApiError(400, f"best_of is {copies}, and n is {kept}: n of best_of answers come back.", param="best_of")
    if streaming and copies > kept:
        raise ApiError(
            400, f"best_of is {copies}, and n is {kept}: what is chosen at the end is not streamed.", param="stream"
        )

    echoes: list[Echo] = []

    def prepare(served: LoadedModel) -> tuple[list[Job], CompletionWriter]:
        prompts = _prompts(served.model.tokenizer, body)
        config = generation_config(
            served.model,
            body,
            max_tokens=body.get("max_tokens", _DEFAULT_MAX_TOKENS) or 1,
            logprobs=body.get("logprobs", 0 if copies > kept else None),
            constraint=constraint_of(body),
        )
        if body.get("echo"):
            echoes.extend(_echoes(served.model.tokenizer, prompts, body.get("logprobs")))
        writer = CompletionWriter(
            frame=Frame(model=served.name, kind="text_completion", prefix="cmpl"),
            tokenizer=served.model.tokenizer,
            echoes=echoes if body.get("echo") else None,
            going_on=[goes_on(served.model.tokenizer, ids, config) for ids in prompts],
            copies=copies,
            kept=kept,
            logprobs=body.get("logprobs"),
            without_answer=body.get("max_tokens") == 0,
            with_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )
        jobs = [Job(prompt_ids=ids, config=with_seed(config, index)) for ids in prompts for index in range(copies)]
        return jobs, writer

    def scoring(model: LanguageModel) -> Iterator[bool]:
        for echo in echoes:
            if len(echo.ids) > 1:
                call.check_reading("prompt")
                echo.logprobs.extend(model.score(echo.ids, alternatives=body["logprobs"]).tokens)
                yield True

    scores = bool(body.get("echo")) and body.get("logprobs") is not None
    return await deliver(call, prepare, streaming=streaming, scoring=scoring if scores else None)


def _prompts(tokenizer: Tokenizer, body: Mapping[str, Any]) -> list[list[int]]:
    """Return the token ids of each prompt; with a suffix, those that ask for what stands between the two."""
    given, suffix = body["prompt"], body.get("suffix")
    if not suffix:
        return token_ids(tokenizer, given, "prompt")
    texts = given if isinstance(given, list) else [given]
    if body.get("echo") or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, "suffix goes with prompts that are texts, and without echo.", param="suffix")
    return [fill_in_ids(tokenizer, text, suffix) for text in texts]


def token_ids(tokenizer: Tokenizer, given: Any, param: str) -> list[list[int]]:
    """Return the token ids of each prompt: a text, its ids, or a list of either.

    Raises:
        ApiError: 400, one has no tokens; `param` is the field that holds them.
    """
    several = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    found = [tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt for prompt in several]
    for i, ids in enumerate(found):
        if not ids:
            place = f"{param}[{i}]" if several is given else param
            raise ApiError(400, f"{place} has no tokens; write at least one character.", param=place)
    return found


@dataclass(frozen=True, kw_only=True)
class Echo:
    """A prompt as the answer repeats it; the first token has no log-probability, as nothing stands before it.

    logprobs: empty until the prompt is scored.
    """

    text: str
    ids: Sequence[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)


def _echoes(tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], wanted: int | None) -> list[Echo]:
    if wanted is not None and (texts := sum(map(len, prompts)) * (1 + wanted)) > MAX_TEXTS:
        raise ApiError(
            400,
            f"The prompts have {texts} log-probabilities; at most {MAX_TEXTS} are kept. Send fewer prompts at once.",
            param="prompt",
        )
    return [Echo(text=tokenizer.decode(ids, skip_control_tokens=False), ids=ids) for ids in prompts]


@dataclass(frozen=True, kw_only=True)
class CompletionWriter:
    """Write completions, and their chunks.

    echoes: what stands before the answers, by prompt, None for nothing. going_on: whether the answers to each prompt
    keep a space that they begin with. copies: answers to each prompt, of which the `kept` likeliest by token are
    written. without_answer: only the echo is wanted; the one token that the engine makes at least is left out.
    """

    frame: Frame
    tokenizer: Tokenizer
    echoes: Sequence[Echo] | None
    going_on: Sequence[bool]
    copies: int
    kept: int
    logprobs: int | None
    without_answer: bool
    with_usage: bool
    media_type = "text/event-stream"

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return a completion."""
        kept: list[Completion] = []
        for start in range(0, len(completions), self.copies):
            answers = completions[start : start + self.copies]
            if self.kept < self.copies:
                answers = sorted(answers, key=lambda answer: answer.mean_logprob, reverse=True)[: self.kept]
            kept += answers
        choices = [self._choice(index, answer) for index, answer in enumerate(kept)]
        return self.frame.around(choices, usage=self._usage([answer.usage for answer in completions]))

    def _choice(self, index: int, answer: Completion) -> dict[str, Any]:
        prompt = index // self.kept
        echo = self._echo(prompt)
        answer = self._written(answer)
        return {
            "index": index,
            "text": answer.text if echo is None else echo.text + answer.text,
            "logprobs": None if self.logprobs is None else self._logprobs(echo, answer.logprobs, self._places(prompt)),
            "finish_reason": answer.finish_reason,
        }

    def _written(self, piece: Piece) -> Piece:
        if not self.without_answer:
            return piece
        return replace(piece, text="", logprobs=(), finish_reason=piece.finish_reason and "length")

    async def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """Yield the chunks, the usage where it was asked for."""
        places = [self._places(i // self.copies) for i in range(len(answers.jobs))]
        for index in range(len(answers.jobs)):
            if (echo := self._echo(index // self.copies)) is not None:
                # In a thread, as `deliver` writes an answer.
                yield await answers.threads.run(answers.caller, self._echoed, index, echo, places[index])
        usages: list[Usage] = []
        async for item in answers.chunks():
            if item is None:
                yield KEEPALIVE
                continue
            index, chunk = item[0], self._written(item[1])
            if chunk.text or chunk.logprobs or chunk.finish_reason:
                logprobs = None
                if self.logprobs is not None and chunk.logprobs:
                    logprobs = self._logprobs(None, chunk.logprobs, places[index])
                yield self._chunk(index, chunk.text, logprobs, chunk.finish_reason)
            if chunk.usage is not None:
                usages.append(chunk.usage)
        if self.with_usage:
            yield event(self.frame.around([], usage=self._usage(usages)))
        yield DONE

    def error(self, error: ApiError) -> bytes:
        """Write an error as the stream's last event."""
        return event(error.openai)

    def _chunk(self, index: int, text: str, logprobs: object, reason: str | None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return event(self.frame.around([choice], **({"usage": None} if self.with_usage else {})))

    def _echoed(self, index: int, echo: Echo, places: TokenPlaces) -> bytes:
        logprobs = None if self.logprobs is None else self._logprobs(echo, (), places)
        return self._chunk(index, echo.text, logprobs, None)

    def _echo(self, prompt: int) -> Echo | None:
        return None if self.echoes is None else self.echoes[prompt]

    def _places(self, prompt: int) -> TokenPlaces:
        """Return what tells the places of the tokens of an answer to a prompt; it begins behind its echo."""
        decoder = StreamDecoder(self.tokenizer, keep_leading_space=self.going_on[prompt])
        echo = self._echo(prompt)
        return TokenPlaces(decoder=decoder, end=0 if echo is None else len(echo.text))

    def _logprobs(self, echo: Echo | None, tokens: Sequence[TokenLogprob], places: TokenPlaces) -> dict[str, Any]:
        rows: list[tuple[str, float | None, dict[str, float] | None]] = []
        offsets = [places.take(token.id) for token in tokens]
        if echo is not None:
            echoed = TokenPlaces(decoder=StreamDecoder(self.tokenizer, visible=self.tokenizer.control_tokens))
            offsets = [*map(echoed.take, echo.ids), *offsets]
            rows.append((self._name(echo.ids[0]), None, None))
            tokens = (*echo.logprobs, *tokens)
        for token in tokens:
            # Of two tokens with one name, the likelier one counts; the token itself is always among them.
            top: dict[str, float] = {}
            for other in (*token.alternatives, token):
                top.setdefault(self._name(other.id), finite(other.logprob))
            rows.append((self._name(token.id), finite(token.logprob), top))
        return {
            "tokens": [name for name, _, _ in rows],
            "token_logprobs": [value for _, value, _ in rows],
            "top_logprobs": [top for _, _, top in rows] if self.logprobs else None,
            "text_offset": offsets,
        }

    def _name(self, id_: int) -> str:
        """Return a token as text; one that is no whole characters has its bytes spelled out, as OpenAI does it."""
        data = self.tokenizer.token_bytes(id_)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """Add up all; the copies of a prompt count once."""
        prompt = sum(usage.prompt_tokens for usage in usages) // self.copies
        completion = 0 if self.without_answer else sum(usage.completion_tokens for usage in usages)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
