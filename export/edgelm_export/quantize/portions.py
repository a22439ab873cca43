"""A matrix stored some rows at a time, where all of them in float32 would be more memory than a laptop has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import PER_LAYER_EMBEDDING
from edgelm_export.quantize.packed import PackedWeight

# A matrix as the graph holds it: on an integer grid, or as float32, float16 or bfloat16.
Stored = PackedWeight | NDArray[np.floating]

_Stored = TypeVar("_Stored", PackedWeight, NDArray[np.floating])
_WEIGHTS_AT_ONCE = 1 << 24


def in_portions(checkpoint: Checkpoint, name: str, store: Callable[[NDArray[np.float32]], _Stored]) -> _Stored:
    """Store a matrix by a method that takes each row by itself; a table of layers' features some rows at a time."""
    if name != PER_LAYER_EMBEDDING:
        return store(checkpoint.tensor(name))
    shape = checkpoint.config.tensor_shapes()[name]
    return by_rows(shape, lambda rows: store(checkpoint.rows(name, rows.start, rows.stop)))


def by_rows(shape: tuple[int, ...], stored: Callable[[slice], _Stored]) -> _Stored:
    """Store a matrix of a shape [V, F] some rows at a time; `stored` returns those as they are to be stored."""
    portions = [*portions_of(shape)]
    first = stored(portions[0])
    if len(portions) == 1:
        return first
    whole = _room(first, shape[0])
    for portion in portions:
        part = first if portion is portions[0] else stored(portion)
        for target, rows in zip(_arrays(whole), _arrays(part), strict=True):
            target[portion] = rows
    return whole


def portions_of(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows of a matrix of a shape [V, F], some at a time."""
    V, F = shape
    step = max(1, _WEIGHTS_AT_ONCE // F)
    return (slice(start, min(start + step, V)) for start in range(0, V, step))


def _arrays(stored: Stored) -> list[NDArray[np.generic]]:
    if not isinstance(stored, PackedWeight):
        return [stored]
    parts = (stored.packed, stored.scales, stored.zero_points)
    beside = [] if stored.remainder is None else _arrays(stored.remainder)
    return [part for part in parts if part is not None] + beside


def _room(first: _Stored, rows: int) -> _Stored:
    """Return room for so many rows of what some were stored as."""

    def of(array: NDArray[Any]) -> NDArray[Any]:
        return np.empty((rows, *array.shape[1:]), array.dtype)

    if not isinstance(first, PackedWeight):
        return of(first)
    zero_points = None if first.zero_points is None else of(first.zero_points)
    remainder = None if first.remainder is None else _room(first.remainder, rows)
    return dataclasses.replace(
        first, packed=of(first.packed), scales=of(first.scales), zero_points=zero_points, remainder=remainder
    )
