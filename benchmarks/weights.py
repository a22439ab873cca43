"""The weights that a decode step reads: all of a model's, but of tables that are only looked up in, one row."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import onnx

_LOOK_UPS = ("Gather", "GatherBlockQuantized", "GroupQueryAttention")  # the last one, in tables of positions


def weight_bytes(model: Path) -> int:
    """Count the bytes of a GGUF file, or of a folder with a model.onnx, as they are stored."""
    return _of_gguf(model) if model.is_file() else _of_graph(model / "model.onnx")


def _of_gguf(path: Path) -> int:
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    if "output.weight" in sizes:  # else the head reads the embedding
        del sizes["token_embd.weight"]
    return sum(sizes.values())


def _of_graph(path: Path) -> int:
    graph = onnx.load(path, load_external_data=False).graph
    read = {name for node in graph.node if node.op_type not in _LOOK_UPS for name in node.input}
    return sum(_size(tensor) for tensor in graph.initializer if tensor.name in read)


def _size(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
