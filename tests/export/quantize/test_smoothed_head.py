"""The head of a smoothed package: its inputs are divided where its weights, often the embedding's, are multiplied."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from make_tiny_model import CONFIG, WIDE, make_checkpoint
from safetensors.numpy import load_file, save_file

import edgelm
from edgelm.architecture.quantization_recipe import Precision, Rule
from edgelm.errors import CheckpointError
from edgelm.package.manifest import Manifest, describe_file
from edgelm_export.checkpoints.checkpoint import Checkpoint, QuantizedBlocks
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.tensor_map import EMBEDDING, HEAD_FACTORS, head_name
from edgelm_export.exporter import export_package
from edgelm_export.quantize import folding, smoothed_head
from edgelm_export.quantize.channel_scales import ChannelScales, PlainHead, ScaledCheckpoint, ScaledHead
from edgelm_export.quantize.smoothed_head import _rounded_inputs, better_divisors
from edgelm_export.reference import model as reference
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

SMOOTHED = Precision(rules=(Rule(pattern=".", scheme="int8-block64"),), transforms=("smooth",))
IDS = list(range(3, 40))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> HuggingFaceCheckpoint:
    return with_large_channels(tmp_path / "checkpoint", tied=request.param, times=8)


def with_large_channels(folder: Path, *, tied: bool, times: float) -> HuggingFaceCheckpoint:
    """Make a model whose last norm makes three channels so many times as large as the others."""
    make_checkpoint(folder, dataclasses.replace(WIDE, tie_word_embeddings=tied))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:3] *= times
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return HuggingFaceCheckpoint(folder)


@pytest.fixture
def _whatever_it_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scales be taken without trying what they cost."""
    monkeypatch.setattr(folding, "better_divisors", lambda _checkpoint, _recipe, divisors_D, *_: divisors_D)


def test_a_head_that_reads_a_few_large_channels_loses_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = with_large_channels(tmp_path / "checkpoint", tied=False, times=50)
    manifests = [export_package(checkpoint, tmp_path / "smoothed", SMOOTHED)]
    monkeypatch.setattr(ScaledCheckpoint, "head_divisors", None)
    manifests.append(export_package(checkpoint, tmp_path / "other", SMOOTHED))
    smoothed, other = (one.quality.mean_kl_divergence for one in manifests if one.quality is not None)
    assert smoothed < 0.93 * other  # measured: 0.86


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_whose_rows_would_lose_more_is_left_alone(tied: bool, tmp_path: Path) -> None:
    checkpoint = with_large_channels(tmp_path / "checkpoint", tied=tied, times=50)
    divisors_D = np.where(np.arange(64) < 3, 2.65, 0.38).astype(np.float32)
    recipe = SMOOTHED.recipe(checkpoint.config)
    taken = better_divisors(checkpoint, recipe, divisors_D, IDS, run(checkpoint)[0])
    assert (taken is None) == tied


@pytest.mark.parametrize(("loss", "is_taken"), [(0.86, False), (0.84, True)])
def test_scales_have_to_lose_clearly_less_than_none(
    loss: float, is_taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = with_large_channels(tmp_path / "checkpoint", tied=False, times=8)
    losses = iter((1.0, loss))  # without scales, and with them
    monkeypatch.setattr(smoothed_head, "mean_divergence", lambda *_: next(losses))
    ones_D = np.ones(64, np.float32)
    taken = better_divisors(checkpoint, SMOOTHED.recipe(checkpoint.config), ones_D, IDS, run(checkpoint)[0])
    assert (taken is not None) == is_taken


def test_inputs_are_rounded_by_blocks_the_last_of_which_may_be_short() -> None:
    inputs_TD = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    inputs_TD[:, :64] *= 9
    inputs_TD[1, 64:] = 0
    got_TD = _rounded_inputs(inputs_TD, 64)
    for block in (slice(0, 64), slice(64, 70)):
        steps_T1 = np.abs(inputs_TD[:, block]).max(1, keepdims=True) / 127
        assert (np.abs(got_TD[:, block] - inputs_TD[:, block]) <= 0.501 * steps_T1).all()


@pytest.mark.usefixtures("_whatever_it_loses")
def test_the_graph_divides_what_the_head_reads_and_rows_of_the_embedding(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    export_package(checkpoint, tmp_path / "package", SMOOTHED)
    graph = onnx.load(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    divided = [node.output[0] for node in graph.node if HEAD_FACTORS in node.input]
    tied = checkpoint.config.tie_word_embeddings
    assert divided == ["model.embed_tokens.divided"] * tied + ["lm_head.input"]


@pytest.mark.usefixtures("_whatever_it_loses")
def test_embeddings_of_texts_are_those_of_the_source(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    export_package(checkpoint, tmp_path / "package", SMOOTHED)
    session = edgelm.load(tmp_path / "package").session
    got_TD = session.forward_hidden(IDS, session.new_cache())
    wanted_TD = reference.last_normed(checkpoint, run(checkpoint))[0]
    assert np.linalg.norm(got_TD - wanted_TD) < 0.06 * np.linalg.norm(wanted_TD)  # measured: 0.04


def run(checkpoint: Checkpoint) -> list[np.ndarray]:
    """Return what leaves the last layer for IDS."""
    config = checkpoint.config
    tables, hidden = reference.position_tables(config, [IDS]), reference.embed(checkpoint, [IDS])
    for layer in range(config.num_hidden_layers):
        weights = dict(reference.layer_weights(checkpoint, layer))
        hidden = [reference.run_layer(config, layer, weights, hidden_TD, tables) for hidden_TD in hidden]
    return hidden


@pytest.mark.usefixtures("_whatever_it_loses")
def test_a_package_is_read_back_with_its_divisors_apart(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    export_package(checkpoint, tmp_path / "package", SMOOTHED)
    with PackageCheckpoint(tmp_path / "package") as package:
        assert package.head_divisors is not None
        for name in {head_name(checkpoint.config), EMBEDDING}:
            wanted, got = checkpoint.tensor(name), package.tensor(name)
            assert np.linalg.norm(got - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.usefixtures("_whatever_it_loses")
@pytest.mark.parametrize("precision", ["keep", SMOOTHED])
def test_a_head_that_is_quantized_again_stays_on_its_grid(
    checkpoint: HuggingFaceCheckpoint, precision: str | Precision, tmp_path: Path
) -> None:
    export_package(checkpoint, tmp_path / "package", SMOOTHED)
    package = PackageCheckpoint(tmp_path / "package")
    export_package(package, tmp_path / "again", precision)
    again, name = PackageCheckpoint(tmp_path / "again"), head_name(checkpoint.config)
    first, second = package.quantized_blocks(name), again.quantized_blocks(name)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(second.values, first.values)
    np.testing.assert_allclose(second.scales, first.scales, rtol=3e-7)
    np.testing.assert_allclose(again.tensor(name), package.tensor(name), rtol=1e-6)


@pytest.mark.usefixtures("_whatever_it_loses")
@pytest.mark.parametrize("made_of_it", ["fp32", Precision(rules=SMOOTHED.rules, transforms=("rotate",))])
def test_a_head_of_floats_or_other_channels_loses_its_divisors(
    checkpoint: HuggingFaceCheckpoint, made_of_it: str | Precision, tmp_path: Path
) -> None:
    export_package(checkpoint, tmp_path / "package", SMOOTHED)
    package = PackageCheckpoint(tmp_path / "package")
    manifest = export_package(package, tmp_path / "other", made_of_it)
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence < 0.01
    assert PackageCheckpoint(tmp_path / "other").head_divisors is None
    if made_of_it == "fp32":
        for name in {head_name(checkpoint.config), EMBEDDING}:
            stored = PackageCheckpoint(tmp_path / "other").tensor(name)
            np.testing.assert_array_equal(stored, package.tensor(name))


def test_a_plain_heads_grid_is_not_that_of_a_divided_one(checkpoint: HuggingFaceCheckpoint) -> None:
    class Divided(CheckpointView):
        head_divisors = np.ones(64, np.float32)

        def quantized_blocks(self, name: str, rows: slice = slice(None)) -> QuantizedBlocks:
            return QuantizedBlocks(bits=8, block_size=64, values=np.zeros((1, 1, 64), np.int8), scales=np.ones((1, 1)))

    divided, name = Divided(checkpoint), head_name(checkpoint.config)
    plain, scaled = PlainHead(divided), ScaledCheckpoint(divided, ChannelScales(WIDE, {}, np.ones(64, np.float32)))
    assert (plain.head_divisors, plain.quantized_blocks(name), scaled.quantized_blocks(name)) == (None, None, None)
    assert plain.quantized_blocks("other") is not None
    assert ScaledHead(divided).quantized_blocks(name) is not None


@pytest.mark.usefixtures("_whatever_it_loses")
@pytest.mark.parametrize("factors", [np.zeros(64, np.float32), np.ones(63, np.float32), np.ones(64, np.float16)])
def test_factors_that_are_none_are_refused(
    factors: np.ndarray, checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    export_package(checkpoint, tmp_path / "package", SMOOTHED)
    path = tmp_path / "package" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (stored,) = (one for one in model.graph.initializer if one.name == HEAD_FACTORS)
    stored.CopyFrom(onnx.numpy_helper.from_array(factors, HEAD_FACTORS))
    path.write_bytes(model.SerializeToString())
    manifest = Manifest.load(path.parent)
    files = tuple(describe_file(path) if entry.path == path.name else entry for entry in manifest.files)
    dataclasses.replace(manifest, files=files).save(path.parent)
    with pytest.raises(CheckpointError, match=r"has lm_head\.factors laid out as this edgelm does not write it"):
        _ = PackageCheckpoint(path.parent).head_divisors


@pytest.mark.usefixtures("_whatever_it_loses")
def test_a_head_in_floats_is_left_alone(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    rules = (Rule(pattern="embed_tokens|lm_head", scheme="fp16"), *SMOOTHED.rules)
    export_package(checkpoint, tmp_path / "package", dataclasses.replace(SMOOTHED, rules=rules))
    graph = onnx.load(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    assert HEAD_FACTORS not in {one.name for one in graph.initializer}


def test_scales_that_were_chosen_twice_are_of_the_first_choice() -> None:
    first, second = (ChannelScales(CONFIG, {}, np.full(32, size, np.float32)) for size in (2, 3))
    assert second.times(first).head_divisors is first.head_divisors
    assert second.times(ChannelScales(CONFIG, {})).head_divisors is second.head_divisors
