"""Packages that keep their keys and values in int8, against a numpy forward pass that rounds them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import invoke
from make_tiny_model import CONFIG, make_checkpoint
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

import edgelm
from edgelm import ChatSession, GenerationConfig, LanguageModel
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.session import DecoderSession
from edgelm.testing import tiny_model_path
from edgelm_export.exporter import export_package
from edgelm_export.kv_cache_scales import _sizes, measure_scales
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.reference import model as reference
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

IDS = np.random.default_rng(0).integers(3, 320, 200).tolist()
ANSWER = GenerationConfig(max_new_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("int8") / "tiny")


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "package"
    result = invoke("export", checkpoint, "-o", folder, "--precision", "fp32", "--kv-cache", "int8")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def model(package: Path) -> LanguageModel:
    return edgelm.load(package, edgelm.SessionOptions(threads=1))


@pytest.fixture
def rounding(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the numpy forward pass round keys and values as the package's scales say."""
    graph = onnx.load_model(package / "model.onnx", load_external_data=False).graph
    scales = {each.name: numpy_helper.to_array(each) for each in graph.initializer if each.name.endswith("_scale")}
    attention, rotate, linear = reference._attention, reference.rotate, reference.linear
    layers: list[int] = []

    def rounded(x: NDArray[Any], part: str) -> NDArray[np.float32]:
        scale = scales[f"model.layers.{layers[-1]}.self_attn.{part}_scale"]  # [K=1, 1, H]
        return np.clip(np.rint(x / scale[0]), -128, 127).astype(np.float32) * scale[0]

    def attention_of(this: Any, *rest: Any) -> Any:
        layers.append(this.number)
        return attention(this, *rest)

    def rotated(x_NTH: NDArray[Any], *tables: Any) -> Any:
        turned = rotate(x_NTH, *tables)
        return rounded(turned, "k") if len(x_NTH) == 1 else turned  # one key head, two of queries

    def projected(weights: Any, name: str, x: NDArray[Any]) -> Any:
        y = linear(weights, name, x)
        return rounded(y, "v") if name == "self_attn.v_proj" else y

    monkeypatch.setattr(reference, "_attention", attention_of)
    monkeypatch.setattr(reference, "rotate", rotated)
    monkeypatch.setattr(reference, "linear", projected)


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("size", [200, 64, 1])
def test_the_logits_are_those_of_keys_and_values_on_their_grids(
    model: LanguageModel, checkpoint: Path, size: int
) -> None:
    expected_TV = next(reference.reference_logits(HuggingFaceCheckpoint(checkpoint), [IDS]))
    cache = model.session.new_cache()
    chunks = [
        model.session.forward(IDS[start : start + size], cache, all_logits=True).copy()
        for start in range(0, len(IDS), size)
    ]
    # float32 sums in another order: 5e-6 measured. A number between two steps could fall either way, which is 5e-3;
    # int8 itself moves these logits by up to 0.4.
    np.testing.assert_allclose(np.concatenate(chunks), expected_TV, atol=0.02)


def test_keys_fit_their_scales_at_places_that_the_calibration_did_not_reach() -> None:
    # One token again and again: the states of all places are equal, and their keys but for how far they are turned.
    scales = measure_scales(tiny_model_path(), [[65] * 8])
    session = DecoderSession(tiny_model_path(), ModelConfig.load(tiny_model_path()))
    cache = session.new_cache()
    session.forward([65] * 400, cache)
    for buffer, scale in zip(cache.buffers, scales, strict=True):
        assert (np.abs(buffer[0, :, :400]) <= 127 * scale).all()


def test_values_reach_the_127th_step_but_for_a_margin_and_a_channel_of_zeros_has_a_scale(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.v_proj.weight"][3] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    export_package(HuggingFaceCheckpoint(folder), tmp_path / "package", "fp32")
    session = DecoderSession(tmp_path / "package", ModelConfig.load(tmp_path / "package"))
    cache = session.new_cache()
    session.forward(IDS[:2], cache)
    wanted = 1.05 * np.abs(cache.buffers[1][0, :, :2]).max(1) / 127
    wanted[:, 3] = 1e-8

    scales = measure_scales(tmp_path / "package", [IDS[:2]])

    np.testing.assert_allclose(scales[1][:, 0], wanted, rtol=1e-5)


def test_of_a_key_what_turns_counts_as_long_as_its_pair_and_the_rest_as_large_as_it_is() -> None:
    half = dataclasses.replace(CONFIG, partial_rotary_factor=0.5, layers_without_rope=(1,))
    vector = np.zeros((1, 1, 16), np.float32)
    # Of 8 dimensions that turn, 0 and 8 are a pair in the graph, which fills each half up to 8.
    vector[..., [0, 4, 8, 12]] = [3, -7, -4, 9]
    turned, still = np.abs(vector), np.abs(vector)
    turned[..., [0, 8]] = 5
    for buffer, wanted in enumerate((turned, still, still, still)):
        np.testing.assert_array_equal(_sizes(half, buffer, vector.copy()), wanted)


def test_scales_are_for_the_largest_of_each_channel_in_all_texts() -> None:
    texts = [list(range(3, 60)), [65] * 8]
    together, *apart = (measure_scales(tiny_model_path(), some) for some in (texts, texts[:1], texts[1:]))
    for scale, *each in zip(together, *apart, strict=True):
        np.testing.assert_array_equal(scale, np.maximum(*each))
        assert (each[0] != each[1]).any()


@pytest.mark.parametrize("precision", ["fp32", "keep"])
def test_the_scales_are_measured_on_a_text_of_ones_own_where_the_weights_take_none(
    checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    (tmp_path / "mine.txt").write_text("The sea is blue. " * 20)
    command = ["export", str(checkpoint), "-o", str(tmp_path / "package"), "--precision", precision, "--json"]
    command += ["--kv-cache", "int8", "--calibration", str(tmp_path / "mine.txt"), "--calibration-tokens", "50"]
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "Calibrated on 50 tokens of mine.txt." in json.loads(result.stdout)["notes"]


def test_the_run_that_measures_the_scales_shows_how_far_it_is(checkpoint: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    export_package(
        HuggingFaceCheckpoint(checkpoint),
        tmp_path / "package",
        PRECISIONS["fp32"].with_int8_cache(),
        calibration=CalibrationOptions(max_tokens=1100),
        progress=lambda *step: steps.append(step),
    )
    assert [step[1:] for step in steps if step[0] == "cache scales"] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_cache_takes_a_quarter_of_the_memory(model: LanguageModel) -> None:
    other = edgelm.load(tiny_model_path())
    sizes = []
    for each in (model, other):
        cache = each.session.new_cache()
        each.session.forward(IDS, cache)
        sizes.append(sum(buffer.nbytes for buffer in cache.buffers))
        assert sizes[-1] == cache.capacity * each.config.kv_bytes_per_token
    assert 4 * sizes[0] == sizes[1]
    assert {buffer.dtype for buffer in model.session.new_cache().buffers} == {np.dtype(np.int8)}
    assert 4 * PrefixCache(model.config)._block_bytes == PrefixCache(other.config)._block_bytes


def test_the_manifest_and_show_say_how_keys_and_values_are_kept(package: Path, model: LanguageModel) -> None:
    quality = model.manifest.quality
    assert quality is not None
    assert quality.mean_kl_divergence < 1e-3  # 7e-5 measured
    assert quality.greedy_agreement == quality.greedy_tokens
    assert model.manifest.recipe[0] == {"kv_cache": "int8"}
    shown = invoke("show", package).stdout
    assert "int8, 0.1 KiB per token" in shown
    assert "Keys and values are kept in int8, with a scale for each channel." in shown


def test_rows_of_a_batch_kept_beginnings_and_beams_are_as_alone(model: LanguageModel) -> None:
    model.prefixes = PrefixCache(model.config, 0)
    prompts = [IDS[:length] for length in (1, 5, 60, 130)]
    alone = [model.generate(prompt, ANSWER).token_ids for prompt in prompts]
    assert [answer.token_ids for answer in model.generate_batch(prompts, ANSWER)] == alone
    model.prefixes = PrefixCache(model.config, answers=False)
    again = [model.generate(prompts[3], ANSWER) for _ in range(2)]
    assert [answer.token_ids for answer in again] == [alone[3]] * 2
    assert again[1].usage.cached_tokens == 128
    config = ANSWER.replace(num_beams=3, logprobs=0)
    beams = [model.generate(prompts[2], config) for _ in range(2)]
    assert beams[0].token_ids == beams[1].token_ids


def test_a_saved_conversation_goes_on_with_its_int8_cache(model: LanguageModel, package: Path, tmp_path: Path) -> None:
    session = ChatSession(model)
    list(session.send("Hello", ANSWER))
    session.save(tmp_path / "chat")
    with np.load(tmp_path / "chat" / "cache.npz") as saved:
        assert saved["filled"].dtype == np.int8
    restored = KVCache.load(tmp_path / "chat" / "cache.npz", model.config, model.fingerprint)
    assert restored.token_ids == session._cache.token_ids
    for kept, was in zip(restored.buffers, session._cache.buffers, strict=True):
        np.testing.assert_array_equal(kept[:, :, : restored.length], was[:, :, : restored.length])


def test_values_in_int8_make_no_embeddings(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"pooling is 'values', and this package keeps them in int8\. Take"):
        model.embed(["The sea"])
    assert np.isfinite(model.embed(["The sea"], pooling="mean")).all()


def test_a_package_is_read_back_without_its_cache(package: Path, checkpoint: Path) -> None:
    with PackageCheckpoint(package) as read:
        assert read.config == HuggingFaceCheckpoint(checkpoint).config
        assert read.config.kv_cache == "fp32"


def test_what_cannot_be_kept_so_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    rules = [{"pattern": ".", "scheme": "fp32"}]
    recipe.write_text(json.dumps({"rules": rules, "kv_cache": "int3"}))
    result = invoke("export", checkpoint, "-o", tmp_path / "p", "--recipe", recipe)
    assert "kv_cache is 'int3'; it must be one of fp32, int8." in result.output
    mixed = ["--precision", "mixed", "--max-kl", "0.1", "--kv-cache", "int8"]
    result = invoke("export", checkpoint, *mixed)
    assert "--kv-cache int8 is not for --precision mixed." in result.output
