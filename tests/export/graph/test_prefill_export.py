"""The prefill graph beside the decoder's: against a numpy forward pass that multiplies the same integers."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import invoke
from make_tiny_model import CONFIG, make_checkpoint
from model_features import ACROSS_TOKENS, EXPERTS, FEATURES, config_with
from numpy.typing import NDArray

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule, precision_named
from edgelm.config import ModelConfig
from edgelm.decoding.generate import prefill
from edgelm.errors import ExportError, VerificationError
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest, Quality
from edgelm.package.model_card import model_card
from edgelm.runtime.session import DecoderSession
from edgelm.runtime.session_options import SessionOptions
from edgelm_export import exporter
from edgelm_export.decoder import build_decoder
from edgelm_export.exporter import export_package
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.kv_cache_scales import keep_in_int8
from edgelm_export.prefill import build_prefill, refuse_prefill_graph
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.reference import altup as reference_altup
from edgelm_export.reference import feed_forward as reference_feed_forward
from edgelm_export.reference import linear_attention as reference_linear_attention
from edgelm_export.reference import model as reference
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_export.verification.verify import check_quality

IDS = np.random.default_rng(0).integers(3, 320, 150).tolist()
WITH_PREFILL = dataclasses.replace(PRECISIONS["fp32"], prefill_graph=True, perplexity_bound=1.5)
OTHER_HEADS = {  # whose keys and values lie otherwise
    "multi-head",
    "grouped",
    "head_dim not hidden/heads",
    "query and key norms",
    "rope of a part of each head",
    "heads that turn in part, proportionally",
}
WITHOUT = {"num_experts", "kv_lora_rank", "altup_num_inputs"}
DENSE = {name: features for name, features in FEATURES.items() if not WITHOUT & features.keys()}


def export_graphs(
    folder: Path,
    config: ModelConfig,
    precision: Precision = WITH_PREFILL,
    scales: Sequence[NDArray[np.float32]] = (),
) -> HuggingFaceCheckpoint:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", config, seed=1))
    with (
        ExternalData(folder / "model.onnx.data") as data,
        ExternalData(folder / "prefill.onnx.data", beside=data) as own,
    ):
        graphs = {"model.onnx": build_decoder(checkpoint, precision, data)}
        graphs["prefill.onnx"] = build_prefill(checkpoint, precision, own, scales)
    if scales:
        keep_in_int8(graphs["model.onnx"], scales)
    for name, graph in graphs.items():
        (folder / name).write_bytes(graph.SerializeToString())
    return checkpoint


Graphs = tuple[HuggingFaceCheckpoint, Path, DecoderSession]


@pytest.fixture(scope="module")
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """A row's checkpoint, the folder of its two graphs in floats, and a session of them, for both tests of a row."""
    folder = tmp_path_factory.mktemp("graphs")
    checkpoint = export_graphs(folder, config_with(DENSE[request.param]))
    return checkpoint, folder, DecoderSession(folder, checkpoint.config)


@pytest.fixture
def integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the numpy forward pass round weights by the row, and the inputs of all tokens but the last by the token."""

    def product(weights: Any, name: str, x_TK: NDArray[np.float32]) -> NDArray[np.float32]:
        weight_NK, rest = weights[f"{name}.weight"], x_TK[:-1]
        if re.fullmatch(r"linear_attn\.in_proj_[ab]|mamba\.(in_proj_dt|x_proj|dt_proj)", name):
            return x_TK @ weight_NK.T
        row_scales = np.abs(weight_NK).max(1, keepdims=True) / np.float32(127)
        token_scales = np.abs(rest).max(1, keepdims=True) / np.float32(127)
        rows = np.rint(weight_NK / row_scales).astype(np.int32)
        tokens = np.rint(rest / token_scales).astype(np.int32)
        exact = (tokens @ rows.T).astype(np.float32) * token_scales * row_scales.T
        y_TN = np.concatenate([exact, x_TK[-1:] @ weight_NK.T])
        bias = weights.get(f"{name}.bias")
        return y_TN if bias is None else y_TN + bias

    for module in (reference, reference_altup, reference_feed_forward, reference_linear_attention):
        monkeypatch.setattr(module, "linear", product)


@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("graphs", DENSE, indirect=True)
def test_a_last_token_meets_keys_and_values_of_integers(graphs: Graphs) -> None:
    checkpoint, _, session = graphs
    (expected_TV,) = reference.reference_logits(checkpoint, [IDS])
    cache = session.new_cache()
    logits_V = prefill(session, IDS, cache)
    # A number between two steps can fall either way, since float32 sums come in another order: 1.7e-4 of the largest
    # logit was seen. The rounding itself moves logits by 1.2e-3 and more.
    np.testing.assert_allclose(logits_V, expected_TV[-1], atol=1e-3 * np.abs(expected_TV[-1]).max())
    assert cache.token_ids == IDS


@pytest.mark.parametrize(
    "graphs", [name for name in DENSE if name in ACROSS_TOKENS.keys() | OTHER_HEADS], indirect=True
)
def test_keys_and_values_in_int8_are_those_in_floats_on_their_grids(graphs: Graphs, tmp_path: Path) -> None:
    checkpoint, folder, session = graphs
    config, caches, logits = checkpoint.config, [], []
    kept = 2 * len(config.cached_layers)  # behind them is what convolutions read, in floats
    for kv_cache in ("fp32", "int8"):
        if kv_cache == "int8":
            buffers = caches[0].buffers[:kept]
            scales = [np.maximum(np.abs(buffer[0]).max(1, keepdims=True), 1e-6) / 120 for buffer in buffers]
            decoder = onnx.load_model(folder / "model.onnx", load_external_data=False)
            keep_in_int8(decoder, scales)
            with ExternalData(tmp_path / "prefill.onnx.data") as own:
                graph = build_prefill(checkpoint, WITH_PREFILL, own, scales)
            for name, model in (("model.onnx", decoder), ("prefill.onnx", graph)):
                (tmp_path / name).write_bytes(model.SerializeToString())
            shutil.copy(folder / "model.onnx.data", tmp_path)
            session = DecoderSession(tmp_path, dataclasses.replace(config, kv_cache="int8"))
        caches.append(session.new_cache())
        for piece in (IDS[:50], IDS[50:-1]):  # the second looks back at the first
            session.read_prompt(piece, caches[-1])
        logits.append(session.forward(IDS[-1:], caches[-1])[0].copy())
    floats, integers = ([buffer[:, :, : len(IDS) - 1] for buffer in cache.buffers[:kept]] for cache in caches)
    for i, (float_BKTH, integer_BKTH, scale_K1H) in enumerate(zip(floats, integers, scales, strict=True)):
        assert integer_BKTH.dtype == np.int8
        # Half a step, float32 sums in another order; in the second layer also what the first one's rounding does.
        steps = np.abs(float_BKTH / scale_K1H - integer_BKTH)
        assert steps.max() < (0.51 if i < 2 else 16)  # 7.9 measured
    np.testing.assert_allclose(logits[1], logits[0], atol=0.1 * np.abs(logits[0]).max())  # 0.06 measured


def kilobytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process's memory from Linux")
def test_beside_int8_the_past_is_in_floats_of_one_layer_at_a_time(tmp_path: Path) -> None:
    layers, past, H = 16, 7900, 128
    config = dataclasses.replace(CONFIG, num_hidden_layers=layers, head_dim=H, max_position_embeddings=8192)
    config = dataclasses.replace(config, kv_cache="int8")
    export_graphs(tmp_path, config, scales=[np.ones((1, 1, H), np.float32)] * (2 * layers))
    session = DecoderSession(tmp_path, config)
    cache = session.new_cache()
    cache.reserve(8000)
    cache.extend([3] * past)  # as if they had been computed
    for buffer in cache.buffers:
        buffer.fill(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    session.read_prompt(IDS[:16], cache)
    floats = 4 * past * H / 1024  # of one layer's keys, or of its values
    assert kilobytes("VmHWM") - before < 16 * floats  # 6 measured, and 40 where the floats of all layers are kept


def test_what_both_graphs_read_is_on_disk_once(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, vocab_size=4096)
    export_graphs(tmp_path, config, dataclasses.replace(PRECISIONS["int8"], prefill_graph=True))
    places = [
        {tensor.name: [(entry.key, entry.value) for entry in tensor.external_data] for tensor in graph.initializer}
        for graph in (
            onnx.load(tmp_path / name, load_external_data=False).graph for name in ("model.onnx", "prefill.onnx")
        )
    ]
    shared = places[0].keys() & places[1].keys()
    rotations = {name for name in places[0] if name.startswith("model.rope.")}
    assert {"model.embed_tokens.weight", "model.embed_tokens.weight.scales", *rotations} <= shared
    assert all(places[0][name] == places[1][name] for name in shared)
    layers = sum(int(np.prod(shape)) for name, shape in config.tensor_shapes().items() if ".layers." in name)
    assert (tmp_path / "prefill.onnx.data").stat().st_size < layers + 8 * 4096  # less than a byte a weight, and pages


def test_of_the_last_layer_there_are_keys_and_values_alone(tmp_path: Path) -> None:
    export_graphs(tmp_path, CONFIG)
    graph = onnx.load(tmp_path / "prefill.onnx", load_external_data=False).graph
    names = [f"present.{i}.{part}" for i in range(CONFIG.num_hidden_layers) for part in ("key", "value")]
    assert [output.name for output in graph.output] == names
    stored = {tensor.name for tensor in graph.initializer}
    assert "model.layers.0.mlp.down_proj.weight.rows" in stored
    assert not [name for name in stored if name.startswith(("model.layers.1.mlp", "model.layers.1.self_attn.o_proj"))]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefill")
    make_checkpoint(folder / "tiny")
    options = ["--prefill-graph"]
    result = invoke("export", folder / "tiny", "-o", folder / "package", *options)
    assert result.exit_code == 0, result.output
    return folder / "package"


def test_the_package_says_how_its_prompts_are_read(package: Path) -> None:
    manifest = edgelm.load(package).manifest
    assert manifest.recipe[:2] == ({"prefill_graph": "int8-rows"}, {"transform": "smooth"})
    assert manifest.quality is not None
    after, source_after = manifest.quality.after_prefill or (0.0, 1.0)
    assert after == pytest.approx(source_after, rel=0.01)  # 0.001 measured
    shown = invoke("show", package).stdout
    row = r"prefill graph +int8-rows, \d+\.\d kB, also in memory \(--no-prefill-graph leaves it out\)"
    assert re.search(row, shown)
    assert f"behind a prompt       {after:.3f} (source {source_after:.3f})" in shown
    assert "Prompts are read by a graph of their own" in shown


def test_a_package_with_both_graphs_is_a_checkpoint_too(package: Path, tmp_path: Path) -> None:
    result = invoke("quantize", package, "-o", tmp_path / "plain", "--precision", "int8")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "plain" / "prefill.onnx").exists()
    with PackageCheckpoint(package) as read, PackageCheckpoint(tmp_path / "plain") as again:
        for name in CONFIG.tensor_shapes():
            np.testing.assert_array_equal(again.tensor(name), read.tensor(name))


def test_the_pairs_quality_can_be_computed_again(package: Path) -> None:
    result = invoke("verify", package, "--source", package.parent / "tiny")
    assert result.exit_code == 0, result.output
    assert "perplexity_after_prefill" in result.output
    assert "| perplexity behind a prompt | " in model_card(Manifest.load(package), "org/repo")


def test_quantize_adds_the_graph_and_its_name(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path))
    result = invoke("quantize", package, "--precision", "int8", "--prefill-graph")
    assert result.exit_code == 0, result.output
    assert (Library().package_path("package-int8-prefill") / "prefill.onnx").exists()


def test_a_recipe_file_asks_for_it_too(tmp_path: Path) -> None:
    recipe = {"rules": [{"pattern": ".", "scheme": "int8-block64"}], "prefill_graph": True}
    (tmp_path / "mine.json").write_text(json.dumps(recipe))
    make_checkpoint(tmp_path / "tiny")
    options = ["-o", str(tmp_path / "package"), "--recipe", str(tmp_path / "mine.json")]
    result = invoke("export", tmp_path / "tiny", *options)
    assert result.exit_code == 0, result.output
    assert edgelm.load(tmp_path / "package").manifest.recipe[0] == {"prefill_graph": "int8-rows"}


def test_keys_and_values_in_int8_have_one_scale_in_both_graphs(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "tiny"))
    precision = dataclasses.replace(WITH_PREFILL, kv_cache="int8")
    export_package(checkpoint, tmp_path / "package", precision)
    scales = [
        {tensor.name: tensor.raw_data for tensor in graph.initializer if tensor.name.endswith(("k_scale", "v_scale"))}
        for graph in (
            onnx.load(tmp_path / "package" / name, load_external_data=False).graph
            for name in ("model.onnx", "prefill.onnx")
        )
    ]
    assert scales[0] == scales[1] != {}
    folder = tmp_path / "package"
    logits = []
    for uses_both in (True, False):
        session = DecoderSession(folder, ModelConfig.load(folder), SessionOptions(prefill_graph=uses_both))
        assert session.has_prefill_graph == uses_both
        logits.append(prefill(session, IDS, session.new_cache()))
    # What 8 bits move them by; 0.03 measured.
    np.testing.assert_allclose(logits[0], logits[1], atol=0.15)


def test_the_next_attempt_measures_keys_and_values_without_the_prefill_graph_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([VerificationError("too much is lost")])

    def check(*_: Any) -> None:
        for refusal in refusals:
            raise refusal

    monkeypatch.setattr(exporter, "check_quality", check)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "tiny"))
    rules, text = (Rule(pattern=".", scheme="int8-block32"),), CalibrationOptions(max_tokens=32)
    precision = Precision(rules=rules, kv_cache="int8", prefill_graph=True)
    manifest = export_package(checkpoint, tmp_path / "package", precision, calibration=text)
    assert {"transform": "smooth"} in manifest.recipe
    assert edgelm.load(tmp_path / "package").config.kv_cache == "int8"


def test_models_that_it_is_not_written_for_are_refused(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "tiny", config_with(EXPERTS)))
    with pytest.raises(ExportError, match=r"has experts, and no prefill graph is written for it\. Export without one"):
        export_package(checkpoint, tmp_path / "package", WITH_PREFILL)
    assert not (tmp_path / "package").exists()
    stack = dataclasses.replace(CONFIG, position="learned", num_key_value_heads=2)
    config = dataclasses.replace(stack, encoder=stack, decoder_start_token_id=0)
    with pytest.raises(ExportError, match="A llama model has an encoder, and no prefill graph is written for it"):
        refuse_prefill_graph(config)


def test_mixed_precision_has_no_prefill_graph(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "tiny")
    options = ["--precision", "mixed", "--max-kl", "0.1", "--prefill-graph"]
    result = invoke("export", tmp_path / "tiny", *options)
    assert "--prefill-graph is not for --precision mixed." in result.output


def test_a_pair_that_loses_too_much_is_refused() -> None:
    quality = Quality(
        tokens=1000,
        perplexity=10.1,
        source_perplexity=10.0,
        max_logit_difference=1.0,
        mean_kl_divergence=0.01,
        top1_agreement=0.9,
        greedy_tokens=32,
        greedy_agreement=32,
        perplexity_after_prefill=10.4,
        source_perplexity_after_prefill=10.0,
    )
    message = (
        r"Behind a prompt that its prefill graph has read, the int8 package has a perplexity of 10\.40 where its "
        r"source has 10\.00: 1\.040 times, and 1\.03 is the bound\. Nothing was written\. Export it without "
        "--prefill-graph"
    )
    with pytest.raises(VerificationError, match=message):
        check_quality(quality, precision_named("int8"))
    check_quality(dataclasses.replace(quality, perplexity_after_prefill=10.2), precision_named("int8"))
