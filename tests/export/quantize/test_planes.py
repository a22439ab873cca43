"""5 and 6 bits: in planes on the disk, 8 bits to the operators."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from make_tiny_model import WIDE, make_checkpoint

import edgelm
from edgelm.architecture.planes import from_planes, to_planes
from edgelm.architecture.quantization_recipe import Precision, Rule
from edgelm.architecture.quantization_scheme import parse_scheme
from edgelm.errors import CheckpointError
from edgelm.package.manifest import Manifest, describe_file
from edgelm_export.exporter import export_package
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import Graph
from edgelm_export.layers.packed_operators import NBits
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

SCHEMES = ["int5-block64", "int6-block32", "int5-block16-asymmetric", "int6-block64-asymmetric-hqq"]


def quantized(weight: np.ndarray, name: str) -> PackedWeight:
    return quantize_alone(weight, parse_scheme(name))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(folder: Path, weight: PackedWeight, operator: str, name: str, given: np.ndarray) -> np.ndarray:
    """Let ONNX Runtime compute one operator over a stored weight."""
    with ExternalData(folder / "data") as data:
        graph = Graph(data)
        parts = NBits().store(graph, "w", weight)
        if operator == "product":
            kind = onnx.TensorProto.FLOAT
            output = NBits().product(graph, name, parts, weight, "y")
        else:
            kind = onnx.TensorProto.INT64
            output = NBits().rows(graph, "w.rows", parts, weight, name)
        graph.input(name, kind, given.shape)
        graph.output(
            output, onnx.TensorProto.FLOAT, (*given.shape[:-1], "last") if operator == "product" else ["B", "T", "D"]
        )
    (folder / "model.onnx").write_bytes(graph.model("test").SerializeToString())
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {name: given})[0]


def test_planes_of_a_hand_computed_block() -> None:
    values = np.arange(16, dtype=np.uint8).reshape(1, 1, 16) * 2 + 1
    high, low = to_planes(values, 5)
    # The upper four bits are 0..15: value i in the low half of byte i, value i + 8 in the high half.
    assert high.ravel().tolist() == [i | (i + 8) << 4 for i in range(8)]
    assert low.ravel().tolist() == [255, 255]


@pytest.mark.parametrize("bits", [5, 6])
def test_planes_join_to_what_they_were_split_from(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (6, 3, 32)).astype(np.uint8)
    high, low = to_planes(values, bits)
    assert (high.nbytes + low.nbytes) * 8 == bits * values.size
    assert np.array_equal(from_planes(high, low, bits), values)


@pytest.mark.parametrize("columns", [128, 100])  # 100 ends in a padded block
@pytest.mark.parametrize("scheme", SCHEMES)
def test_onnx_runtime_computes_with_the_joined_integers(scheme: str, columns: int, tmp_path: Path) -> None:
    weight, hidden = quantized(random(48, columns), scheme), random(5, columns, seed=1)
    got, wanted = run(tmp_path, weight, "product", "x", hidden), hidden @ unpack(weight).T
    # The activations are rounded to 8 bits per block; the largest seen is 0.008.
    assert np.linalg.norm(got - wanted) < 0.02 * np.linalg.norm(wanted)
    # A step of 5 bits is half of one of 4: relative errors of normal weights, measured 0.045 and 0.022.
    assert np.linalg.norm(unpack(weight) - random(48, columns)) < 0.06 * np.linalg.norm(random(48, columns))


@pytest.mark.parametrize("scheme", ["int5-block64", "int6-block32"])
def test_an_embedding_is_gathered_from_them(scheme: str, tmp_path: Path) -> None:
    weight = quantized(random(48, 100), scheme)
    rows = run(tmp_path, weight, "rows", "input_ids", np.array([[3, 47, 0]]))
    np.testing.assert_allclose(rows[0], unpack(weight)[[3, 47, 0]], atol=1e-6)


def test_a_package_of_5_and_6_bits_is_smaller_calibrated_and_read_back(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", WIDE))
    rules = (Rule(pattern="embed", scheme="int6-block32"), Rule(pattern=".", scheme="int5-block32-asymmetric-gptq"))
    manifest = export_package(
        checkpoint, tmp_path / "package", Precision(rules=rules), calibration=CalibrationOptions(max_tokens=512)
    )
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence < 0.01  # measured: 0.0005
    assert edgelm.load(tmp_path / "package").generate("The", edgelm.GenerationConfig(max_new_tokens=3)).text is not None
    with PackageCheckpoint(tmp_path / "package") as package:
        assert package.fewest_bits == 5
        blocks = package.quantized_blocks("model.layers.1.self_attn.k_proj.weight")
        assert blocks is not None
        assert (blocks.bits, blocks.block_size) == (5, 32)
        for name in WIDE.tensor_shapes():
            wanted, got = checkpoint.tensor(name), package.tensor(name)
            # Half a step of 5 bits, and what gptq adds to it for the sake of others. Measured: 0.06.
            assert np.linalg.norm(got - wanted) < 0.12 * np.linalg.norm(wanted)


def test_planes_of_an_older_edgelm_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """They had other names, since their zero points counted in whole steps."""
    package = tmp_path / "package"
    with HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", WIDE)) as checkpoint:
        export_package(checkpoint, package, Precision(rules=(Rule(pattern=".", scheme="int5-block32"),)))
    model, older = onnx.load(package / "model.onnx", load_external_data=False), {"upper": "high", "lower": "low"}
    for tensor in model.graph.initializer:
        name, _, plane = tensor.name.rpartition(".")
        for node in model.graph.node:
            node.input[:] = [f"{name}.{older.get(plane, plane)}" if one == tensor.name else one for one in node.input]
        tensor.name = f"{name}.{older.get(plane, plane)}"
    (package / "model.onnx").write_bytes(model.SerializeToString())
    manifest = Manifest.load(package)
    dataclasses.replace(manifest, files=tuple(describe_file(package / one.path) for one in manifest.files)).save(
        package
    )
    assert edgelm.load(package).generate("The", edgelm.GenerationConfig(max_new_tokens=3)).usage.completion_tokens == 3
    with pytest.raises(CheckpointError, match=r"weight in the planes of an older edgelm.* export its source once more"):
        PackageCheckpoint(package)
