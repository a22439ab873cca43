"""Engine: many requests on one model, computed together."""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgelm.arguments import as_list, is_number, is_whole, of_class, or_default
from edgelm.batching.generation import Generation
from edgelm.batching.request import Request, most_rows
from edgelm.batching.running_batch import RunningBatch
from edgelm.completion import Chunk, Completion, Message
from edgelm.config import ModelConfig
from edgelm.decoding.answer import Answer, join
from edgelm.errors import ConfigError, ContextLengthError, EdgeLMError, OutOfMemoryError, QueueFullError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.memory.available_memory import memory_within_limits
from edgelm.memory.cache_layout import state_tokens
from edgelm.memory.kv_batch import longest_row
from edgelm.memory.kv_cache import bytes_per_token
from edgelm.memory.out_of_memory import out_of_memory
from edgelm.runtime.switch_interval import SHORT_SWITCH_INTERVAL
from edgelm.structure.tools import Tool, ToolChoice


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How much an engine takes on.

    max_batch: requests computed at once. max_queue: requests that may wait besides. max_kv_bytes: of the keys and
    values of the requests at work; None takes a quarter of the machine's memory, or of what a container and `ulimit -v`
    leave of it. Where they do not fit, the least and youngest request waits and is computed again later. What
    `LanguageModel.prefixes` keeps has a budget of its own. max_unread: texts of an answer (its chunks,
    log-probabilities and their alternatives) that its reader may leave unread. Beyond, it gives its place to others,
    and goes on when all is read; None lets it go on to its end.

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
    tokens that it has alone (docs/guides/engine.md says where that ends).
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
        self._process = os.getpid()
        self._token_bytes = bytes_per_token(model.config)
        self._max_tokens = (self._options.max_kv_bytes or _quarter_of_memory()) // self._token_bytes
        self._prefixes = model.prefixes
        self._batch = RunningBatch(model.session, self._prefixes, self._max_tokens)
        self._waiting: list[Request] = []
        self._unfinished = self._submitted = 0
        self._changed = threading.Condition()
        self._closed, self._draining = False, False
        self._worker = threading.Thread(target=self._work, name=f"edgelm-engine-{model.name}", daemon=True)
        self._worker.start()
        atexit.register(self.close)  # the worker must not be inside ONNX Runtime when the interpreter ends

    def __repr__(self) -> str:
        stats = self.stats
        return f"<Engine of {self._model.name!r}: {stats.active} requests at work, {stats.queued} waiting>"

    @property
    def stats(self) -> EngineStats:
        """What the engine does now, and what it has done so far."""
        batch = self._batch
        with self._changed:
            queued = len(self._waiting) + len(batch.put_back)
            return EngineStats(
                active=self._unfinished - queued,  # the batch takes a request out before its reader has the end
                queued=queued,
                kv_bytes=batch.tokens * self._token_bytes,
                prefix_bytes=self._prefixes.bytes,
                finished=self._submitted - self._unfinished,
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
        messages: Sequence[Message],
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
        if os.getpid() != self._process:
            raise EdgeLMError(
                f"This engine belongs to process {self._process}; its fork {os.getpid()} has no worker. Load the "
                "model and make the engine after the fork."
            )
        if not is_whole(priority):
            raise ConfigError(f"priority is {priority!r}; it must be a whole number.")
        if deadline is not None and (not is_number(deadline) or not deadline <= math.inf):
            raise ConfigError(f"deadline is {deadline!r}; it must be a number of seconds.")
        answer = self._model.answer(prompt, config)
        self._check_memory(len(answer.prompt_ids), answer.config)
        seconds = math.inf if deadline is None else max(0.0, min(deadline, threading.TIMEOUT_MAX))
        expires = time.monotonic() + seconds
        with self._changed:
            if self._draining:
                raise EdgeLMError("The engine is closed; make a new one.")
            if self._unfinished >= self._options.max_batch + self._options.max_queue:
                raise QueueFullError(
                    f"{self._unfinished} requests are at work or wait: the engine answers {self._options.max_batch} at "
                    f"once (max_batch) and lets {self._options.max_queue} wait (max_queue). Try again later."
                )
            self._unfinished += 1
            self._submitted += 1
            request = Request(
                answer=answer,
                generation=Generation(self._wake, self._count_end, take, self._options.max_unread, self._worker),
                priority=priority,
                number=self._submitted,
                expires=expires,
            )
            self._waiting.append(request)
            self._changed.notify()
            if len(self._batch.requests) < self._options.max_batch:
                self._batch.interrupt(len(answer.prompt_ids))
        return request.generation

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, and wait until the worker has ended: after the last answer, or after this step.

        drain: finish what was submitted; otherwise it ends with finish_reason "cancelled". A request's own processor or
        sampler may call this too; it does not wait for the step that it is part of.
        """
        if os.getpid() != self._process:  # a fork's copy: the worker is the other process's
            return
        with self._changed:
            self._draining = True
            self._closed = self._closed or not drain
            self._changed.notify()
        if threading.current_thread() is self._worker:  # which goes on to its end when the step is over
            return
        self._worker.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
        with self._changed:
            self._changed.notify()
        self._batch.interrupt()

    def _count_end(self) -> None:
        with self._changed:
            self._unfinished -= 1

    def _work(self) -> None:
        while True:
            try:
                if not self._admit():
                    return
                with SHORT_SWITCH_INTERVAL:
                    self._batch.step()
            except OutOfMemoryError as error:
                self._batch.make_room(error)
            except MemoryError as error:
                self._batch.fail(out_of_memory(error))
            except Exception as error:  # what fails for all of them; the next requests may do better
                self._batch.fail(error)

    def _admit(self) -> bool:
        """Drop what nobody waits for, and start what fits; return False where the worker has to end."""
        with self._changed:
            while True:
                for request in self._batch.requests:
                    if self._closed or request.is_over:
                        self._batch.drop(request)
                    elif self._rests(request):
                        self._batch.put_aside(request)
                self._waiting += self._batch.put_back
                self._batch.put_back.clear()
                for request in [request for request in self._waiting if self._closed or request.is_over]:
                    self._waiting.remove(request)
                    request.finish(request.answer.rest(), "cancelled")
                self._waiting.sort(key=lambda request: request.rank)
                for request in [request for request in self._waiting if not self._rests(request)]:
                    if len(self._batch.requests) >= self._options.max_batch or not self._batch.has_room_for(request):
                        break
                    self._waiting.remove(request)
                    self._batch.add(request)
                if self._batch.requests:
                    return True
                if self._draining:
                    return False
                self._changed.wait(self._seconds_to_deadline())

    def _seconds_to_deadline(self) -> float | None:
        """Return in how many seconds an answer that waits is over by its deadline, the first; None: none has one."""
        first = min((request.expires for request in self._waiting), default=math.inf)
        return None if first == math.inf else min(max(0.0, first - time.monotonic()), threading.TIMEOUT_MAX)

    def _rests(self, request: Request) -> bool:
        """Tell whether an answer waits for its reader; an engine that is being closed waits for none."""
        return request.generation.is_full and not self._draining


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
    answers = [model.answer(prompt, own) for prompt, own in asked]  # refuses a bad one before the others are begun
    options = EngineOptions(max_batch=max_batch, max_queue=len(prompts))
    together = [i for i, answer in enumerate(answers) if _fits_a_row(answer, model.config)]
    done: dict[int, Completion] = {}
    if together:
        with Engine(model, options) as engine:
            generations = {i: engine.submit(*asked[i]) for i in together}
            done = {i: join(generation) for i, generation in generations.items()}
    return [done[i] if i in done else model.generate(*asked[i]) for i in range(len(asked))]


def _fits_a_row(answer: Answer, config: ModelConfig) -> bool:
    """Tell whether an engine gives the whole of an answer: not where it may outgrow its row (LongRoPE)."""
    longest, context = longest_row(config), config.max_position_embeddings
    most = len(answer.prompt_ids) + (answer.config.max_new_tokens or context)
    return config.encoder is None and (longest == context or most <= longest)


def _quarter_of_memory() -> int:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        memory = 8 << 30
    within_limits = memory_within_limits()
    return (memory if within_limits is None else min(memory, within_limits)) // 4
