"""Weights of 5 and 6 bits, joined of their planes before ONNX Runtime sees the graph.

A graph joins them by nodes on constants (edgelm_export/layers/packed_operators.py), which any ONNX Runtime computes
when it loads the graph; but it keeps what each of them gives until all are computed, nine bytes a weight
(docs/results/quantization.md). Here one weight is joined after the other, and one byte is left of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.planes import LOWER_BITS, PLANES, UPPER_BITS, joined
from edgelm.package.graph_parts import UINT8, GraphParts, StoredTensor

Bytes = NDArray[np.uint8]

_JOIN = b"BitwiseOr"


def join_planes(graph: bytes, path: Path, most: int) -> tuple[bytes, dict[str, Bytes]]:
    """Return a graph that needs no planes, and uint8 [N, blocks, block_size] for each initializer that it has instead.

    graph: the content of `path`, as it was walked; what it has in files lies beside that. most: the bytes that all
    joined weights may have together.

    Raises:
        PackageError: they would have more, or a file cannot be read.
    """
    if _JOIN not in graph:  # nearly all
        return graph, {}
    parts = GraphParts(graph, path)
    tensors = dict(parts.tensors())
    weights = _weights(parts, {tensor.name: tensor for tensor in tensors.values() if _is_plane(tensor)}, most)
    joins = {f"{name}.{plane}" for name in weights for plane in PLANES}
    names = {i: tensor.name for i, tensor in tensors.items()} | {i: node.name for i, node in parts.nodes()}
    gone = weights.keys() | joins
    parts_gone = [i for i, name in names.items() if name in gone or name.rpartition(".")[0] in joins]
    return parts.rebuilt(parts_gone, {name: (UINT8, weight.shape) for name, weight in weights.items()}), weights


def _is_plane(tensor: StoredTensor) -> bool:
    return bool(tensor.raw or tensor.file) and tensor.type_ == UINT8 and tensor.name.endswith(PLANES)


def _weights(parts: GraphParts, planes: Mapping[str, StoredTensor], most: int) -> dict[str, Bytes]:
    """Join the planes that there are, each of which fits the other."""
    pairs = {}
    for name in {name.rpartition(".")[0]: None for name in planes}:
        upper, lower = (planes.get(f"{name}.{plane}") for plane in PLANES)
        if upper is not None and lower is not None and (bits := _bits(upper.dims, lower.dims)):
            pairs[name] = (upper, lower, bits)
    if (total := sum(2 * math.prod(upper.dims) for upper, _, _ in pairs.values())) > most:
        raise parts.error(f"joins weights of {total} bytes, where its files allow {most}")
    try:
        return {
            name: joined(upper.read(parts.folder, np.uint8), lower.read(parts.folder, np.uint8), bits)
            for name, (upper, lower, bits) in pairs.items()
        }
    except (OSError, ValueError, MemoryError) as error:
        raise parts.error(f"has weights that cannot be read ({error})") from error


def _bits(upper: Sequence[int], lower: Sequence[int]) -> int:
    """Return the bits of the integers that lie in two planes of these shapes; 0 where there are none."""
    if len(upper) == len(lower) == 4 and upper[:3] == lower[:3] and upper[2] == 1:
        for bits, below in LOWER_BITS.items():
            if upper[3] * below == lower[3] * UPPER_BITS > 0:
                return bits
    return 0
