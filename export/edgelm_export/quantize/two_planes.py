"""A head in two planes of 4 bits: the upper ranks all tokens, and the lower is read for the best of them alone.

A step reads the whole head, most of a small model with a large vocabulary, to find a few likely tokens. Here it reads
half of it, and what is missing only for the shortlist: those have the logits of 8 bits, all others those of 4. As in
SVD-softmax (Shim et al., NIPS 2017), with a plane in the place of a narrow head. The graph is made in
packed_operators.py.

Where a text has been run, the upper plane is chosen by GPTQ for what the head met there; the lower one stores what is
left, whatever was chosen. Shapes: V vocabulary, D hidden.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.block_grid import exact_grid, in_blocks
from edgelm.architecture.quantization_scheme import Scheme
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import head_name
from edgelm_export.graph.shortlist import group_size
from edgelm_export.quantize.gptq import quantize_gptq
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.quantize.portions import by_rows
from edgelm_export.quantize.statistics import InputStatistics

# Of tokens: a smaller head is read at once in the time that a shortlist takes.
_LEAST_VOCABULARY = 100_000
# Of the planes, or what the scheme says, where that is less.
_LARGEST_BLOCK = 64
_LOOKED_AT = 64  # rows, to tell whether a head lies on a grid


def takes_shortlist(checkpoint: Checkpoint, name: str, scheme: Scheme) -> bool:
    """Tell whether a shortlist is made for a matrix: a large head without a bias, and not on 8 bits' grid already.

    Two planes would round what was trained for those 8 bits, or comes from a package of them, a second time.
    """
    config = checkpoint.config
    is_large = config.vocab_size >= _LEAST_VOCABULARY and group_size(config.vocab_size) is not None
    if name != head_name(config) or not is_large or config.lm_head_bias:
        return False
    blocks = in_blocks(checkpoint.rows(name, 0, _LOOKED_AT), scheme.block_size)
    on_grid = exact_grid(blocks, scheme)[1][blocks.any(-1)]
    return not on_grid.size or bool(on_grid.mean() <= 0.5)


def in_two_planes(
    weight_VD: NDArray[np.float32], scheme: Scheme, hessian_DD: NDArray[np.float32] | None
) -> PackedWeight:
    """Return a head's upper plane, whose `remainder` is the lower one.

    hessian_DD: the products X^T X of what the head meets; None is not known.
    """
    plane = dataclasses.replace(scheme, bits=4, block_size=min(scheme.block_size, _LARGEST_BLOCK), method="rounded")
    inputs = None if hessian_DD is None else InputStatistics(hessian_KK=hessian_DD, cross_KK=hessian_DD)

    def rows_in_planes(rows: slice) -> PackedWeight:
        part_VD = weight_VD[rows]
        upper = quantize_alone(part_VD, plane) if inputs is None else quantize_gptq(part_VD, inputs, plane, descents=0)
        return dataclasses.replace(upper, remainder=quantize_alone(part_VD - unpack(upper), plane))

    return by_rows(weight_VD.shape, rows_in_planes)
