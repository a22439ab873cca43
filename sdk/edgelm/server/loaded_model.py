"""LoadedModel: a model that the server holds in memory, and how many requests use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.batching.engine import Engine
from edgelm.files.modified import state_of_file
from edgelm.memory.kv_batch import longest_row
from edgelm.server.turns import Turns

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel


@dataclass(eq=False, kw_only=True)
class LoadedModel:
    """A model with its engine, and how many requests use it."""

    name: str
    model: LanguageModel
    engine: Engine
    turns: Turns
    max_batch: int
    keep_alive: float | None  # seconds without a request after which it is unloaded; None: never
    made_of: Mapping[Path, object]  # a file of its package and of each adapter -> its state before loading
    base: LoadedModel | None = None  # the model itself, where this is the same with an adapter as its default
    users: int = 0
    scoring: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by what computes beside the engine
    last_used: float = field(default_factory=time.monotonic)

    @property
    def context_length(self) -> int:
        """How many tokens a request and its answer may have."""
        return longest_row(self.model.config)

    @property
    def idle_seconds(self) -> float:
        """How long nobody has used the model."""
        return 0.0 if self.users else time.monotonic() - self.last_used

    @property
    def is_expired(self) -> bool:
        """Whether the model is to be unloaded."""
        return not self.users and self.keep_alive is not None and self.idle_seconds >= self.keep_alive

    @property
    def is_replaced(self) -> bool:
        """Whether its package or an adapter is gone, or another one in its place."""
        return any(state_of_file(path) != state for path, state in self.made_of.items())

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """End one use of the model, as a `with` block does at its end."""
        used = self.base or self
        used.users -= 1
        used.last_used = time.monotonic()

    def keep_for(self, seconds: float | None) -> None:
        """Keep the model for so many seconds after its last request; less than 0: always; None: as it was."""
        if seconds is not None:
            (self.base or self).keep_alive = seconds if seconds >= 0 else None

    def adapted(self, adapter: str) -> LoadedModel:
        """Return the model as those have it who ask for one of its adapters; who uses that uses the model."""
        return replace(self, name=adapter, model=self.model.adapted(adapter), base=self)
