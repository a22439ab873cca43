"""Engine: many requests on one model, computed together."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.arguments import as_list, is_number, is_whole, of_class, or_default, reading
from edgelm.batching.generation import Generation
from edgelm.batching.request import Request, most_rows
from edgelm.batching.running_batch import RunningBatch
from edgelm.batching.worker import Worker
from edgelm.completion import Chunk, Completion, Message
from edgelm.config import ModelConfig
from edgelm.decoding.answer import Answer, join
from edgelm.decoding.context_shift import fitted
from edgelm.errors import ConfigError, ContextLengthError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.memory.available_memory import memory_limit, memory_within_limits
from edgelm.memory.cache_layout import state_tokens
from edgelm.memory.kv_batch import longest_row
from edgelm.runtime.thread_limit import thread_errors_told
from edgelm.structure.tools import Tool, ToolChoice


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How much an engine takes on.

    max_batch: requests computed at once. max_queue: requests that may wait besides. max_kv_bytes: of the keys and
    values of the requests at work; None takes a quarter of the machine's memory, or of the limit of a container or of
    `ulimit -v`, but no more than half of what that leaves when the engine is made. Where they do not fit, the least and
    youngest request waits and is computed again later. What `LanguageModel.prefixes` keeps has a budget of its own.
    max_unread: texts of an answer (its chunks, log-probabilities and their alternatives) that its reader may leave
    unread, or an eighth of all so far where that is more. Beyond, it gives its place to others, and goes on when all is
    read; None lets it go on to its end.

    Raises:
        ConfigError: a field is outside its range.
    """

    max_batch: int = 8
    max_queue: int = 64
    max_kv_bytes: int | None = None
    max_unread: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("max_queue", 0), ("max_kv_bytes", 1), ("max_unread", 1)):
            value = getattr(self, name)
            if value is None and name in ("max_kv_bytes", "max_unread"):
                continue
            if not is_whole(value) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of {least} or more.")


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine does now, and what it has done so far.

    active, queued: requests now. kv_bytes: of the keys and values of those at work; prefix_bytes: of the beginnings
    that are kept. finished: requests so far. Tokens of prompts are those that were computed; `cached_tokens` were kept
    from before. `preempted` counts the times that a request lost its memory to others.
    """

    active: int
    queued: int
    kv_bytes: int
    prefix_bytes: int
    finished: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preempted: int


class Engine:
    """Answer many requests on one model, from any threads and event loops.

    One worker thread computes: prompts a piece at a time, in turn, and between the pieces the next token of every
    answer in one step. Requests of a higher priority start first; among equals, the first come. Each answer has the
    tokens that it has alone (docs/guides/engine.md says where that ends). An engine that nobody has any more, nor an
    answer of it, ends by itself.
    """

    def __init__(self, model: LanguageModel, options: EngineOptions | None = None) -> None:
        of_class("model", model, LanguageModel, "which edgelm.load returns")
        if model.config.encoder is not None:
            raise ConfigError(
                f"{model.name} has an encoder, whose answers an engine does not compute together. Call "
                "LanguageModel.generate or stream, one after the other."
            )
        model.session.check_process()
        self._model = model
        self._options = or_default("options", options, EngineOptions())
        self._token_bytes = model.config.kv_bytes_per_token
        self._max_tokens = (self._options.max_kv_bytes or _room_of_system()) // self._token_bytes
        self._prefixes = model.prefixes.of_model(model.config, model.fingerprint)
        self._batch = RunningBatch(model.session, self._prefixes, self._max_tokens, model.row_costs)
        self._worker = Worker(f"edgelm-engine-{model.name}", self._batch, self._options.max_batch)
        # When nobody has the engine any more; and at the program's end, when no thread may be inside ONNX Runtime.
        weakref.finalize(self, self._worker.close)
        with thread_errors_told():
            self._worker.thread.start()  # last: an engine whose making was interrupted is freed, and ends its thread

    def __repr__(self) -> str:
        stats = self.stats
        return f"<Engine of {self._model.name!r}: {stats.active} requests at work, {stats.queued} waiting>"

    @property
    def stats(self) -> EngineStats:
        """What the engine does now, and what it has done so far."""
        batch, counts = self._batch, self._worker.counts()
        return EngineStats(
            active=counts.unfinished - counts.queued,  # the batch takes a request out before its reader has the end
            queued=counts.queued,
            kv_bytes=batch.tokens * self._token_bytes,
            prefix_bytes=self._prefixes.bytes,
            finished=counts.submitted - counts.unfinished,
            prompt_tokens=batch.prompt_tokens,
            cached_tokens=batch.cached_tokens,
            generated_tokens=batch.generated_tokens,
            preempted=batch.preempted,
        )

    def submit(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Generation:
        """Queue a prompt, and return its answer to come.

        priority: higher goes first. deadline: seconds from now, after which the answer ends as if cancelled.

        Raises:
            QueueFullError: as many requests wait as the options allow.
            ContextLengthError: the prompt has no tokens, or does not fit the model's context or, with `max_new_tokens`,
                the engine's memory.
            TokenizerError: a token id is none of the model's.
            ConfigError: `priority` is no whole number, or `deadline` none of seconds.
            EdgeLMError: the engine is closed.
        """
        return self._submit(prompt, config, priority, deadline)

    def submit_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice = "auto",
        template_variables: Mapping[str, object] | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Generation:
        """Queue a conversation, and return its answer to come; the rest is as in LanguageModel.stream_chat.

        Raises:
            ChatTemplateError: the model has no chat template, or it refuses the conversation.
            ConfigError: as from `submit` and `stream_chat`.
            QueueFullError, ContextLengthError, EdgeLMError: as from `submit`.
        """
        prompt_ids, settings, take = self._model.chat_request(messages, config, tools, tool_choice, template_variables)
        return self._submit(prompt_ids, settings, priority, deadline, take)

    def _submit(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None,
        priority: int,
        deadline: float | None,
        take: Callable[[Chunk], Chunk] | None = None,
    ) -> Generation:
        self._worker.check_process()
        if not is_whole(priority):
            raise ConfigError(f"priority is {priority!r}; it must be a whole number.")
        if deadline is not None and (not is_number(deadline) or not deadline <= math.inf):
            raise ConfigError(f"deadline is {deadline!r}; it must be a number of seconds.")
        return self._queue(self._model.answer(prompt, config), priority, deadline, take)

    def _queue(
        self,
        answer: Answer,
        priority: int = 0,
        deadline: float | None = None,
        take: Callable[[Chunk], Chunk] | None = None,
    ) -> Generation:
        self._fit(answer)
        self._check_memory(len(answer.prompt_ids), answer.config)
        seconds = math.inf if deadline is None else max(0.0, min(deadline, threading.TIMEOUT_MAX))
        request = Request(
            answer=answer,
            generation=Generation(
                self._wake, self._worker.count_end, take, self._options.max_unread, self._worker.thread
            ),
            priority=priority,
            expires=time.monotonic() + seconds,
        )
        request.use_adapter(self._model.session)
        try:
            self._worker.take(request, self._options.max_queue)
        except KeyboardInterrupt:  # it may wait already, unknown to a worker that sleeps, and nobody will read it
            request.generation.cancel()
            raise
        return request.generation

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, and wait until the worker has ended: after the last answer, or after this step.

        drain: finish what was submitted; otherwise it ends with finish_reason "cancelled". A request's own processor or
        sampler may call this too; it does not wait for the step that it is part of.
        """
        self._worker.close(drain=drain)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fit(self, answer: Answer) -> None:
        """Shift a text where its row is full, which may be before the context is (LongRoPE), and bound its answer."""
        longest = longest_row(self._model.config)
        if answer.config.max_new_tokens is None:
            answer.most = longest
        if answer.keep is not None and len(answer.prompt_ids) > longest:
            answer.prompt_ids = fitted(answer.prompt_ids, answer.keep, longest)
        elif answer.keep is not None and answer.keep > longest // 2:
            answer.keep = None  # too much to be kept: the answer ends with its row

    def _check_memory(self, prompt_tokens: int, config: GenerationConfig) -> None:
        longest = longest_row(self._model.config)
        if prompt_tokens > longest:  # LongRoPE: a longer text turns otherwise from its first token on
            raise ContextLengthError(
                f"The prompt has {prompt_tokens} tokens; an engine computes up to {longest} of this model. "
                "LanguageModel.stream takes longer ones."
            )
        rows = most_rows(config)
        tokens = min(prompt_tokens + (config.max_new_tokens or (1 if rows == 1 else longest)), longest) * rows
        wanted = tokens + state_tokens(self._model.config) * rows
        if wanted > self._max_tokens:
            beams = "" if rows == 1 else f" in the {rows} rows of {config.num_beams} beams"
            raise ContextLengthError(
                f"{tokens} tokens of prompt and answer{beams} take {wanted * self._token_bytes} bytes of keys and "
                f"values; the engine has {self._max_tokens * self._token_bytes} (max_kv_bytes). Shorten the prompt, or "
                "lower max_new_tokens."
            )

    def _wake(self) -> None:
        """Wake the worker. An answer refers to this method, and so keeps the engine that is computing it."""
        self._worker.wake()


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[str | Sequence[int]],
    config: GenerationConfig | Sequence[GenerationConfig] | None,
    max_batch: int,
) -> list[Completion]:
    """Answer several prompts together, as LanguageModel.generate_batch does."""
    prompts = as_list(prompts, "generate_batch takes a list of prompts")
    configs = list(config) if isinstance(config, Sequence) else [config] * len(prompts)
    if len(configs) != len(prompts):
        raise ConfigError(f"There are {len(configs)} configs for {len(prompts)} prompts; give one, or one for each.")
    asked = list(zip(prompts, configs, strict=True))
    # Refuses a bad one before the others are begun.
    answers = []
    for i, (prompt, own) in enumerate(asked):
        with reading(f"prompts[{i}]"):
            answers.append(model.answer(prompt, own))
    options = EngineOptions(max_batch=max_batch, max_queue=len(prompts))
    together = [i for i, answer in enumerate(answers) if _fits_a_row(answer, model.config)]
    done: dict[int, Completion] = {}
    if together:
        with Engine(model, options) as engine:
            generations = {i: engine._queue(answers[i]) for i in together}
            done = {i: join(generation) for i, generation in generations.items()}
    return [done[i] if i in done else model.generate(*asked[i]) for i in range(len(asked))]


def _fits_a_row(answer: Answer, config: ModelConfig) -> bool:
    """Tell whether an engine gives the whole of an answer: not where it may outgrow its row (LongRoPE)."""
    longest, context = longest_row(config), config.max_position_embeddings
    most = len(answer.prompt_ids) + (answer.config.max_new_tokens or context)
    return config.encoder is None and (longest == context or most <= longest)


def _room_of_system() -> int:
    memory = 8 << 30  # where the system does not say
    if sys.platform != "win32":
        with contextlib.suppress(OSError, ValueError):
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, left = memory_limit(), memory_within_limits()
    if limit is None or left is None:
        return memory // 4
    # The rest is what a step computes with, and prefixes: a container that takes more than its limit is killed.
    return min(memory // 4, limit // 4, left // 2)
