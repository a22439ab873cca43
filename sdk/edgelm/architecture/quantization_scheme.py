"""Scheme: how one tensor is stored, written as a name such as "int4-block32-asymmetric-gptq"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from edgelm.errors import ExportError

KEEP = "keep"  # the source's own grid, where MatMulNBits has it
FLOATS = ("fp32", "fp16", "bf16")
SHORTLIST = "shortlist"
METHODS = ("rounded", "searched", "hqq", "gptq", SHORTLIST)

# What MatMulNBits of onnxruntime 1.32 has a kernel for on CPU; 2 bits in blocks of 16 or 256 are 100 times slower
# (docs/results/quantization.md). 6 and 5 bits are computed with as 8.
_ALL_SIZES = (16, 32, 64, 128, 256)
BLOCK_SIZES = {8: _ALL_SIZES, 6: _ALL_SIZES, 5: _ALL_SIZES, 4: _ALL_SIZES, 2: (32, 64, 128)}
_NAME = re.compile(r"int(\d+)-block(\d+)(-asymmetric)?(?:-([a-z]+))?")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Integers of `bits` in blocks of `block_size`, each with a scale and, if not symmetric, an integer zero point.

    method: how the integers are found. `rounded` to nearest; `searched` for each block's best grid; `hqq`, a robust
    search; `gptq`, with the error of each column made up for by the later ones, which takes calibration; `shortlist`,
    for a head, whose 8 bits are two planes of 4: the upper ranks all tokens, the lower is read for the best alone.

    Raises:
        ExportError: MatMulNBits has no fast kernel for it, or there is no such method.
    """

    bits: int
    block_size: int
    symmetric: bool
    method: str

    def __post_init__(self) -> None:
        if self.bits not in BLOCK_SIZES:
            raise ExportError(f"A scheme has {self.bits} bits; there are {_listed(BLOCK_SIZES)}.")
        if self.block_size not in BLOCK_SIZES[self.bits]:
            raise ExportError(
                f"A scheme of {self.bits} bits has blocks of {self.block_size}; ONNX Runtime is fast with "
                f"{_listed(BLOCK_SIZES[self.bits])}."
            )
        if self.method not in METHODS:
            raise ExportError(f"A scheme has the method {self.method!r}; there are {', '.join(METHODS)}.")
        if self.method == SHORTLIST and not (self.bits == 8 and self.symmetric):
            raise ExportError(
                f"A shortlist is for symmetric integers of 8 bits, such as int8-block128-{SHORTLIST}, not for "
                f"{grid_name(self.bits, self.block_size, self.symmetric)}."
            )


def grid_name(bits: int, block_size: int, symmetric: bool) -> str:
    """Name a grid as recipes do: a scheme's name without its method."""
    return f"int{bits}-block{block_size}{'' if symmetric else '-asymmetric'}"


def parse_scheme(name: str) -> Scheme | str:
    """Read a scheme's name: one of FLOATS, KEEP, or integers as a Scheme.

    Raises:
        ExportError: it is none, or one that ONNX Runtime is slow with.
    """
    if name == KEEP or name in FLOATS:
        return name
    match = _NAME.fullmatch(name)
    if match is None:
        raise ExportError(
            f"No scheme is called {name!r}. There are {', '.join(FLOATS)}, {KEEP} and "
            f"int8|int6|int5|int4|int2-block{'|'.join(map(str, _ALL_SIZES))}[-asymmetric][-METHOD], such as "
            f"int4-block32-asymmetric-gptq; methods: {', '.join(METHODS)}."
        )
    bits = int(match[1])
    # Nearly lossless at 8 bits, where a search gains nothing; below, each block's grid is worth a search.
    method = match[4] or ("rounded" if bits == 8 else "searched")
    return Scheme(bits=bits, block_size=int(match[2]), symmetric=match[3] is None, method=method)


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in values)
