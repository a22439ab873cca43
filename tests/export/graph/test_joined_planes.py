"""Planes of 5 and 6 bits that the runtime joins: to the very weights that the graph's own nodes give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from make_tiny_model import WIDE, make_checkpoint

import edgelm
from edgelm.architecture.quantization_recipe import Precision, Rule
from edgelm.errors import PackageError
from edgelm.runtime import joined_planes, onnx_runtime
from edgelm.runtime.joined_planes import join_planes
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

ENOUGH = 1 << 30
GREEDY = edgelm.GenerationConfig(max_new_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with 5 and 6 bits, planes of which lie in the graph and in its file; o has 8 bits and none."""
    folder = tmp_path_factory.mktemp("planes")
    rules = (
        Rule(pattern="embed", scheme="int6-block32"),
        Rule(pattern="o_proj", scheme="int8-block32"),
        Rule(pattern="down", scheme="int6-block64"),
        Rule(pattern=".", scheme="int5-block16-asymmetric"),
    )
    with HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", WIDE)) as checkpoint:
        export_package(checkpoint, folder / "package", Precision(rules=rules))
    return folder / "package"


def test_weights_are_those_that_the_nodes_of_the_graph_give(package: Path) -> None:
    path = package / "model.onnx"
    _, weights = join_planes(path.read_bytes(), path, ENOUGH)
    assert len(weights) == 1 + 2 * 3
    model = onnx.load(path)
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in weights]
    nodes = [node for node in model.graph.node if node.op_type.startswith("Bit") or node.output[0].endswith(".values")]
    graph = onnx.helper.make_graph(nodes, "planes", [], outputs, initializer=model.graph.initializer)
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, value in zip(weights, session.run(list(weights), {}), strict=True):
        assert np.array_equal(weights[name], value), name


def test_nothing_of_the_planes_is_left_in_the_graph(package: Path) -> None:
    path = package / "model.onnx"
    graph, weights = join_planes(path.read_bytes(), path, ENOUGH)
    model = onnx.load_from_string(graph)
    assert not {"BitShift", "BitwiseAnd", "BitwiseOr"} & {node.op_type for node in model.graph.node}
    assert not [one.name for one in model.graph.initializer if one.name.endswith((".upper", ".lower"))]
    placed = {one.name: list(one.dims) for one in model.graph.initializer if one.name in weights}
    assert placed == {name: list(weight.shape) for name, weight in weights.items()}


def test_a_graph_without_planes_stays_as_it_is(tmp_path: Path) -> None:
    with HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint")) as checkpoint:
        export_package(checkpoint, tmp_path / "package", Precision(rules=(Rule(pattern=".", scheme="int8-block16"),)))
    path = tmp_path / "package" / "model.onnx"
    graph = path.read_bytes()
    assert join_planes(graph, path, 0) == (graph, {})


def test_a_session_computes_with_weights_of_its_own(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are freed behind its start: it may not read them then."""
    wanted = edgelm.load(package).generate("The sea", GREEDY).token_ids
    seen: list[np.ndarray] = []

    def noting(*arguments: object) -> tuple[bytes, dict[str, np.ndarray]]:
        graph, weights = join_planes(*arguments)
        seen.extend(weights.values())
        return graph, weights

    monkeypatch.setattr(onnx_runtime, "join_planes", noting)
    model = edgelm.load(package)
    assert seen
    for weight in seen:
        weight.fill(7)
    assert model.generate("The sea", GREEDY).token_ids == wanted


def test_planes_that_do_not_fit_each_other_are_left_to_onnx_runtime(package: Path) -> None:
    path = package / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    next(one for one in model.graph.initializer if one.name.endswith("down_proj.weight.lower")).dims[3] -= 1
    graph, weights = join_planes(model.SerializeToString(), path, ENOUGH)
    assert len(join_planes(path.read_bytes(), path, ENOUGH)[1]) - len(weights) == 1
    assert b"BitwiseOr" in graph


@pytest.mark.parametrize("name", [b"\xff" * 20, b"x" * 300])
def test_names_that_are_no_text_or_long_stay_as_they_are(name: bytes, package: Path) -> None:
    path = package / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    placeholder = "z" * len(name)
    model.graph.node.add(op_type="Identity", input=["input_ids"], output=[placeholder])
    graph, weights = join_planes(model.SerializeToString().replace(placeholder.encode(), name), path, ENOUGH)
    assert name in graph
    assert weights.keys() == join_planes(path.read_bytes(), path, ENOUGH)[1].keys()


def test_more_than_the_files_allow_is_refused(package: Path) -> None:
    path = package / "model.onnx"
    with pytest.raises(PackageError, match=r"model.onnx joins weights of \d+ bytes, where its files allow 1000"):
        join_planes(path.read_bytes(), path, 1000)


def test_a_file_that_is_cut_off_is_an_error(package: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(PackageError, match=r"model.onnx has weights that cannot be read"):
        join_planes((package / "model.onnx").read_bytes(), tmp_path / "model.onnx", ENOUGH)


def test_planes_for_which_there_is_no_memory_are_an_error(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("Unable to allocate 4.00 GiB")

    monkeypatch.setattr(joined_planes, "joined", refuse)
    with pytest.raises(PackageError, match=r"has weights that cannot be read \(Unable to allocate 4\.00 GiB\)"):
        join_planes((package / "model.onnx").read_bytes(), package / "model.onnx", ENOUGH)
