"""Packages in operators of the ONNX standard, in ONNX's own evaluator too; each feature is in test_decoder_graph.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import invoke
from make_tiny_model import make_checkpoint
from model_features import FEATURES, config_with
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, ExportError
from edgelm_export.exporter import export_package
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.standard_decoder import build_standard_decoder
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.model import generate

# Float32 through a few layers, in another order of sums; the largest difference seen is 1.3e-5.
TOLERANCE = 1e-4
FP32 = PRECISIONS["fp32"].with_standard_operators()
IDS = np.random.default_rng(0).integers(3, 320, 150).tolist()


def write_graph(folder: Path, config: ModelConfig) -> Path:
    """Write a graph in fp32 and its weights, beside the checkpoint that they are of."""
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", config, seed=1))
    with ExternalData(folder / "model.onnx.data") as data:
        model = build_standard_decoder(checkpoint, FP32, data)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def pytorch_logits(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        return load_checkpoint(folder / "checkpoint")(torch.tensor([ids]))[0].numpy()


@pytest.mark.parametrize(
    "name",
    ["grouped", "rope of a part of each head", "a window in one layer", "attention sinks, longrope", "as GPT-2",
     "relative positions", "norms of 1 + weight"],
)  # fmt: skip
def test_onnxs_own_evaluator_gives_the_logits_of_pytorch_with_and_without_a_past(name: str, tmp_path: Path) -> None:
    config = config_with(FEATURES[name] | {"vocab_size": 320})
    evaluator = ReferenceEvaluator(onnx.load(write_graph(tmp_path, config)))
    expected_TV = pytorch_logits(tmp_path, IDS[:30])
    names = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
    cache = [np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)] * len(names)
    for start, end in ((0, 20), (20, 29), (29, 30)):
        feeds = {f"past_key_values.{name}": part for name, part in zip(names, cache, strict=True)}
        feeds |= {"input_ids": np.array([IDS[start:end]]), "attention_mask": np.ones((1, end), np.int64)}
        logits_BTV, *cache = evaluator.run(["logits", *(f"present.{name}" for name in names)], feeds)
        np.testing.assert_allclose(logits_BTV[0], expected_TV[start:end], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["tiny", "a window in every layer", "learned positions", "relative positions"])
def test_rows_with_padding_on_the_left_have_the_logits_that_they_have_alone(name: str, tmp_path: Path) -> None:
    config = config_with(FEATURES[name])
    evaluator = ReferenceEvaluator(onnx.load(write_graph(tmp_path, config)))
    texts = [IDS[:12], IDS[40:45]]
    ids_BT, mask_BS = np.full((2, 12), 7), np.zeros((2, 12), np.int64)
    for row, text in enumerate(texts):
        ids_BT[row, -len(text) :], mask_BS[row, -len(text) :] = text, 1
    names = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
    cache = [np.zeros((2, config.num_key_value_heads, 0, config.head_dim), np.float32)] * len(names)
    for start, end in ((0, 11), (11, 12)):
        feeds = {f"past_key_values.{name}": part for name, part in zip(names, cache, strict=True)}
        feeds |= {"input_ids": ids_BT[:, start:end], "attention_mask": mask_BS[:, :end]}
        logits_BTV, *cache = evaluator.run(["logits", *(f"present.{name}" for name in names)], feeds)
        for row, text in enumerate(texts):
            here = slice(max(0, start - 12 + len(text)), end - 12 + len(text))
            expected_TV = pytorch_logits(tmp_path, text)[here]
            np.testing.assert_allclose(logits_BTV[row, -len(expected_TV) :], expected_TV, atol=TOLERANCE)


def export(folder: Path, precision: Precision) -> edgelm.LanguageModel:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", seed=1))
    export_package(checkpoint, folder / "package", precision)
    return edgelm.load(folder / "package")


def test_a_package_generates_the_tokens_of_pytorch_alone_and_in_a_batch(tmp_path: Path) -> None:
    model = export(tmp_path, FP32)
    assert model.manifest.opsets == {"": 21}
    assert model.manifest.recipe[0] == {"operators": "standard"}
    assert model.manifest.notes == ("In operators of the ONNX standard alone.",)
    config = edgelm.GenerationConfig(max_new_tokens=12, ignore_eos=True)
    prompts, transformer = [IDS[:20], IDS[30:70], IDS[80:83]], load_checkpoint(tmp_path / "checkpoint")
    expected = [generate(transformer, prompt, 12) for prompt in prompts]
    assert [list(model.generate(prompt, config).token_ids) for prompt in prompts] == expected
    assert [list(answer.token_ids) for answer in model.generate_batch(prompts, config)] == expected
    config = config.replace(speculation="prompt_lookup", exact_speculation=True)
    assert list(model.generate(prompts[1], config).token_ids) == expected[1]


def test_a_package_in_16_bits_and_one_in_8_stay_near_their_source(tmp_path: Path) -> None:
    for name in ("fp16", "int8"):
        model = export(tmp_path / name, PRECISIONS[name].with_standard_operators())
        quality = model.manifest.quality
        assert quality is not None
        assert quality.mean_kl_divergence < 0.01


def test_adapters_are_refused_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"whose attention is ONNX Runtime's\. Merge the adapter into the"):
        export(tmp_path, FP32).session.load_adapter("mine", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({"rules": PRECISIONS["int4"].rules}, "integers of 4 bits"),
        ({"kv_cache": "int8"}, "keys and values in int8"),
        ({"prefill_graph": True}, "a prefill graph"),
    ],
)
def test_what_the_standards_operators_are_not_written_for_is_refused(change: dict, lacking: str) -> None:
    with pytest.raises(ExportError, match=f"Operators of the ONNX standard are not written for {lacking}: take int8"):
        dataclasses.replace(FP32, **change)


def test_operators_that_there_are_not_are_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"operators is 'qlinear'; it must be one of onnxruntime, standard\."):
        Precision(rules=PRECISIONS["int8"].rules, operators="qlinear")


def test_the_commands_take_the_option(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint")
    source = str(tmp_path / "checkpoint")
    for command in (
        ["export", source, "--precision", "fp32", "--operators", "standard"],
        ["quantize", "checkpoint-fp32-standard", "--precision", "int8", "--operators", "standard"],
    ):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
    assert edgelm.load("checkpoint-int8-standard").manifest.recipe[0] == {"operators": "standard"}
    for excluded in (["--precision", "int4"], ["--precision", "fp32", "--kv-cache", "int8"]):
        result = invoke("export", source, "--operators", "standard", *excluded)
        assert result.exit_code == 2
        assert "Operators of the ONNX standard are not written for" in result.stderr
