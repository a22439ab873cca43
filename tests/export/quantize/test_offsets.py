"""Weights of 4 bits with an offset for each block, as Q4_1 and Q4_K have them: stored, computed with, read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
from command_line import invoke
from exported_adapters import ADAPTERS, Exported, merged_logits, our_logits, with_adapters
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.architecture.quantization_scheme import Scheme
from edgelm.errors import CheckpointError
from edgelm.package.manifest import Manifest, Quality
from edgelm_export import exporter
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks
from edgelm_export.exporter import export_package
from edgelm_export.importer import write_checkpoint
from edgelm_export.packed.gguf_types import dequantize, integer_blocks
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.keep import keep_grid, on_its_grid, weights_of_4_bits
from edgelm_export.quantize.offsets import FALLBACK, in_8_bits, joined, taken_apart
from edgelm_export.quantize.packed import PackedWeight, rows_of, stack, unpack
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

Save = Callable[..., Any]
MATRIX = "model.layers.0.mlp.down_proj.weight"
# Offsets lie at fifteenths of the largest of 32, which is half a step, so that half of one is missed at most.
STEPS_MISSED = 0.5 / 15


def q4_k(rows: int, columns: int) -> NDArray[np.uint8]:
    """Return random blocks of Q4_K: 144 bytes for 256 weights, with a scale and a lowest weight like real ones."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (rows * columns // 256, 144), dtype=np.uint8)
    for at, size in ((0, 1e-3), (2, 4e-3)):
        halves = (size * random.uniform(0.5, 1, len(blocks))).astype("<f2")
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks.ravel()


def weights_of(blocks: QuantizedBlocks) -> NDArray[np.float32]:
    assert blocks.zero_points is not None
    assert blocks.offsets is not None
    steps = (blocks.values - blocks.zero_points[..., None].astype(np.float32)) * blocks.scales[..., None]
    return (steps + blocks.offsets[..., None]).reshape(len(steps), -1)


def packed_and_weights(columns: int = 96) -> tuple[PackedWeight, NDArray[np.float32]]:
    weights = np.random.default_rng(1).standard_normal((24, columns)).astype(np.float32)
    data = gguf.quantize(weights, gguf.GGMLQuantizationType.Q4_1).ravel()
    blocks = integer_blocks(data, "Q4_1", weights.shape)
    assert blocks is not None
    return on_its_grid(blocks, columns), dequantize(data, "Q4_1", weights.shape)


def test_levels_of_q4_1_are_whole_zero_points_and_offsets_below_half_a_step() -> None:
    weights = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    data = gguf.quantize(weights, gguf.GGMLQuantizationType.Q4_1).ravel()
    blocks = integer_blocks(data, "Q4_1", weights.shape)
    assert blocks is not None
    assert (blocks.bits, blocks.block_size, blocks.values.dtype) == (4, 32, np.int8)
    np.testing.assert_allclose(weights_of(blocks), dequantize(data, "Q4_1", weights.shape), rtol=0, atol=1e-6)
    assert (np.abs(blocks.offsets) <= 0.501 * blocks.scales).all()


def test_levels_of_q4_k_lose_what_float16_loses_of_their_scales() -> None:
    data = q4_k(31, 1024)
    blocks = integer_blocks(data, "Q4_K", (31, 1024))
    assert blocks is not None
    expected = dequantize(data, "Q4_K", (31, 1024))
    missed = np.abs(weights_of(blocks) - expected).reshape(blocks.values.shape).max(-1)
    assert (missed <= 15 * 2**-11 * blocks.scales + 1e-7).all()
    np.testing.assert_array_equal(blocks.scales, blocks.scales.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("scale", "lowest"), [(0.0, 0.25), (0.01, 3.0), (-0.02, -0.1)])
def test_blocks_of_odd_levels_are_held(scale: float, lowest: float) -> None:
    """All weights alike; none near zero; a negative step."""
    block = np.arange(20, dtype=np.uint8)
    block[:4] = np.array([scale, lowest], "<f2").view(np.uint8)
    blocks = integer_blocks(block, "Q4_1", (1, 32))
    assert blocks is not None
    np.testing.assert_allclose(weights_of(blocks), dequantize(block, "Q4_1", (1, 32)), rtol=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2])
def test_a_number_that_is_none_is_refused_and_no_warning(number: float, at: int) -> None:
    block = np.zeros(20, np.uint8)
    block[:4] = np.array([0.01, -0.1], "<f2").view(np.uint8)
    block[at : at + 2] = np.array([number], "<f2").view(np.uint8)
    blocks = integer_blocks(block, "Q4_1", (1, 32))
    assert blocks is not None
    assert blocks.offsets is not None
    assert not np.isfinite(blocks.scales).all() or not np.isfinite(blocks.offsets).all()


@pytest.mark.parametrize("columns", [32, 96, 2048])
def test_a_packed_weight_is_its_source_to_a_thirtieth_of_a_step(columns: int) -> None:
    packed, weights = packed_and_weights(columns=columns)
    packed.check((24, columns))
    assert packed.offsets is not None
    missed = np.abs(unpack(packed) - weights).reshape(*packed.scales.shape, 32).max(-1)
    groups = np.maximum.reduceat(packed.scales, np.arange(0, packed.scales.shape[1], 32), axis=1)
    largest = np.repeat(groups, 32, axis=1)[:, : packed.scales.shape[1]]
    assert (missed <= 1.05 * STEPS_MISSED * largest).all()
    without_offsets = np.abs(unpack(packed) - unpack(packed.offsets).repeat(32, axis=1) - weights)
    assert without_offsets.max() > 4 * missed.max()


def test_offsets_are_joined_to_further_columns_and_taken_apart_again() -> None:
    packed, _ = packed_and_weights(columns=96)  # three blocks: their zero points fill one byte and a half
    whole = joined(packed)
    assert (whole.columns, whole.packed.shape) == (99, (24, 4, 16))
    whole.check((24, 99))
    assert packed.offsets is not None
    both = np.concatenate([unpack(packed) - unpack(packed.offsets).repeat(32, axis=1), unpack(packed.offsets)], axis=1)
    np.testing.assert_allclose(unpack(whole)[:, :99], both, atol=1e-6)
    again = taken_apart(whole, 96)
    np.testing.assert_array_equal(unpack(again), unpack(packed))
    np.testing.assert_array_equal(unpack(rows_of(again, slice(3, 7))), unpack(packed)[3:7])
    np.testing.assert_array_equal(unpack(stack([packed, again])), np.concatenate([unpack(packed)] * 2))
    assert packed.nbytes == joined(packed).nbytes + packed.zero_points.nbytes + packed.offsets.zero_points.nbytes - (
        joined(packed).zero_points.nbytes
    )


def test_in_8_bits_offsets_become_zero_points_at_sixteenths() -> None:
    packed, weights = packed_and_weights()
    wide = in_8_bits(packed)
    assert (wide.bits, wide.offsets) == (8, None)
    missed = np.abs(unpack(wide) - unpack(packed)).reshape(*packed.scales.shape, 32).max(-1)
    assert (missed <= packed.scales / 30).all()
    assert np.abs(unpack(wide) - weights).max() < 0.07 * packed.scales.max()


def test_blocks_beyond_the_reach_of_zero_points_are_rounded_to_8_bits() -> None:
    weights = 5 + np.random.default_rng(3).uniform(0, 0.1, (8, 64)).astype(np.float32)
    blocks = integer_blocks(gguf.quantize(weights, gguf.GGMLQuantizationType.Q4_1).ravel(), "Q4_1", weights.shape)
    assert blocks is not None
    packed = on_its_grid(blocks, 64)
    np.testing.assert_allclose(unpack(packed), weights, atol=0.02)
    np.testing.assert_allclose(unpack(in_8_bits(packed)), unpack(packed), atol=0.51 * 5.12 / 127)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("scale", "offset"),
    [
        (1.0, 8.0),  # zero points end 8 steps below the middle,
        (1.0, 8.0625),  # and the next sixteenth is beyond
        (1.0, -7.9375),  # and begin here above it,
        (1.0, -8.0),
        (0.0, 0.5),  # of a block without steps they are all that there is
    ],
)
def test_offsets_at_the_ends_of_what_zero_points_reach_are_held(scale: float, offset: float) -> None:
    values = np.arange(32, dtype=np.int8).reshape(1, 1, 32) % 16 - 8
    scales, offsets = np.full((1, 1), scale, np.float32), np.full((1, 1), offset, np.float32)
    blocks = QuantizedBlocks(bits=4, block_size=32, values=values, scales=scales, zero_points=None, offsets=offsets)
    wide = in_8_bits(on_its_grid(blocks, 32))
    # Half of a step of 127 in the largest of the weights, where they are rounded again.
    np.testing.assert_allclose(unpack(wide)[0], values.ravel() * scale + offset, rtol=0, atol=16.1 / 254)


def test_offsets_of_8_bits_are_rounded_with_their_weights() -> None:
    weights = np.random.default_rng(4).standard_normal((4, 64)).astype(np.float32)
    packed = quantize_alone(weights, Scheme(bits=8, block_size=32, symmetric=False, method="rounded"))
    offsets = packed.scales * np.float32(0.4)
    packed = dataclasses.replace(packed, offsets=quantize_alone(offsets, FALLBACK))
    wide = in_8_bits(packed)
    assert (wide.bits, wide.offsets) == (8, None)
    # Half a step of the widest block. What is left out, four tenths of one, would move all weights of a block one way.
    missed = (unpack(wide) - unpack(packed)).reshape(4, 2, 32)
    assert np.abs(missed).max() <= 0.51 * wide.scales.max()
    assert np.abs(missed.mean(-1)).max() < 0.2 * packed.scales.max()


def test_weights_with_offsets_and_without_are_not_stacked_and_offsets_are_checked_too() -> None:
    packed, _ = packed_and_weights()
    assert packed.offsets is not None
    assert dataclasses.replace(packed, offsets=None).layout != packed.layout
    wrong = dataclasses.replace(packed, offsets=dataclasses.replace(packed.offsets, columns=4))
    with pytest.raises(ValueError, match="4 columns, not 3"):
        wrong.check((24, 96))


def test_4_bits_of_an_embedding_and_of_experts_with_offsets_are_not_counted(
    q4_1: GGUFCheckpoint, tmp_path: Path, save_model: Save, write_gguf: Save
) -> None:
    shapes = q4_1.config.tensor_shapes()
    assert weights_of_4_bits(q4_1) == sum(np.prod(shapes[name]) for name in shapes if name.endswith("_proj.weight"))
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}
    model = save_model("mixtral", tmp_path / "experts", **experts)
    source = GGUFCheckpoint(write_gguf(tmp_path / "experts.gguf", model, "Q4_1", architecture="llama"))
    shapes = source.config.tensor_shapes()
    kept = [name for name in shapes if name.endswith("_proj.weight") and "experts" not in name]
    kept += [name for name in shapes if name.endswith(("lm_head.weight", "mlp.gate.weight"))]
    assert weights_of_4_bits(source) == sum(np.prod(shapes[name]) for name in kept)


@pytest.fixture
def q4_1(tmp_path: Path, save_llama: Save, write_gguf: Save) -> GGUFCheckpoint:
    return GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", save_llama(tmp_path / "hf"), "Q4_1"))


def test_a_package_of_q4_1_keeps_its_grid_in_4_bits(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    manifest = export_package(q4_1, tmp_path / "package", "keep")
    assert manifest.notes == ("Stored in 8 bits, since no fast operator has their grids: Q4_1 of the embedding.",)
    assert manifest.quality is not None
    # What is left is the activations' 8 bits and a thirtieth of a step. Measured: 0.0008.
    assert manifest.quality.mean_kl_divergence < 0.005
    graph = onnx.load_model(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    products = {node.name: node for node in graph.node if node.op_type == "MatMulNBits"}
    layer = {name: node for name, node in products.items() if "layers.0" in name}
    assert {attribute.i for node in layer.values() for attribute in node.attribute if attribute.name == "bits"} == {4}
    assert all(node.input[0].endswith(".with_sums") for node in layer.values())
    # Query, key and value are one product.
    assert len([node for node in graph.node if node.op_type == "ReduceSum" and "layers.0" in node.name]) == 4


def test_products_apart_that_read_one_input_have_its_sums_once(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    """As most files of 4 bits have it: the values in more bits than queries and keys, so that the three are apart."""
    rules = (Rule(pattern=r"embed|v_proj", scheme="int8-block32"), Rule(pattern=".", scheme="keep"))
    manifest = export_package(q4_1, tmp_path / "package", Precision(name="mine", rules=rules))
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence < 0.005  # 0.0008 measured
    nodes = onnx.load_model(tmp_path / "package" / "model.onnx", load_external_data=False).graph.node
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    q, k, v = (node for name in names for node in nodes if node.name == f"{name}.output")
    assert q.input[0] == k.input[0] == f"{v.input[0]}.with_sums"


def test_who_rounds_a_source_of_4_bits_to_4_others_is_told_of_keep(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    manifest = export_package(q4_1, tmp_path / "package", "int4")
    assert "The source has a grid of its own (Q4_1): --precision keep loses less." in manifest.notes
    assert not any("keep" in note for note in export_package(q4_1, tmp_path / "int8", "int8").notes)


def test_who_puts_a_large_source_of_4_bits_into_8_is_told_what_keep_saves(
    q4_1: GGUFCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm_export.exporter._LARGE", 1000)
    saves = (
        "The source has a grid of its own (Q4_1): --precision keep takes about two thirds of the bytes, and longer to "
        "read prompts."
    )
    assert saves in export_package(q4_1, tmp_path / "int8", "int8").notes
    standard = dataclasses.replace(PRECISIONS["int8"], operators="standard")
    for precision in (standard, "fp32"):  # operators that have no 4 bits, and who wants no integers
        assert not any("keep" in note for note in export_package(q4_1, tmp_path / "other", precision).notes)
    monkeypatch.setattr("edgelm_export.exporter.weights_of_4_bits", lambda _: 400)
    assert not any("keep" in note for note in export_package(q4_1, tmp_path / "int8", "int8").notes)


def test_a_large_source_in_4_bits_keeps_them_where_nobody_says(
    q4_1: GGUFCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export_package(q4_1, tmp_path / "small").precision == "int8"
    monkeypatch.setattr("edgelm_export.exporter._LARGE", 1000)
    kept = export_package(q4_1, tmp_path / "large")
    assert (kept.precision, kept.recipe) == ("keep", export_package(q4_1, tmp_path / "asked", "keep").recipe)
    assert (
        "In the source's own 4 bits (Q4_1): --precision int8 takes half as many bytes again or more, and reads prompts "
        "faster." in kept.notes
    )
    # What finds integers by a calibration has none to find there.
    assert (
        export_package(q4_1, tmp_path / "calibrated", calibration=CalibrationOptions(max_tokens=64)).precision == "int8"
    )


def test_the_command_keeps_them_too_but_not_in_standard_operators(
    q4_1: GGUFCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm_export.exporter._LARGE", 1000)
    for options, precision in (([], "keep"), (["--operators", "standard"], "int8"), (["--precision", "int8"], "int8")):
        result = invoke("export", tmp_path / "tiny.gguf", "-o", tmp_path / "package", *options)
        assert result.exit_code == 0, result.output
        assert Manifest.load(tmp_path / "package").precision == precision


def test_where_its_own_4_bits_fail_the_check_a_large_source_goes_to_8(
    q4_1: GGUFCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm_export.exporter._LARGE", 1000)
    measure, first = exporter.measure_quality, [2.0]

    def worse(*args: Any) -> Quality:
        quality = measure(*args)
        return dataclasses.replace(quality, perplexity=quality.perplexity * (first.pop() if first else 1))

    monkeypatch.setattr("edgelm_export.exporter.measure_quality", worse)
    manifest = export_package(q4_1, tmp_path / "package")
    assert set(manifest.recipe_values("scheme")) == {"int8-block64"}
    assert "In other blocks than keep has, since a package in those was refused." in manifest.notes
    assert not any("the source's own 4 bits" in note for note in manifest.notes)


def test_such_a_package_is_read_back_and_kept_again(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    export_package(q4_1, tmp_path / "package", "keep")
    package = PackageCheckpoint(tmp_path / "package")
    assert (package.stored_type(MATRIX), package.grid(MATRIX)) == ("INT4", "int4-block32-asymmetric with offsets")
    expected = keep_grid(q4_1, MATRIX)
    assert isinstance(expected, PackedWeight)
    np.testing.assert_array_equal(package.tensor(MATRIX), unpack(expected))
    again = export_package(package, tmp_path / "again", "keep")
    assert again.quality is not None
    assert again.quality.mean_kl_divergence < 0.005
    for name, shape in q4_1.config.tensor_shapes().items():
        if len(shape) == 2:
            other = PackageCheckpoint(tmp_path / "again").tensor(name)
            np.testing.assert_allclose(other, package.tensor(name), rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_grid_of_what_is_no_matrix_is_refused(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    export_package(q4_1, tmp_path / "package", "keep")
    package, norm = PackageCheckpoint(tmp_path / "package"), "model.norm.weight"
    source = package._checkpoint
    source._initializers[f"{norm}.scales"] = source._initializers[f"{MATRIX}.scales"]
    source._grids[norm] = source._grids[MATRIX]
    with pytest.raises(CheckpointError, match=f"{norm} laid out as this edgelm does not write it"):
        package.tensor(norm)


def test_sums_of_another_number_of_blocks_are_refused(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    export_package(q4_1, tmp_path / "package", "keep")
    package = PackageCheckpoint(tmp_path / "package")
    scales = package._checkpoint._initializers[f"{MATRIX}.scales"]
    scales.dims[0], scales.dims[1] = scales.dims[0] // 2, scales.dims[1] * 2
    with pytest.raises(CheckpointError, match=f"{MATRIX} laid out as this edgelm does not write it"):
        package.tensor(MATRIX)


def test_operators_of_the_standard_hold_it_in_8_bits(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    manifest = export_package(q4_1, tmp_path / "package", PRECISIONS["keep"].with_standard_operators())
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence < 0.005
    package = PackageCheckpoint(tmp_path / "package")
    assert package.fewest_bits == 8
    kept = keep_grid(q4_1, MATRIX)
    assert isinstance(kept, PackedWeight)
    assert np.abs(package.tensor(MATRIX) - unpack(kept)).max() < kept.scales.max() / 30


def test_an_adapter_beside_it_reads_the_input_without_the_sums(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    export_package(q4_1, tmp_path / "package", "keep")
    write_checkpoint(q4_1, tmp_path / "ckpt")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "ckpt")
    adapter = LoraConfig(lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **ADAPTERS["all"])
    get_peft_model(base, adapter).save_pretrained(tmp_path / "all")
    exported = Exported(tmp_path / "ckpt", {"keep": tmp_path / "package"}, {"all": tmp_path / "all"})
    expected, plain = merged_logits(exported, "all"), merged_logits(exported, None)
    model = with_adapters(exported, "keep", tmp_path / "exported", "all")
    missed_plain, missed = our_logits(model, None) - plain, our_logits(model, "all") - expected
    assert np.abs(expected - plain).max() > 1
    assert np.sqrt((missed**2).mean()) < 2 * np.sqrt((missed_plain**2).mean())


def test_a_prompt_and_single_tokens_give_the_same_answers_in_company(q4_1: GGUFCheckpoint, tmp_path: Path) -> None:
    export_package(q4_1, tmp_path / "package", "keep")
    model = edgelm.load(tmp_path / "package")
    config = edgelm.GenerationConfig(max_new_tokens=24, temperature=0.0)
    prompts = ["the sea", "the wind sings over the sand", "boats", "grey and blue and white"]
    alone = [model.generate(prompt, config).text for prompt in prompts]
    assert [result.text for result in model.generate_batch(prompts, config)] == alone


def test_experts_are_held_in_8_bits(tmp_path: Path, save_model: Save, write_gguf: Save) -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}
    model = save_model("mixtral", tmp_path / "hf", **experts)
    source = GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", model, "Q4_1", architecture="llama"))
    manifest = export_package(source, tmp_path / "package", "keep")
    assert manifest.quality is not None
    # Measured: 0.0056; the router chooses another expert where two are nearly alike.
    assert manifest.quality.mean_kl_divergence < 0.02
    graph = onnx.load_model(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    (bits,) = {
        attribute.i
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "QMoE" and attribute.name == "expert_weight_bits"
    }
    assert bits == 8
    moved = "Q4_1 of the embedding, Q4_1 of experts"
    assert manifest.notes[0] == f"Stored in 8 bits, since no fast operator has their grids: {moved}."
