"""Request: one answer on its way through an engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgelm.batching.generation import Generation
from edgelm.completion import Chunk, FinishReason
from edgelm.decoding.answer import Answer
from edgelm.decoding.generate import Decoder
from edgelm.generation_config import GenerationConfig
from edgelm.memory.kv_batch import KVRow
from edgelm.memory.kv_cache import KVCache


@dataclass(eq=False, kw_only=True)
class Request:
    """What an engine knows of one request: the answer that is made, who reads it, and which row computes it.

    `calls` are the calls of the graph after the prompt, in order: most have one token, those with tokens that a
    constraint forced have more. They are kept because a request that lost its row computes them again, in the same
    pieces, so that it goes on with the same bits.
    """

    answer: Answer
    generation: Generation
    priority: int
    expires: float  # time.monotonic(), or infinity
    number: int = 0  # in the order of arrival, from 1
    row: KVRow | None = None
    adapter_user: KVCache | None = None  # while there is no row: an empty one, with which the adapter is in use
    calls: list[tuple[int, ...]] = field(default_factory=list)
    computed: int = 0  # how many of the calls are in the row
    taken: int = 0  # of how many of them the answer was given the forced tokens
    prompt_ids: Sequence[int] = field(init=False)  # the answer's; after a shift of the context, what is left
    length: int = field(init=False)  # of the row, when all that is known is computed
    lost_at: int = 0  # the length at which a search last lost its rows, and began again
    needs_all_memory: bool = False  # the system had none for its next tokens beside others
    cached_tokens: int = 0
    prefill_tokens: int = 0  # of the prompt, computed until the first token or the end
    made_way: bool = False  # its piece was stopped for another request; the next one is not
    submitted: float = field(default_factory=time.perf_counter)
    started: float | None = None
    prefilled: float | None = None

    def __post_init__(self) -> None:
        self.begin_with(self.answer.prompt_ids)

    @property
    def rows(self) -> int:
        """How many rows it may take at once."""
        return most_rows(self.answer.config)

    @property
    def own_row(self) -> KVRow:
        """What it is computed in, while it is at work."""
        assert self.row is not None
        return self.row

    @property
    def is_over(self) -> bool:
        """Whether nobody wants the rest."""
        return self.generation.cancelled or time.monotonic() > self.expires

    @property
    def rank(self) -> tuple[int, int]:
        """What goes first has the lowest: by priority, then by arrival."""
        return -self.priority, self.number

    @property
    def next_call(self) -> tuple[int, ...]:
        """The tokens to compute next."""
        return self.calls[self.computed]

    def use_adapter(self, session: Decoder) -> None:
        """Keep the adapter of an answer without a row from being unloaded, and another from getting its name."""
        if self.answer.config.adapter is not None:
            user = session.new_cache()
            user.use_adapter(self.answer.config.adapter)
            session.adopt(user)
            self.adapter_user = user

    def end(self, item: Chunk | BaseException) -> None:
        """Give the reader the last chunk, or an error; who has it may unload the adapter."""
        self.adapter_user = None
        self.generation.put(item)

    def begin_with(self, token_ids: Sequence[int]) -> None:
        """Take these tokens for the prompt, and forget the calls after the one before."""
        self.prompt_ids, self.length = token_ids, len(token_ids)
        self.calls, self.computed, self.taken = [], 0, 0

    def append(self, call: tuple[int, ...]) -> None:
        """Add what to compute after all that is known."""
        self.calls.append(call)
        self.length += len(call)

    def last_chunk(self, text: str, reason: FinishReason) -> Chunk:
        """Make the chunk that ends the answer."""
        now = time.perf_counter()
        started = now if self.started is None else self.started
        prefilled = now if self.prefilled is None else self.prefilled
        seconds = started - self.submitted, prefilled - started, now - prefilled
        return self.answer.last_chunk(text, reason, self.cached_tokens, self.prefill_tokens, seconds)


def most_rows(config: GenerationConfig) -> int:
    """Return how many rows a request takes at once: one, or those of its beams and of the best answer so far."""
    return 1 if config.num_beams == 1 else config.num_beams + 1
