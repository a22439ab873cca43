"""Calibration end to end: text in, layers quantized one after the other, folded, resumed, in the package."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import WIDE, make_checkpoint
from safetensors.numpy import load_file, save_file

import edgelm
from edgelm.architecture import quantization_recipe
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule, scheme_for
from edgelm.architecture.quantization_scheme import Scheme, parse_scheme
from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm.package.manifest import Quality
from edgelm_export import exporter
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, QuantizedBlocks
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.exporter import export_package
from edgelm_export.preparation import prepared
from edgelm_export.quantize import calibration as calibration_module
from edgelm_export.quantize import folding, in_passing
from edgelm_export.quantize.calibration import calibrate, calibration_name
from edgelm_export.quantize.calibration_text import CalibrationOptions, CalibrationText, calibration_sequences
from edgelm_export.quantize.channel_scales import CHANNEL_SCALES_FILE, ScaledCheckpoint
from edgelm_export.quantize.folding import SmoothQuant, choose_scales
from edgelm_export.quantize.gptq import quantize_gptq
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.in_passing import LayerInPassing
from edgelm_export.quantize.keep import as_blocks
from edgelm_export.quantize.packed import unpack
from edgelm_export.quantize.prepared import save_layer
from edgelm_export.quantize.rotation import RotatedCheckpoint
from edgelm_export.quantize.statistics import InputStatistics
from edgelm_export.quantize.stored import quantize
from edgelm_export.reference.model import embed, layer_weights, position_tables, reference_logits, run_layer
from edgelm_export.reference.weights import ObservedWeights
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_export.sources.text_tools import text_tools
from edgelm_export.verification import verify

INT4_SCHEME = Scheme(bits=4, block_size=32, symmetric=True, method="gptq")
INT4 = Precision(rules=(Rule(pattern="embed", scheme="int8-block32"), Rule(pattern=".", scheme="int4-block32-gptq")))


def silent(*_: object) -> None:
    pass


@pytest.fixture
def checkpoint(tmp_path: Path) -> HuggingFaceCheckpoint:
    return HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", WIDE))


def sequences_of(checkpoint: HuggingFaceCheckpoint, tokens: int = 600) -> list[list[int]]:
    tokenizer, template = text_tools(checkpoint)
    return calibration_sequences(CalibrationOptions(max_tokens=tokens), tokenizer, template, checkpoint.config)


def logits(checkpoint: object, ids: Sequence[int]) -> np.ndarray:
    (logits_TV,) = reference_logits(checkpoint, [list(ids)])  # type: ignore[arg-type]
    return logits_TV


def test_gptq_brings_the_package_nearer_to_its_source_than_the_search(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    searched = Precision(rules=(INT4.rules[0], Rule(pattern=".", scheme="int4-block32")))
    plain = export_package(checkpoint, tmp_path / "plain", searched)
    calibrated = export_package(checkpoint, tmp_path / "gptq", INT4, calibration=CalibrationOptions(max_tokens=2048))
    assert plain.quality is not None
    assert calibrated.quality is not None
    # Measured: 0.35 of it.
    assert calibrated.quality.mean_kl_divergence < 0.6 * plain.quality.mean_kl_divergence
    assert calibrated.notes == ("Calibrated on 2048 tokens of the bundled text.",)
    sizes = [sum(entry.size for entry in manifest.files if "data" in entry.path) for manifest in (plain, calibrated)]
    assert sizes[0] == sizes[1]
    assert edgelm.load(tmp_path / "gptq").generate("The", edgelm.GenerationConfig(max_new_tokens=3)).text is not None


def observed(config: ModelConfig, weights: Mapping[str, np.ndarray], ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Run layer 0 alone, and return what its projections meet."""
    met: dict[str, np.ndarray] = {}
    hidden = np.random.default_rng(0).standard_normal((len(ids), config.hidden_size)).astype(np.float32)
    run_layer(config, 0, ObservedWeights(weights, met.__setitem__), hidden, position_tables(config, [ids]))
    return met


def test_a_projection_is_quantized_for_what_those_before_it_in_its_layer_make_of_the_text(
    checkpoint: HuggingFaceCheckpoint,
) -> None:
    config, ids, met = checkpoint.config, list(range(3, 90)), {}
    scheme = parse_scheme("int4-block32-gptq")
    source = dict(layer_weights(checkpoint, 0))
    inputs = observed(config, source, ids)
    hidden = np.random.default_rng(0).standard_normal((len(ids), config.hidden_size)).astype(np.float32)
    passing = LayerInPassing(source, inputs, lambda module: scheme, np.zeros_like(hidden))
    quantize = passing.weights.observe
    passing.weights.observe = lambda module, x: (met.setdefault(module, x), quantize(module, x))
    output = run_layer(config, 0, passing.weights, hidden, position_tables(config, [ids]))

    finished = {**source, **{name: unpack(packed) for name, packed in passing.packed.items()}}
    assert finished.keys() - passing.packed.keys() == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    for module, wanted in observed(config, finished, ids).items():
        np.testing.assert_array_equal(met[module], wanted)
    np.testing.assert_array_equal(output, run_layer(config, 0, finished, hidden, position_tables(config, [ids])))
    # q, k and v are one matrix to the quantizer, whose rows do not know of each other.
    statistics = InputStatistics.of(inputs["self_attn.k_proj"], inputs["self_attn.k_proj"])
    alone = unpack(quantize_gptq(source["self_attn.k_proj.weight"], statistics, scheme))
    np.testing.assert_array_equal(finished["self_attn.k_proj.weight"], alone)


def test_the_feed_forward_makes_up_for_what_attention_lacks(
    checkpoint: HuggingFaceCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ids, told = checkpoint.config, list(range(3, 90)), list[Any]()
    random, tables = np.random.default_rng(0), position_tables(config, [ids])
    source_TD, package_TD = (random.standard_normal((len(ids), 64)).astype(np.float32) for _ in range(2))

    def run(weights: Mapping[str, np.ndarray], hidden_TD: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return what the projections meet, and what is between attention and feed-forward."""
        met: dict[str, np.ndarray] = {}
        output_TD = run_layer(config, 0, ObservedWeights(weights, met.__setitem__), hidden_TD, tables)
        return met, output_TD - met["mlp.down_proj"] @ weights["mlp.down_proj.weight"].T

    def quantize(weight: np.ndarray, statistics: InputStatistics, scheme: Scheme) -> Any:
        told.append(statistics.lacking_NK)
        return quantize_gptq(weight, statistics, scheme)

    monkeypatch.setattr(in_passing, "quantize_gptq", quantize)
    source = dict(layer_weights(checkpoint, 0))
    met_in_source, source_between_TD = run(source, source_TD)
    passing = LayerInPassing(source, met_in_source, lambda _: INT4_SCHEME, source_TD - package_TD)
    run_layer(config, 0, passing.weights, package_TD, tables)
    met, between_TD = run({**source, **{name: unpack(packed) for name, packed in passing.packed.items()}}, package_TD)
    of_inputs, of_attention, of_gate_and_up, of_feed_forward = told
    assert (of_inputs, of_gate_and_up) == (None, None)
    # The order of float32's sums; measured: 2e-6, of values up to 20.
    for got, lacking_TD, module in (
        (of_attention, source_TD - package_TD, "self_attn.o_proj"),
        (of_feed_forward, source_between_TD - between_TD, "mlp.down_proj"),
    ):
        np.testing.assert_allclose(got, lacking_TD.T @ met[module], rtol=0, atol=1e-4)


@pytest.mark.parametrize("tokens", [0, 70])
def test_an_expert_is_quantized_for_the_tokens_that_come_to_it_here(tokens: int) -> None:
    random, name = np.random.default_rng(0), "mlp.experts.0.up_proj"
    weight, x = (random.standard_normal((rows, 64)).astype(np.float32) for rows in (16, tokens))
    in_source = random.standard_normal((40, 64)).astype(np.float32)  # others came to it there
    passing = LayerInPassing({f"{name}.weight": weight}, {name: in_source}, lambda _: INT4_SCHEME, None)
    passing.weights.observe(name, x)
    if tokens:
        wanted = quantize_gptq(weight, InputStatistics.of(x, x), INT4_SCHEME)
    else:
        wanted = quantize_alone(weight, dataclasses.replace(INT4_SCHEME, method="searched"))
    np.testing.assert_array_equal(passing.weights[f"{name}.weight"], unpack(wanted))


def test_what_a_layer_met_is_given_back_at_once(checkpoint: HuggingFaceCheckpoint) -> None:
    config, ids = checkpoint.config, list(range(3, 90))
    source = dict(layer_weights(checkpoint, 0))
    inputs = observed(config, source, ids)
    hidden = np.zeros((len(ids), config.hidden_size), np.float32)
    gc.disable()  # which would find it later, when hundreds of megabytes have piled up
    try:
        passing = LayerInPassing(source, inputs, lambda _: parse_scheme("int4-block32-gptq"), None)
        run_layer(config, 0, passing.weights, hidden, position_tables(config, [ids]))
        layer = weakref.ref(passing)
        del passing
        assert layer() is None
    finally:
        gc.enable()


def test_sequences_behind_each_other_do_not_see_each_other(checkpoint: HuggingFaceCheckpoint) -> None:
    config, weights = checkpoint.config, layer_weights(checkpoint, 0)
    texts = [list(range(3, 40)), list(range(50, 60))]
    hidden = embed(checkpoint, texts)
    tables = position_tables(config, texts)
    together = run_layer(config, 0, weights, np.concatenate(hidden), tables, lengths=[len(ids) for ids in texts])
    apart = np.concatenate([run_layer(config, 0, weights, hidden_TD, tables) for hidden_TD in hidden])
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5)  # the order of float32's sums; measured: 1e-6


def test_what_writes_to_the_residual_stream_makes_up_for_what_that_lacks() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, 64)).astype(np.float32)
    inputs = random.standard_normal((2000, 64)).astype(np.float32)
    lacking = (inputs @ random.standard_normal((64, 16)) * 0.1).astype(np.float32)  # all of it can be told from them
    scheme = parse_scheme("int8-block32-gptq")

    def missing(statistics: InputStatistics) -> float:
        got = inputs @ unpack(quantize_gptq(weight, statistics, scheme)).T
        return float(np.square(inputs @ weight.T + lacking - got).sum())

    # The ridge of a tenth leaves a hundredth of it. Measured: 0.009.
    plain, told = InputStatistics.of(inputs, inputs), InputStatistics.of(inputs, inputs, lacking)
    assert missing(told) < 0.02 * missing(plain)


def test_a_preset_is_calibrated_where_a_calibration_is_given(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    manifest = export_package(checkpoint, tmp_path / "package", "int4", calibration=CalibrationOptions(max_tokens=512))
    schemes = {row["scheme"] for row in manifest.recipe}
    assert schemes == {"int8-block128-shortlist", "int8-block128-gptq", "int4-block64-asymmetric-gptq"}


@pytest.mark.parametrize("transform", ["smooth", "awq"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_folding_leaves_the_logits_as_they_were(transform: str, norm: str, tmp_path: Path) -> None:
    config = dataclasses.replace(WIDE, norm=norm, attention_bias=True, mlp_bias=True)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    rules = (Rule(pattern=".", scheme="int4-block32"),)
    ids = sequences_of(checkpoint)[0][:64]
    folded = ScaledCheckpoint(checkpoint, choose_scales(checkpoint, transform, rules, sequences_of(checkpoint), silent))
    for module in ("input_layernorm", "post_attention_layernorm", "self_attn.v_proj", "mlp.up_proj"):
        for kind in ("weight", "bias") if norm == "layer" or "proj" in module else ("weight",):
            name = f"model.layers.0.{module}.{kind}"
            assert not np.array_equal(folded.tensor(name), checkpoint.tensor(name))
    # Only float32's order of sums differs. Measured: 3e-6, with logits up to 4.
    np.testing.assert_allclose(logits(folded, ids), logits(checkpoint, ids), rtol=0, atol=1e-4)


def test_smoothing_evens_out_the_sizes_of_inputs_and_weights() -> None:
    smooth = SmoothQuant()
    smooth.add(np.array([[1, -3], [2, 1]], np.float32))
    smooth.add(np.array([[-1, 4]], np.float32))
    readers = {"a": np.array([[1, 0.25], [-0.5, 0.1]], np.float32), "b": np.array([[0.2, -0.2]], np.float32)}
    # sqrt(2 / 1) and sqrt(4 / 0.25), over the square root of their product.
    expected = np.array([2**0.5, 4]) / (4 * 2**0.5) ** 0.5
    np.testing.assert_allclose(smooth.scales(readers, lambda _: None), expected, rtol=1e-6)


def test_two_transforms_fold_one_behind_the_other(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    both = Precision(rules=(Rule(pattern=".", scheme="int4-block32"),), transforms=("smooth", "awq"))
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((tmp_path / "checkpoint" / name).read_bytes())
    ids = sequences_of(checkpoint)[0][:64]
    text = CalibrationText(CalibrationOptions(max_tokens=256), tmp_path, checkpoint.config)
    with prepared(checkpoint, both, text, tmp_path, silent) as stored:
        np.testing.assert_allclose(logits(stored, ids), logits(checkpoint, ids), rtol=0, atol=1e-4)
        norm = "model.layers.1.input_layernorm"
        kept = load_file(tmp_path / CHANNEL_SCALES_FILE)[norm][0]
        divided = checkpoint.tensor(f"{norm}.weight") / kept
        smooth = choose_scales(checkpoint, "smooth", both.rules, sequences_of(checkpoint, 256), silent)
        assert not np.allclose(smooth.divisors[norm], kept)
        np.testing.assert_allclose(stored.tensor(f"{norm}.weight"), divided, rtol=1e-6)


def test_a_transform_that_somebody_adds_to_the_tables_is_folded(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization_recipe, "TRANSFORMS", ("rotate", "smooth", "awq", "mine"))
    monkeypatch.setitem(folding.CHOOSERS, "mine", SmoothQuant)
    rules = (Rule(pattern=".", scheme="int4-block32"),)
    text = CalibrationText(CalibrationOptions(max_tokens=32), tmp_path / "checkpoint", checkpoint.config)
    with prepared(checkpoint, Precision(rules=rules, transforms=("mine",)), text, tmp_path, silent) as stored:
        norm = "model.layers.1.input_layernorm.weight"
        assert not np.array_equal(stored.tensor(norm), checkpoint.tensor(norm))


def test_smoothing_alone_takes_512_tokens_and_anything_else_more(checkpoint: HuggingFaceCheckpoint) -> None:
    assert (CalibrationOptions().tokens, CalibrationOptions().for_smoothing().tokens) == (8192, 512)
    assert CalibrationOptions(max_tokens=9).for_smoothing().tokens == 9
    presets = {name for name, precision in PRECISIONS.items() if precision.only_smooths}
    assert presets == {"int8", "int8-wide"}
    assert not PRECISIONS["int8"].calibrated().only_smooths


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"final_norm": False, "layers_without_input_norm": (0,)},
    ],
)
def test_rotation_leaves_the_logits_as_they_were_and_unties_the_head(changes: dict[str, Any], tmp_path: Path) -> None:
    config = dataclasses.replace(WIDE, attention_output_bias=True, qk_norm=True, **changes)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    rotated = RotatedCheckpoint(checkpoint)
    assert not rotated.config.tie_word_embeddings
    assert rotated.hf_config["tie_word_embeddings"] is False
    assert rotated.tensor("lm_head.weight").shape == (config.vocab_size, config.hidden_size)
    ids = list(range(3, 60))
    # Measured: 4e-6, with logits up to 4.
    np.testing.assert_allclose(logits(rotated, ids), logits(checkpoint, ids), rtol=0, atol=1e-4)


def test_a_model_that_cannot_be_rotated_is_refused_with_what_it_has(tmp_path: Path) -> None:
    config = dataclasses.replace(WIDE, norm="layer", position="learned")
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    with pytest.raises(ExportError, match=r"cannot be rotated: it has layer norms, placed pre, learned positions"):
        RotatedCheckpoint(checkpoint)


def plant_massive_channel(folder: Path, config: ModelConfig) -> None:
    """Make the inputs of every attention and feed-forward 3,000 times larger in one channel, and its weights smaller.

    The model computes what it did, but a block of 8-bit activations now has one that leaves nothing to the others.
    """
    tensors = load_file(folder / "model.safetensors")
    for i in range(config.num_hidden_layers):
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            tensors[f"model.layers.{i}.{norm}.weight"][5] *= 3000
            for reader in readers:
                tensors[f"model.layers.{i}.{reader}.weight"][:, 5] /= 3000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_massive_activations_are_found_and_folded_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_WINDOWS", 4)  # one, which conftest.py makes of them, does not show the loss
    folder = make_checkpoint(tmp_path / "checkpoint", WIDE)
    plain = Precision(rules=(Rule(pattern=".", scheme="int8-block64"),), perplexity_bound=1.03)
    before = export_package(HuggingFaceCheckpoint(folder), tmp_path / "before", plain).quality
    plant_massive_channel(folder, WIDE)
    manifest = export_package(HuggingFaceCheckpoint(folder), tmp_path / "package", plain)
    assert manifest.recipe[0] == {"transform": "smooth"}
    assert "until the weights had smooth folded in" in manifest.notes[0]
    preset = export_package(HuggingFaceCheckpoint(folder), tmp_path / "preset", "int8")
    assert preset.recipe == manifest.recipe
    assert preset.notes == manifest.notes[1:] == ("Smoothed on 512 tokens of the bundled text.",)
    assert before is not None
    assert manifest.quality is not None
    # As near to its source as the model without the channel. Measured: 0.9 of its divergence.
    assert manifest.quality.mean_kl_divergence < 2 * before.mean_kl_divergence


@pytest.mark.parametrize(("ratio", "divergence"), [(1.021, 0.0), (0.99, 0.04)])
def test_wide_blocks_that_lose_too_much_are_made_narrower(
    ratio: float, divergence: float, checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, figures = exporter.measure_quality, iter([(ratio, divergence), (1.029, 0.059)])

    def measured(*arguments: Any) -> Quality:
        quality, (times, nats) = measure(*arguments), next(figures)
        return dataclasses.replace(quality, perplexity=times * quality.source_perplexity, mean_kl_divergence=nats)

    monkeypatch.setattr(exporter, "measure_quality", measured)
    manifest = export_package(checkpoint, tmp_path / "package", "int8-wide")
    assert manifest.precision == "int8-wide"
    assert manifest.recipe == ({"transform": "smooth"}, {"pattern": ".", "scheme": "int8-block64"})
    assert manifest.notes[0] == "In other blocks than int8-wide has, since a package in those was refused."


def test_a_preset_is_not_smoothed_where_that_would_change_the_model(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "_FOLDING_TOLERANCE", 0.0)
    manifest = export_package(checkpoint, tmp_path / "package", "int8-wide")
    assert manifest.recipe == ({"pattern": ".", "scheme": "int8-block64"},)
    assert manifest.notes[-1].startswith("Not smoothed: the model has a part that scales cannot be folded into")
    assert CHANNEL_SCALES_FILE not in {entry.path for entry in manifest.files}


def test_a_preset_leaves_weights_on_a_grid_where_they_are(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    first = export_package(checkpoint, tmp_path / "first", "int8-wide")
    for precision in ("int8-wide", "int8"):
        with PackageCheckpoint(tmp_path / "first") as source:
            again = export_package(source, tmp_path / precision, precision)
            assert again.recipe == tuple(row for row in PRECISIONS[precision].rows(WIDE) if "transform" not in row)
            with PackageCheckpoint(tmp_path / precision) as result:
                for name in WIDE.tensor_shapes():
                    # All but a few blocks, whose products of scale and steps float32 has rounded. Measured: 0.99.
                    assert np.mean(result.tensor(name) == source.tensor(name)) > 0.9
    assert first.recipe[0] == {"transform": "smooth"}


def test_a_calibration_that_was_stopped_goes_on_and_ends_the_same(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrate(checkpoint, INT4, sequences_of(checkpoint), tmp_path / "whole", silent)
    layers: list[int] = []
    run = calibration_module._Calibration.layer

    def stopped(self: object, layer: int, hidden: object) -> object:
        layers.append(layer)
        if layers == [0, 1]:
            raise KeyboardInterrupt
        return run(self, layer, hidden)  # type: ignore[arg-type]

    monkeypatch.setattr(calibration_module._Calibration, "layer", stopped)
    with pytest.raises(KeyboardInterrupt):
        calibrate(checkpoint, INT4, sequences_of(checkpoint), tmp_path / "parts", silent)
    again = calibrate(checkpoint, INT4, sequences_of(checkpoint), tmp_path / "parts", silent)
    assert layers == [0, 1, 1]
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        first, second = whole.quantized_blocks(name), again.quantized_blocks(name)
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.values, second.values)
        np.testing.assert_array_equal(first.scales, second.scales)


def test_what_a_recipe_leaves_in_floats_or_on_its_grid_is_stored_so_beside_gptq(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    in_floats, kept, found = (f"model.layers.{place}_proj.weight" for place in ("0.mlp.down", "1.mlp.down", "1.mlp.up"))
    own = quantize_alone(checkpoint.tensor(kept), INT4_SCHEME)

    class OnItsGrid(CheckpointView):
        def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
            return as_blocks(own) if name == kept else None

    rules = (Rule(pattern=r"\.0\.mlp\.down", scheme="fp16"), Rule(pattern=r"\.1\.mlp\.down", scheme="keep"))
    precision, source = Precision(rules=(*rules, *INT4.rules)), OnItsGrid(checkpoint)
    text = CalibrationText(CalibrationOptions(max_tokens=64), tmp_path / "checkpoint", source.config)
    recipe = precision.recipe(source.config)
    with prepared(source, precision, text, tmp_path, silent) as stored:
        as_fp16, as_kept, as_found = (
            quantize(stored, name, scheme_for(recipe, name)) for name in (in_floats, kept, found)
        )
        blocks = stored.quantized_blocks(found)
    assert isinstance(as_fp16, np.ndarray)
    assert as_fp16.dtype == np.float16
    np.testing.assert_array_equal(unpack(as_kept), unpack(own))
    np.testing.assert_array_equal(as_blocks(as_found).values, blocks.values)
    assert not np.array_equal(unpack(as_found), unpack(quantize_alone(checkpoint.tensor(found), INT4_SCHEME)))


def test_a_layer_gets_its_name_where_windows_refuses_it_for_a_moment(
    tmp_path: Path, first_rename_refused: list[str]
) -> None:
    save_layer(tmp_path, 0, {"weight": quantize_alone(np.ones((1, 32), np.float32), INT4_SCHEME)})
    assert [path.name for path in tmp_path.iterdir()] == ["layer-00000.npz"]
    assert first_rename_refused


@pytest.mark.parametrize(("name", "content"), [("layer-00001.npz", b"PK"), ("entering.npz", b"")])
def test_what_a_stopped_calibration_left_damaged_is_made_again(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = tmp_path / "results"
    calibrate(checkpoint, INT4, sequences_of(checkpoint, 32), folder, silent)
    layers = [np.load(path) for path in sorted(folder.glob("layer-*.npz"))]
    wanted = [{key: stored[key] for key in stored.files} for stored in layers]
    (folder / "layer-00001.npz").unlink()  # as if it had been stopped there
    (folder / name).write_bytes(content)

    calibrate(checkpoint, INT4, sequences_of(checkpoint, 32), folder, silent)
    for path, expected in zip(sorted(folder.glob("layer-*.npz")), wanted, strict=True):
        with np.load(path) as stored:
            np.testing.assert_equal({key: stored[key] for key in stored.files}, expected)


def test_a_calibration_of_another_text_or_config_is_another_one(checkpoint: HuggingFaceCheckpoint) -> None:
    sequences = sequences_of(checkpoint, 32)
    first = calibration_name(checkpoint, INT4, sequences)
    assert calibration_name(checkpoint, INT4, sequences_of(checkpoint, 40)) != first
    checkpoint.config = dataclasses.replace(checkpoint.config, rope_theta=500.0)  # of the same weights
    assert calibration_name(checkpoint, INT4, sequences) != first


def test_what_a_calibration_kept_is_gone_when_the_package_is_there(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    options = CalibrationOptions(max_tokens=256, cache=tmp_path / "cache")
    export_package(checkpoint, tmp_path / "package", INT4, calibration=options)
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_exports_that_calibrate_alike_leave_each_other_their_results(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    options = CalibrationOptions(max_tokens=32, cache=cache)
    text = CalibrationText(options, tmp_path / "checkpoint", checkpoint.config)
    name, found = "model.layers.1.mlp.up_proj.weight", []
    with prepared(checkpoint, INT4, text, tmp_path / "one", silent) as first:
        with prepared(checkpoint, INT4, text, tmp_path / "other", silent) as second:
            found.append(second.quantized_blocks(name))
        found.append(first.quantized_blocks(name))
    assert None not in found
    np.testing.assert_array_equal(*(blocks.values for blocks in found if blocks is not None))
    assert list(cache.iterdir()) == []


def test_a_transform_that_would_change_the_model_is_refused(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "_FOLDING_TOLERANCE", 0.0)
    smooth = Precision(rules=(Rule(pattern=".", scheme="int8-block32"),), transforms=("smooth",))
    with pytest.raises(ExportError, match="smooth would change what layer 0 computes"):
        export_package(checkpoint, tmp_path / "package", smooth)
