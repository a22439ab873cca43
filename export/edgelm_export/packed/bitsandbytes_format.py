"""Matrices in 4 bits as bitsandbytes stores them: numbers of one of 16 levels (NF4, arXiv:2305.14314, or FP4), each
block of them times its largest size, which is in 8 bits of 256 levels itself or a float.

Beside `X.weight`, two numbers in a byte, the first in the upper half, lie `X.weight.absmax`, `X.weight.quant_map` with
the levels, `X.weight.nested_absmax` and `X.weight.nested_quant_map` for the sizes, and a JSON text with the shape.
Source: bitsandbytes.functional.QuantState. Shapes: N outputs, K inputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import FLOATS, Read

_STATE, _LEVELS = "quant_state.bitsandbytes__", 16
_TYPES = ("nf4", "fp4")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_MAX_STATE = 4096  # bytes; in use are 170


@dataclass(frozen=True, kw_only=True)
class FourBitMatrix:
    """One matrix. levels: "nf4" or "fp4". nested: of how many sizes one of their own is, and what was taken from each;
    None where they are floats.
    """

    stem: str
    shape: tuple[int, int]
    levels: str
    block_size: int
    nested: tuple[int, float] | None

    @property
    def type(self) -> str:
        """What the matrix is stored as."""
        return self.levels.upper()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that its tensors may have."""
        own = (*_PARTS, f"{_STATE}{self.levels}")
        return (f"{self.stem}.weight", *(f"{self.stem}.weight.{part}" for part in own))

    @property
    def stored_types(self) -> dict[str, tuple[str, ...]]:
        """The types that its tensors must have on disk."""
        name = f"{self.stem}.weight"
        nested = ("nested_absmax", "nested_quant_map") if self.nested is not None else ()
        own = dict.fromkeys((f"{name}.{part}" for part in ("quant_map", *nested)), FLOATS)
        return {name: ("U8",), f"{name}.absmax": ("U8",) if nested else FLOATS, **own}

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix in float32; `read` gives its tensors."""
        name = f"{self.stem}.weight"
        packed = read(name).reshape(-1)
        levels = read(f"{name}.quant_map").astype(np.float32)
        codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
        weight: NDArray[np.float32] = levels[codes].reshape(-1, self.block_size)
        with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
            weight *= self._sizes(name, read)[:, None]
        return weight.reshape(self.shape)

    def blocks(self, read: Read) -> None:
        """Return None: the levels are no integers."""

    def _sizes(self, name: str, read: Read) -> NDArray[np.float32]:
        """Return the largest size of each block."""
        stored = read(f"{name}.absmax")
        if self.nested is None:
            return stored.astype(np.float32)
        block_size, offset = self.nested
        own = read(f"{name}.nested_absmax").astype(np.float32)[np.arange(len(stored)) // block_size]
        sizes: NDArray[np.float32] = read(f"{name}.nested_quant_map").astype(np.float32)[stored] * own
        return sizes + np.float32(offset)


def four_bit_matrices(present: Mapping[str, tuple[int, ...]], read: Read, where: object) -> Mapping[str, FourBitMatrix]:
    """Find such matrices of a folder, under the names of plain ones.

    present: the shapes of its tensors. read: gives one of them as it is stored.

    Raises:
        CheckpointError: what describes one is broken, or does not fit its tensors.
    """
    found = {}
    for name in present:
        stem, mark, levels = name.partition(f".weight.{_STATE}")
        if not mark:
            continue
        try:
            if levels not in _TYPES or math.prod(present[name]) > _MAX_STATE:
                raise ValueError(f"{levels!r:.40} of {list(present[name])} is no description of 4 bits")
            matrix = _described(stem, levels, bytes(read(name).astype(np.uint8)))
            _check(matrix, present)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{where}: {name} does not describe {stem}.weight: {error}.") from error
        found[f"{stem}.weight"] = matrix
    return found


def _described(stem: str, levels: str, text: bytes) -> FourBitMatrix:
    state = json.loads(text)
    rows, columns = state["shape"]
    sizes = [rows, columns, state["blocksize"], state.get("nested_blocksize", 1)]
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        raise ValueError(f"shape and blocks are {sizes!r:.80}")
    nested = None
    if "nested_blocksize" in state:
        nested = sizes[3], float(state["nested_offset"])
    return FourBitMatrix(stem=stem, shape=(rows, columns), levels=levels, block_size=sizes[2], nested=nested)


def _check(matrix: FourBitMatrix, present: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the sizes of a matrix's tensors with its shape."""
    name, numbers = f"{matrix.stem}.weight", math.prod(matrix.shape)
    blocks = numbers // matrix.block_size
    wanted = {".absmax": blocks, ".quant_map": _LEVELS}
    if matrix.nested is not None:
        wanted |= {".nested_absmax": -(-blocks // matrix.nested[0]), ".nested_quant_map": 256}
    is_whole = numbers % 2 == 0 and numbers % matrix.block_size == 0
    fits = {"": math.prod(present[name]) == numbers // 2 and is_whole}
    fits |= {part: present[f"{name}{part}"] == (count,) for part, count in wanted.items()}
    for part, is_fitting in fits.items():
        if not is_fitting:
            raise ValueError(f"{name}{part} is {list(present[f'{name}{part}'])} for a matrix of {list(matrix.shape)}")
