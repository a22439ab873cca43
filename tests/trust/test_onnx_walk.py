"""The walk over an ONNX graph: what edgelm exports passes, and each way to reach beyond a package is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgelm import load
from edgelm.errors import PackageError, ProviderError
from edgelm.files.protobuf_wire import message_field
from edgelm.package import onnx_walk
from edgelm.package.graph_file import read_graph
from edgelm.package.manifest import Manifest, describe_file
from edgelm.package.onnx_operators import OPERATORS
from edgelm.package.onnx_walk import walk_onnx
from edgelm.runtime.onnx_runtime import import_onnxruntime, start
from edgelm.runtime.session_options import SessionOptions
from edgelm.runtime.stop_switch import StopSwitch
from edgelm.testing import tiny_model_path

PATH = Path("model.onnx")
SIZES = {"model.onnx.data": 4096}


def a_tensor(**changes: object) -> TensorProto:
    """Describe a float tensor [16] in the file of the weights, or a changed one."""
    entries = {"location": "model.onnx.data", "offset": "0", "length": "64"}
    tensor = TensorProto(name="w", dims=[16], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key in ("location", "offset", "length", "checksum", "basepath"):
        value = changes.pop(key, entries.get(key))
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    for name, value in changes.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)  # type: ignore[arg-type]
        else:
            setattr(tensor, name, value)
    return tensor


def a_model(tensor: TensorProto | None = None, node: onnx.NodeProto | None = None) -> onnx.ModelProto:
    node = node or helper.make_node("Add", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y], [tensor or a_tensor()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def walk(model: onnx.ModelProto) -> object:
    return walk_onnx(model.SerializeToString(), PATH, SIZES)


def refusal(model: onnx.ModelProto | bytes) -> str:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(PackageError) as caught:
        walk_onnx(data, PATH, SIZES)
    return str(caught.value)


def test_the_facts_of_the_tiny_model_are_those_that_the_onnx_package_reads() -> None:
    folder = tiny_model_path()
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    size = (folder / "model.onnx.data").stat().st_size

    facts = walk_onnx((folder / "model.onnx").read_bytes(), PATH, {"model.onnx.data": size})

    assert facts.opsets == {opset.domain: opset.version for opset in model.opset_import}
    assert facts.operators == {(node.domain, node.op_type) for node in model.graph.node}
    assert facts.external_files == {"model.onnx.data"}
    assert facts.opsets == Manifest.load(folder).opsets


def test_the_graph_of_a_real_model_passes(smollm2_package: Path) -> None:
    assert read_graph(smollm2_package / "model.onnx")[0] == (smollm2_package / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"location": "../secret"}, "has a tensor in the file '../secret', which is not one of the package's files"),
        ({"location": "/etc/passwd"}, "has a tensor in the file '/etc/passwd'"),
        ({"location": "model.onnx.data\0x"}, "has a tensor in the file 'model.onnx.data\\x00x'"),
        ({"location": "sub/../model.onnx.data"}, "has a tensor in the file"),
        # By this location ONNX Runtime means an address in memory, which the offset gives.
        ({"location": "*/_ORT_MEM_ADDR_/*"}, "has a tensor in the file"),
        ({"basepath": "/"}, "describes external data by"),
        ({"offset": "4064"}, "has a tensor of 64 bytes at 4064 in model.onnx.data, which has 4096 bytes"),
        ({"offset": "18446744073709551615"}, "has a tensor at offset"),
        ({"offset": "-64"}, "has a tensor at offset b'-64'"),
        ({"offset": "0x0"}, "has a tensor at offset b'0x0'"),
        ({"length": "65"}, "has a tensor of dimensions [16] and 65 bytes in model.onnx.data, not 64"),
        ({"dims": [1 << 40, 1 << 40]}, "has a tensor of the impossible dimensions"),
        ({"dims": [-1]}, "has a tensor of the impossible dimensions"),
        ({"dims": [1] * 9}, "has a tensor of the impossible dimensions"),
        ({"dims": [0, 1 << 60]}, "has a tensor of the impossible dimensions"),
        ({"dims": [1 << 20], "length": 1 << 22}, "has a tensor of 4194304 bytes at 0"),
        ({"data_type": 99}, "has a tensor of the unknown type 99"),
        ({"data_type": TensorProto.STRING}, "has a tensor of 16 strings, and 0 are there"),
        ({"data_type": TensorProto.STRING, "dims": [0]}, "has a tensor of 0 strings, and 0 are there"),
        ({"data_location": 0}, "has a tensor that is external and is not"),
        ({"data_location": 0, "data_type": TensorProto.STRING}, "has a tensor that is external and is not"),
    ],
)
def test_a_tensor_that_is_not_whole_in_the_packages_files_is_refused(changes: dict[str, object], problem: str) -> None:
    message = refusal(a_model(a_tensor(**changes)))

    assert message.startswith(f"model.onnx {problem}")
    assert message.endswith("Export or download the package again.")


def test_a_graph_that_is_larger_than_protobuf_allows_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = a_model().SerializeToString()
    monkeypatch.setattr(onnx_walk, "MAX_BYTES", len(data) - 1)
    assert f"has {len(data)} bytes; an ONNX model has at most {len(data) - 1}" in refusal(data)


def test_a_place_that_is_given_twice_is_refused() -> None:
    tensor = a_tensor()
    tensor.external_data.add(key="location", value="model.onnx.data")

    assert "says twice where a tensor lies (b'location')" in refusal(a_model(tensor))


@pytest.mark.parametrize(
    "tensor",
    [
        helper.make_tensor("w", TensorProto.FLOAT, [16], np.ones(16, np.float32).tobytes(), raw=True),
        helper.make_tensor("w", TensorProto.FLOAT, [16], [1.0] * 16),
        helper.make_tensor("w", TensorProto.INT64, [2], [1, -1]),
        helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("w", TensorProto.FLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("w", TensorProto.DOUBLE, [2], [1.0, 2.0]),
        helper.make_tensor("w", TensorProto.UINT64, [1], [1 << 63]),
        helper.make_tensor("w", TensorProto.STRING, [2], ["a", "b"]),
        helper.make_tensor("w", TensorProto.INT64, [0], []),
        helper.make_tensor("w", TensorProto.FLOAT, [], [1.0]),
        a_tensor(length=None, offset="64"),
        a_tensor(checksum="0" * 40),
    ],
)
def test_a_tensor_in_each_form_of_the_specification_passes(tensor: TensorProto) -> None:
    walk(a_model(tensor))


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (TensorProto(dims=[1 << 40], data_type=1, float_data=[1.0]), "of dimensions [1099511627776], and 4 bytes of"),
        (TensorProto(dims=[4], data_type=1, raw_data=b"1234"), "has a tensor of dimensions [4] and 4 bytes, not 16"),
        (TensorProto(dims=[4], data_type=1), "of dimensions [4], and 0 bytes of numbers"),
        (TensorProto(dims=[0], data_type=8, raw_data=b"x"), "has a tensor of 0 strings, and 0 are there"),
    ],
)
def test_dimensions_beyond_the_numbers_that_are_there_are_refused(tensor: TensorProto, problem: str) -> None:
    assert problem in refusal(a_model(tensor))


@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        ("EPContext", "com.microsoft"),
        ("PythonOp", "com.microsoft"),
        ("Add", "evil.custom"),
        ("ATen", "org.pytorch.aten"),
    ],
)
def test_an_operator_that_no_decoder_needs_is_refused(operator: str, domain: str) -> None:
    node = helper.make_node(operator, ["x", "w"], ["y"], domain=domain)

    assert f"uses the operator {operator!r} of domain {domain!r}" in refusal(a_model(node=node))


def nested(model: onnx.ModelProto, depth: int) -> onnx.ModelProto:
    graph = model.graph
    for _ in range(depth):
        node = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "outer", [], [])
    return helper.make_model(graph)


def test_graphs_inside_of_graphs_are_walked_too() -> None:
    walk(nested(a_model(), 2))
    assert "secret" in refusal(nested(a_model(a_tensor(location="secret")), 2))
    assert "nests graphs more than 8 deep" in refusal(nested(a_model(), 8))


def test_a_tensor_in_an_attribute_is_checked() -> None:
    node = helper.make_node("Constant", [], ["y"], value=a_tensor(location="../secret"))

    assert "'../secret'" in refusal(a_model(node=node))


def test_a_tensor_in_two_parts_is_refused() -> None:
    """Protobuf puts them together: dimensions [16, 2] at an offset that has room for two numbers."""
    parts = [a_tensor(length=None), a_tensor(dims=[2], offset=4088, length=None)]
    value = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=parts[0]).SerializeToString()
    value += onnx.AttributeProto(t=parts[1]).SerializeToString()
    assert onnx.AttributeProto.FromString(value).t.dims == [16, 2]
    node = helper.make_node("Constant", [], ["y"]).SerializeToString() + message_field(5, value)
    assert "has a tensor in two parts in an attribute" in refusal(message_field(7, message_field(1, node)))


def with_functions() -> onnx.ModelProto:
    model = a_model()
    node = helper.make_node("EPContext", ["a"], ["b"], domain="com.microsoft")
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 21)]))
    return model


def with_training() -> onnx.ModelProto:
    model = a_model()
    model.training_info.add()
    return model


def with_sparse_tensor() -> onnx.ModelProto:
    model = a_model()
    model.graph.sparse_initializer.add()
    return model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (with_functions, "field 25 (wire type 2) in a model"),
        (with_training, "field 20 (wire type 2) in a model"),
        (with_sparse_tensor, "field 15 (wire type 2) in a graph"),
    ],
)
def test_parts_of_onnx_that_could_hide_others_are_refused(make: Callable[[], onnx.ModelProto], named: str) -> None:
    assert named in refusal(make())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "has 0 graphs where a model has one"),
        (b"\x3a\x00\x3a\x00", "has 2 graphs where a model has one"),
        (b"\x3a\x05\x0a", "is cut off or damaged"),
        (b"\x3a\x02\x0a\x05", "a field goes past its message"),
        (b"\x3a", "is cut off or damaged"),
        (b"\x08" + b"\xff" * 12, "a number of more than ten bytes"),
        (b"\x3b", "is damaged (wire type 3)"),
        (b"\x08\x01" * 98_305, "has more than 98304 fields"),
        (b"\x08\x81\x00" * 49_153, "has more than 98304 fields"),  # a long number counts as one more
        ((b"\x08" + b"\xff" * 9 + b"\x01") * 32_769, "has more than 98304 fields"),  # a longer one as two
        (b"\x3a\x04\x0a\x02\x22\xff", "is cut off or damaged"),
        (b"\x42\x02\x20\x01", "field 4 (wire type 0) in a opset"),
    ],
)
def test_bytes_that_are_no_model_are_refused(data: bytes, problem: str) -> None:
    assert problem in refusal(data)


@pytest.mark.parametrize(("weights", "most"), [(10 << 14, 98_314), (1 << 40, 1 << 20)])
def test_weights_allow_for_more_fields_up_to_a_bound(weights: int, most: int) -> None:
    with pytest.raises(PackageError, match=f"has more than {most} fields"):
        walk_onnx(b"\x08\x01" * (most + 1), PATH, {"model.onnx.data": weights})


def a_graph_of_two_formats() -> bytes:
    """Write a model whose producer makes its bytes 4 to 8 those by which ONNX Runtime knows its own format."""
    return b"\x08\x0a\x12\x04ORTM" + a_model().SerializeToString()


def test_a_graph_with_the_mark_of_another_format_is_refused() -> None:
    assert "has the mark of ONNX Runtime's own format" in refusal(a_graph_of_two_formats())


def test_a_model_of_another_format_than_the_walked_one_is_not_run(tmp_path: Path) -> None:
    runtime, path = import_onnxruntime(), tmp_path / "model.onnx"
    node = helper.make_node("Neg", ["x"], ["y"])
    settings = runtime.SessionOptions()
    settings.optimized_model_filepath = str(path)
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.save_model_format", "ORT")
    model = helper.make_model(a_model(node=node).graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model.graph.ClearField("initializer")
    runtime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    assert path.read_bytes()[4:8] == b"ORTM"

    with pytest.raises(ProviderError, match=r"ONNX Runtime does not load .*protobuf"):
        start(runtime, path.read_bytes(), path, SessionOptions())


def test_a_long_name_is_refused() -> None:
    long_name = helper.make_node("A" * 257, [], ["y"])
    assert "has a name of 257 bytes" in refusal(a_model(node=long_name))


@pytest.mark.parametrize("place", ["../secret", "edgelm.sig", "edgelm.json"])
def test_a_package_whose_weights_no_manifest_has_does_not_load_even_with_hashes_that_fit(
    place: str, package: Path
) -> None:
    model = onnx.load(package / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    (package / "model.onnx").write_bytes(model.SerializeToString())
    resign(package)
    if place != "edgelm.json":
        (package / place).write_bytes(b"\1" * 1_000_000)

    with pytest.raises(PackageError, match=f"has a tensor in the file '{re.escape(place)}'"):
        load(package)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_graph_that_fails_when_it_is_run_is_an_error_of_ours(tokens: int, package: Path) -> None:
    model = onnx.load(package / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["whole" if name == "logits" else name for name in node.output]
    model.graph.node.append(helper.make_node("Reshape", ["whole", "impossible"], ["logits"]))
    model.graph.initializer.append(helper.make_tensor("impossible", TensorProto.INT64, [3], [7, 7, 7]))
    (package / "model.onnx").write_bytes(model.SerializeToString())
    resign(package)
    session = load(package).session

    cache = session.new_cache()
    for stop in (None, StopSwitch()):
        with pytest.raises(ProviderError, match=r"(?s)ONNX Runtime fails at the model's graph \(.*\)\. Where mem"):
            session.forward([5] * tokens, cache, stop=stop)
    assert cache.token_ids == []


def resign(folder: Path) -> None:
    """Write a manifest that fits the files, as a hostile stranger would."""
    import dataclasses

    manifest = Manifest.load(folder)
    names = sorted(set(os.listdir(folder)) - {"edgelm.json"})
    dataclasses.replace(manifest, files=tuple(describe_file(folder / name) for name in names)).save(folder)


def test_the_exporters_operators_are_known_and_those_of_other_domains_are_not() -> None:
    assert sorted(OPERATORS) == ["", "com.microsoft"]
    assert "EPContext" not in OPERATORS["com.microsoft"]
