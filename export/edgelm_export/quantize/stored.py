"""A matrix of a checkpoint, stored by the scheme that a recipe names for it."""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_scheme import KEEP, SHORTLIST, Scheme, parse_scheme
from edgelm.errors import ExportError
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import GATHERED
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.keep import keep_grid, on_its_grid
from edgelm_export.quantize.portions import Stored, in_portions
from edgelm_export.quantize.two_planes import in_two_planes, takes_shortlist

_FLOAT_TYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def quantize(checkpoint: Checkpoint, name: str, scheme_name: str) -> Stored:
    """Read a matrix and store it by a scheme.

    gptq is for the layers, which the calibration has put on their grids before (prepared.py) and which stay there: the
    embedding and the head are rounded or searched instead. What a shortlist is not made for is rounded to the same 8
    bits.

    Raises:
        ExportError: a weight is beyond fp16, or the embedding was to lie on a grid that no row is gathered from; or as
            from `keep_grid`.
    """
    scheme = parse_scheme(scheme_name)
    if scheme == KEEP:
        return keep_grid(checkpoint, name)
    if not isinstance(scheme, Scheme):
        return in_portions(checkpoint, name, partial(_narrowed, name=name, scheme=scheme))
    if name in GATHERED and (scheme.bits == 2 or not scheme.symmetric):
        raise ExportError(
            f"The embedding cannot be {scheme_name}: its rows are gathered from a symmetric grid of 4 bits or more. "
            "Give embed_tokens a rule of its own, before the others, such as int8-block64."
        )
    blocks = checkpoint.quantized_blocks(name) if scheme.method == "gptq" and ".layers." in name else None
    if blocks is not None:
        return on_its_grid(blocks, checkpoint.config.tensor_shapes()[name][1])
    if scheme.method == SHORTLIST and takes_shortlist(checkpoint, name, scheme):
        return in_two_planes(checkpoint.tensor(name), scheme, checkpoint.head_hessian)
    return in_portions(checkpoint, name, lambda rows: quantize_alone(rows, scheme))


def _narrowed(weight: NDArray[np.float32], name: str, scheme: str) -> NDArray[np.floating]:
    with np.errstate(over="ignore"):
        narrowed = weight.astype(_FLOAT_TYPES[scheme], copy=False)
    if scheme == "fp16" and not np.isfinite(narrowed).all():
        raise ExportError(f"{name} has weights beyond fp16's 65504. Export with --precision bf16 or int8.")
    return narrowed
