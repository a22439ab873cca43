"""A small graph that asks for large constants: ONNX Runtime computes none of them while it loads the graph."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgelm.package.onnx_walk import walk_onnx
from edgelm.runtime.onnx_runtime import import_onnxruntime, start
from edgelm.runtime.session_options import SessionOptions

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory as Linux says it")
COUNT = 1 << 28  # a gigabyte of floats
SIDE = 1 << 14
CONSTANTS = {
    "zero": np.float32(0), "one": np.float32(1), "count": np.float32(COUNT), "shape": np.array([COUNT]),
    "column": np.ones((SIDE, 1), np.float32), "row": np.ones((1, SIDE), np.float32),
}  # fmt: skip
LARGE = {
    "a range": [helper.make_node("Range", ["zero", "count", "one"], ["large"])],
    "a constant of a shape": [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]), helper.make_node("Cos", ["zeros"], ["large"]),
    ],
    "an expanded number": [helper.make_node("Expand", ["one", "shape"], ["large"])],
    "a tiled number": [
        helper.make_node("Unsqueeze", ["one", "axes"], ["ones"]), helper.make_node("Tile", ["ones", "shape"], ["large"])
    ],
    "a product of a row and a column": [helper.make_node("Mul", ["column", "row"], ["large"])],
}  # fmt: skip


def peak_megabytes() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("nodes", LARGE.values(), ids=LARGE)
def test_a_small_graph_takes_little_memory_to_load(nodes: list[NodeProto], tmp_path: Path) -> None:
    rows = helper.make_tensor_value_info("rows", TensorProto.INT64, ["n"])
    taken = helper.make_tensor_value_info("taken", TensorProto.FLOAT, None)
    constants = [
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in (CONSTANTS | {"axes": np.array([0])}).items()
    ]
    gather = helper.make_node("Gather", ["large", "rows"], ["taken"])
    model = helper.make_model(
        helper.make_graph([*nodes, gather], "large", [rows], [taken], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    graph, path = model.SerializeToString(), tmp_path / "model.onnx"
    path.write_bytes(graph)
    walk_onnx(graph, path, {})  # which has nothing against it
    runtime = import_onnxruntime()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_megabytes()
    start(runtime, graph, path, SessionOptions())
    # Computing it takes 1,024 MB; 10 were seen.
    assert peak_megabytes() - before < 256
