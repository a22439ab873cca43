"""Weights in 8 bits for operators of the ONNX standard, against weights that are rounded and dequantized by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.architecture.quantization_scheme import parse_scheme
from edgelm.config import ModelConfig
from edgelm.package.manifest import Manifest
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.tensor_map import head_name
from edgelm_export.exporter import export_package
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import Graph
from edgelm_export.layers import packed_operators
from edgelm_export.packed.levels import on_levels
from edgelm_export.quantize.channel_scales import ChannelScales, ScaledCheckpoint
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.keep import on_its_grid
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.quantize.qdq import from_qdq, to_qdq
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

IDS = np.random.default_rng(0).integers(3, 320, 40).tolist()
# The width is no whole number of blocks of 64: they are cut to 16.
CONFIGS = {
    "tied": dataclasses.replace(CONFIG, hidden_size=80),
    "untied, with biases": dataclasses.replace(CONFIG, hidden_size=80, tie_word_embeddings=False, attention_bias=True),
}


class RoundedByHand(CheckpointView):
    """Show each matrix as whole steps of its blocks' scales: 64 weights, the largest of them 127 steps.

    The scales are such as float16 holds. Weights of the head are rounded times `head_divisors_D`.
    """

    def __init__(self, checkpoint: Checkpoint, head_divisors_D: NDArray[np.float32] | None) -> None:
        super().__init__(checkpoint)
        self._divisors_D = np.float32(1) if head_divisors_D is None else head_divisors_D

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, rounded where it is a matrix."""
        if name == head_name(self.config):
            return self._rounded(self._checkpoint.tensor(name) * self._divisors_D) / self._divisors_D
        return self._rounded(self._checkpoint.tensor(name).copy())

    def _rounded(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        if tensor.ndim == 2:
            for start in range(0, tensor.shape[1], 64):
                block = tensor[:, start : start + 64]
                steps = np.abs(block).max(1, keepdims=True) / np.float32(127)
                steps = steps.astype(np.float16).astype(np.float32)
                block[:] = np.rint(block / steps) * steps
        return tensor


QDQ = PRECISIONS["int8"].with_standard_operators()


def export(folder: Path, config: ModelConfig) -> HuggingFaceCheckpoint:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", config))
    export_package(checkpoint, folder / "qdq", QDQ)
    return checkpoint


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def as_written(folder: Path, config: ModelConfig, ids: list[int]) -> NDArray[np.float32]:
    """Run the graph node by node, as a runtime does that fuses nothing."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
    feeds = {value.name: empty for value in session.get_inputs() if value.name.startswith("past")}
    feeds |= {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    (logits_BTV,) = session.run(["logits"], feeds)
    return logits_BTV[0]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_graph_as_written_computes_with_the_dequantized_weights(config: ModelConfig, tmp_path: Path) -> None:
    checkpoint = export(tmp_path, config)
    scales = ChannelScales.load(tmp_path / "qdq", Manifest.load(tmp_path / "qdq"), config)
    divisors_D = PackageCheckpoint(tmp_path / "qdq").head_divisors
    assert (divisors_D is None) == config.tie_word_embeddings  # this tied one would gain nothing
    (expected_TV,) = reference_logits(RoundedByHand(ScaledCheckpoint(checkpoint, scales), divisors_D), [IDS])
    # float32 sums in another order. Measured: 6e-6; the rounding itself moves logits by 0.09.
    np.testing.assert_allclose(as_written(tmp_path / "qdq", config, IDS), expected_TV, atol=1e-4)


def test_a_cpu_computes_its_products_norms_and_activations_by_its_own_operators(tmp_path: Path) -> None:
    """Its attention stays products and Softmax."""
    config = dataclasses.replace(CONFIG, hidden_size=128, num_attention_heads=4, tie_word_embeddings=True)
    checkpoint = export(tmp_path, config)
    export_package(checkpoint, tmp_path / "int8", "int8")
    logits = {}
    for precision in ("int8", "qdq"):
        session = edgelm.load(tmp_path / precision).session
        logits[precision] = session.forward(IDS, session.new_cache(), all_logits=True)
    # The same products; attention sums in another order (measured: 2.2e-6), and MatMulNBits rounds what comes of it
    # to 8 bits, where a value between two steps may fall to either side (measured: one token in 40, by 0.03).
    largest_T = np.abs(logits["qdq"] - logits["int8"]).max(axis=1)
    assert np.quantile(largest_T, 0.9) < 1e-5
    assert largest_T.max() < 0.09  # what rounding itself moves
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "qdq" / "model.onnx", options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    settings = [{a.name: a.i for a in node.attribute} for node in optimized.node if node.op_type == "MatMulNBits"]
    layers = config.num_hidden_layers
    assert [(each["bits"], each["block_size"], each["accuracy_level"]) for each in settings] == [(8, 64, 4)] * (
        4 * layers + 1
    )
    count = Counter(node.op_type for node in optimized.node)
    norms = count["SimplifiedLayerNormalization"] + count["SkipSimplifiedLayerNormalization"]
    assert (norms, count["QuickGelu"], count["Softmax"]) == (2 * layers + 1, layers, layers)


def test_a_tied_head_and_embedding_are_one_tensor_on_disk(tmp_path: Path) -> None:
    export(tmp_path, dataclasses.replace(CONFIG, vocab_size=4096))
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph_of(tmp_path / "qdq").initializer
    }
    for part in ("model.embed_tokens.weight", "model.embed_tokens.weight.scales"):
        assert places[part] == places[f"{part}.tied"] != {}


@pytest.mark.parametrize("name", ["int8-block32", "int8-block32-asymmetric", "int4-block32-asymmetric"])
def test_values_are_those_that_the_operators_specification_dequantizes(name: str) -> None:
    scheme = parse_scheme(name)
    weight_NK = np.random.default_rng(0).standard_normal((24, 96), np.float32)
    packed = quantize_alone(weight_NK, scheme)
    values, scales, zeros = to_qdq(packed)
    assert values.dtype == np.int8
    assert (values.shape, scales.shape) == ((96, 24), (3, 24))
    inputs = {"values": values, "scales": scales} | ({} if zeros is None else {"zeros": zeros})
    node = onnx.helper.make_node("DequantizeLinear", [*inputs], ["y"], axis=0, block_size=32)
    (dequantized_KN,) = ReferenceEvaluator(node).run(None, inputs)
    np.testing.assert_array_equal(dequantized_KN.T, unpack(packed))
    np.testing.assert_array_equal(unpack(from_qdq(values, scales, zeros)), unpack(packed))


def test_a_source_of_fewer_bits_is_held_in_eight(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    rules = (Rule(pattern="embed", scheme="int8-block64"), Rule(pattern=".", scheme="int4-block32-asymmetric"))
    export_package(checkpoint, tmp_path / "int4", Precision(name="int4", rules=rules))
    source = PackageCheckpoint(tmp_path / "int4")
    export_package(source, tmp_path / "qdq", PRECISIONS["keep"].with_standard_operators())
    again = PackageCheckpoint(tmp_path / "qdq")
    assert again.fewest_bits == 8
    for name in CONFIG.tensor_shapes():
        np.testing.assert_array_equal(again.tensor(name), source.tensor(name))


def normal(rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(rows).standard_normal((rows, 192)).astype(np.float32)


def kept_at_eighths() -> PackedWeight:
    return quantize_alone(normal(24), parse_scheme("int5-block64-asymmetric"))


def kept_beyond_zero_points() -> PackedWeight:
    values = np.random.default_rng(1).integers(0, 16, (24, 3, 64)).astype(np.uint8)
    scales, lowest = np.full((24, 3), 0.01, np.float32), np.full((24, 3), 3, np.float32)
    return on_its_grid(on_levels(values, scales, lowest, bits=4), 192)


@pytest.mark.parametrize("make", [kept_at_eighths, kept_beyond_zero_points])
def test_what_no_integers_of_8_bits_hold_as_it_is_moves_to_such(
    make: Callable[[], PackedWeight], tmp_path: Path
) -> None:
    """Zero points between the steps, and blocks that begin where no zero point of theirs is."""
    weight, hidden = make(), normal(5)
    with ExternalData(tmp_path / "data") as data:
        graph = Graph(data)
        graph.input("x", onnx.TensorProto.FLOAT, hidden.shape)
        operators = packed_operators.QDQ()
        operators.product(graph, "x", operators.store(graph, "w", weight), weight, "y")
        graph.output("y", onnx.TensorProto.FLOAT, (5, 24))
    (tmp_path / "model.onnx").write_bytes(graph.model("test").SerializeToString())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # no activations of 8 bits
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, ["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": hidden})
    wanted = hidden @ unpack(weight).T
    assert np.linalg.norm(got - wanted) < 0.01 * np.linalg.norm(wanted)
