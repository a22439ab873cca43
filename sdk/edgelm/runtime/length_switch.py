"""The length of a text from which a graph of another program turns its positions otherwise (LongRoPE)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgelm.package.graph_parts import INT64, GraphParts, Node, StoredTensor


def longest_short_text(graph: bytes, path: Path) -> int | None:
    """Return how long a text may be to turn as a short one, where that is all that a graph's `If` nodes ask.

    onnxruntime-genai's builder writes it as attention_mask -> Shape -> Gather -> Greater -> If, with the model's
    original context as the second input of Greater. graph: the content of `path`, as it was walked.

    Raises:
        PackageError: the graph is damaged.
    """
    parts = GraphParts(graph, path)
    nodes, constants = dict[str, Node](), dict[str, StoredTensor]()
    for _, node in parts.nodes(b"If", b"Greater", b"Gather", b"Shape", b"Constant"):
        nodes[node.name] = node
        tensor = parts.constant(node) if node.operator == "Constant" else None
        if tensor is not None:
            constants[node.name] = tensor
    constants |= {tensor.name: tensor for _, tensor in parts.tensors() if tensor.type_ == INT64}
    limits = {_limit(node, nodes, constants, parts.folder) for node in nodes.values() if node.operator == "If"}
    return limits.pop() if len(limits) == 1 else None


def _limit(switch: Node, nodes: dict[str, Node], constants: dict[str, StoredTensor], folder: Path) -> int | None:
    """Return the length of the mask above which an If takes its first branch; None: it asks something else."""
    asks = nodes.get(switch.inputs[0]) if switch.inputs else None
    if asks is None or asks.operator != "Greater" or len(asks.inputs) != 2:
        return None
    source = asks.inputs[0]
    for operator in ("Gather", "Shape"):
        node = nodes.get(source)
        if node is None or node.operator != operator or not node.inputs:
            return None
        source = node.inputs[0]
    limit = constants.get(asks.inputs[1])
    if source != "attention_mask" or limit is None or limit.type_ != INT64 or limit.file or len(limit.raw) != 8:
        return None
    longest = int(limit.read(folder, np.int64).ravel()[0])
    return longest if longest > 1 else None
