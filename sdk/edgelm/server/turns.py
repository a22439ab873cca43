"""Turns: whose answer is begun next, where many callers ask one model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from edgelm.batching.engine import Engine
from edgelm.batching.generation import Generation
from edgelm.counted import counted
from edgelm.errors import QueueFullError
from edgelm.generation_config import GenerationConfig


class Turns:
    """Let no caller who asks for much keep the others waiting.

    An answer's turn comes after its caller's last one and after the first turn of all that is not over. So a caller
    with many answers gets one in each turn, and a caller with none gets the next turn. Turns become priorities of the
    engine, which begins answers in their order, and where memory is full lets those of late turns wait. Nobody waits
    for ever, since the first turn grows as answers end (start-time fair queueing: Goyal, Vin and Cheng, 1996).

    places: answers at work and waiting. Beyond them, callers who have some are refused; the engine has more places, for
    those who have none.
    """

    def __init__(self, engine: Engine, places: int) -> None:
        self._engine, self._places = engine, places
        self._turns: weakref.WeakKeyDictionary[Generation, tuple[str, int]] = weakref.WeakKeyDictionary()
        self._on_their_way: list[tuple[str, int]] = []  # to the engine, which compiles schemas for seconds
        self._counting = threading.Lock()

    def submit(
        self, caller: str, prompt_ids: Sequence[int], config: GenerationConfig, *, deadline: float
    ) -> Generation:
        """Queue a prompt of a caller, and return its answer to come.

        Raises:
            QueueFullError: there is no place for it.
            ContextLengthError, TokenizerError, ConfigError: as Engine.submit.
        """
        with self._counting:
            queued = [turn for generation, turn in self._turns.items() if not generation.has_ended]
            to_come = [*queued, *self._on_their_way]
            own = [turn for who, turn in to_come if who == caller]
            if own and len(to_come) >= self._places:
                raise QueueFullError(
                    f"{counted(len(to_come), 'answer')} at work or waiting, {len(own)} of them this caller's."
                )
            turn = caller, 1 + max([min((turn for _, turn in to_come), default=0), *own])
            self._on_their_way.append(turn)
        generation = None
        try:
            generation = self._engine.submit(prompt_ids, config, priority=-turn[1], deadline=deadline)
        finally:
            with self._counting:
                self._on_their_way.remove(turn)
                if generation is not None:
                    self._turns[generation] = turn
        return generation
