"""MXFP4: the experts of a Hugging Face folder in four bits, as GPT-OSS is published.

Sixteen values of four bits (E2M1) and a power of two (E8M0) for each 32 inputs, of the OCP Microscaling Formats (MX)
1.0. Doubled, the values are whole numbers up to 12, so 8 bits hold them exactly, and 4 do not.
Shapes: E experts, N outputs, K inputs, in blocks of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgelm_export.checkpoints.checkpoint import QuantizedBlocks, Read
from edgelm_export.packed.gguf_blocks import in_turn
from edgelm_export.packed.microscaling import E2M1_DOUBLED, half_of_power

BLOCK_SIZE = 32
_VALUES, _SCALES = "_blocks", "_scales"


@dataclass(frozen=True, kw_only=True)
class MXFP4Stack:
    """The matrices of a layer's experts. transformers has such a tensor as [E, K, N] where it is not packed."""

    stem: str
    shape: tuple[int, int, int]

    type: ClassVar[str] = "MXFP4"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return tuple(self.stored_types)

    @property
    def stored_types(self) -> dict[str, tuple[str, ...]]:
        """The types that its tensors must have on disk."""
        return {self.stem + part: ("U8",) for part in (_VALUES, _SCALES)}

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return one expert's matrix in float32, [K, N]; `read` gives that expert's entries."""
        blocks = self.blocks(read)
        return (blocks.values * blocks.scales[..., None]).reshape(len(blocks.values), -1).T

    def blocks(self, read: Read) -> QuantizedBlocks:
        """Return one expert's matrix [N, K] on its own grid."""
        packed_NBH = read(self.stem + _VALUES)
        codes = in_turn(packed_NBH.reshape(len(packed_NBH), -1), 4)
        values = E2M1_DOUBLED[codes.reshape(*packed_NBH.shape[:2], BLOCK_SIZE)]
        scales = half_of_power(read(self.stem + _SCALES))
        return QuantizedBlocks(bits=8, block_size=BLOCK_SIZE, values=values, scales=scales)


def mxfp4_stacks(present: Mapping[str, tuple[int, ...]]) -> dict[str, MXFP4Stack]:
    """Find the stacks by their parts, under the names that they have unpacked."""
    stacks = {}
    for name, shape in present.items():
        stem = name.removesuffix(_VALUES)
        is_packed = stem != name and len(shape) == 4 and shape[3] * 2 == BLOCK_SIZE
        if is_packed and present.get(stem + _SCALES) == shape[:3]:
            stacks[stem] = MXFP4Stack(stem=stem, shape=(shape[0], shape[2] * BLOCK_SIZE, shape[1]))
    return stacks
