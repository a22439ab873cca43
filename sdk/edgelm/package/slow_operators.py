"""Settings of a graph's operators that make it many times slower on a CPU: found in the file, without running it."""

from __future__ import annotations

from pathlib import Path

from edgelm.counted import counted
from edgelm.package.graph_file import read_graph
from edgelm.package.graph_parts import BFLOAT16, FLOAT16, FLOAT32, GraphParts

_FLOATS = (FLOAT32, FLOAT16, BFLOAT16)
_ZERO_POINTS = 3  # the place of MatMulNBits' zero points among its inputs


def slow_operators(path: Path) -> list[str]:
    """Describe what of a graph is slow on a CPU; `path` is the graph's file.

    The factors were measured with ONNX Runtime 1.32 (docs/results/graph-and-settings.md).

    Raises:
        PackageError: the graph is broken.
    """
    graph, _ = read_graph(path)
    parts = GraphParts(graph, path)
    float_tensors = {tensor.name for _, tensor in parts.tensors() if tensor.type_ in _FLOATS}
    inexact = inexact_experts = floating = 0
    for _, node in parts.nodes(b"MatMulNBits", b"QMoE"):
        settings = parts.integers(node)
        is_inexact = settings.get("accuracy_level", 0) != 4
        if node.operator == "QMoE" and is_inexact and settings.get("expert_weight_bits", 4) == 4:
            inexact_experts += 1
        if node.operator == "MatMulNBits" and is_inexact and settings.get("bits", 4) == 8:
            inexact += 1
        zero_points = node.inputs[_ZERO_POINTS : _ZERO_POINTS + 1]
        if node.operator == "MatMulNBits" and not float_tensors.isdisjoint(zero_points):
            floating += 1
    found = []
    if inexact:
        found.append(
            f"{counted(inexact, 'product')} of 8 bits without accuracy_level 4, about 19 times slower than with it."
        )
    if inexact_experts:
        found.append(
            f"{counted(inexact_experts, 'layer')} with experts of 4 bits without accuracy_level 4, about 2 times "
            "slower than with it: export the model again, for ONNX Runtime 1.31 or newer."
        )
    if floating:
        found.append(f"{counted(floating, 'product')} with float zero points, about 31 times slower than with none.")
    return found
