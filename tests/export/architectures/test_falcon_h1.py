"""Falcon-H1: its multipliers in each format, and the settings of its family, and of Bamba's, that are not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from config_values import SIZES
from mamba_models import BAMBA, FALCON_H1, FALCON_H1_MULTIPLIERS
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from edgelm.errors import CheckpointError, ConfigError
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.importer import import_checkpoint
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveModel = Callable[..., PreTrainedModel]
MULTIPLIED = FALCON_H1 | FALCON_H1_MULTIPLIERS


def test_a_gguf_file_has_the_multipliers_in_its_weights(
    tmp_path: Path, save_model: SaveModel, write_gguf: Callable[..., Path]
) -> None:
    """So its config has none, and it gives the logits of the model all the same, here and in llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = save_model("falcon_h1", tmp_path / "hf", **MULTIPLIED)
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture="falcon-h1")
    ids = np.random.default_rng(0).integers(0, 320, 30).tolist()
    with torch.no_grad():
        expected_TV = model(torch.tensor([ids])).logits[0].numpy()
    with GGUFCheckpoint(path) as checkpoint:
        (logits_TV,) = reference_logits(checkpoint, [ids])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)
    options = {"logits_all": True, "n_threads": 1, "verbose": False, "flash_attn": False, "n_ctx": 64}
    types = dict.fromkeys(("type_k", "type_v"), llama_cpp.GGML_TYPE_F32)
    llama = llama_cpp.Llama(str(path), **options, **types)
    llama.eval(ids)
    np.testing.assert_allclose(llama.scores[: len(ids)], expected_TV, rtol=0, atol=1e-4)  # 2e-6 measured
    llama.close()


def test_an_import_rounds_no_weight_for_a_multiplier(tmp_path: Path, save_model: SaveModel) -> None:
    save_model("falcon_h1", tmp_path / "hf", dtype=torch.bfloat16, **MULTIPLIED)
    import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    source, ours = HuggingFaceCheckpoint(tmp_path / "hf"), HuggingFaceCheckpoint(tmp_path / "ours")
    assert ours.config == source.config
    for name in ours.config.tensor_shapes():
        assert ours.stored_type(name) == "BF16"
        np.testing.assert_array_equal(ours.tensor(name), source.tensor(name), err_msg=name)


def test_a_folder_of_mlx_lm_is_refused(tmp_path: Path, save_model: SaveModel) -> None:
    """Its config has the multipliers that are in its weights; its convolutions are what tells it apart."""
    save_model("falcon_h1", tmp_path / "hf", **MULTIPLIED)
    path = tmp_path / "hf/model.safetensors"
    tensors = load_file(path)
    turned = {name: tensor.swapaxes(1, 2) for name, tensor in tensors.items() if "conv1d.weight" in name}
    save_file(tensors | {name: np.ascontiguousarray(tensor) for name, tensor in turned.items()}, path)
    with pytest.raises(CheckpointError, match=r"mamba\.conv1d\.weight is \[160, 4, 1\] instead of \[160, 1, 4\]"):
        HuggingFaceCheckpoint(tmp_path / "hf")


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a norm before the gate": (
        "falcon_h1",
        {"mamba_rms_norm": True, "mamba_norm_before_gate": True},
        "mamba_norm_before_gate is True; supported is false, where mamba_rms_norm is true",
    ),
    "a bias behind Mamba": ("falcon_h1", {"projectors_bias": True}, "projectors_bias is True; supported is false"),
    "a head times zero": (
        "falcon_h1",
        {"lm_head_multiplier": 0.0},
        r"lm_head_multiplier is 0\.0; supported is a number above 0",
    ),
    "biases of what is multiplied before": (
        "falcon_h1",
        {"attention_in_multiplier": 2.0, "attention_bias": True},
        r"attention_in_multiplier is 2\.0; supported is 1, where attention_bias is true",
    ),
    "a multiplier below zero": (
        "falcon_h1",
        {"mlp_multipliers": [1.0, -1.0]},
        r"multiplier mlp_down is -1\.0; it must be a number from 2 \*\* -64 to 2 \*\* 64",
    ),
    "four multipliers": (
        "falcon_h1",
        {"ssm_multipliers": [1.0] * 4},
        r"ssm_multipliers is \[1\.0, 1\.0, 1\.0, 1\.0\]; it must be a list of 5 numbers",
    ),
    "a name for a multiplier": (
        "falcon_h1",
        {"ssm_multipliers": ["a"] * 5},
        "ssm_multipliers is 'a'; it must be a number",
    ),
    "another activation in Falcon-H1": (
        "falcon_h1",
        {"hidden_act": "gelu"},
        "hidden_act is 'gelu'; beside Mamba supported is 'silu'",
    ),
    "another activation in Bamba": ("bamba", BAMBA | {"hidden_act": "relu"}, "hidden_act is 'relu'; beside Mamba"),
    "a name for layers": ("bamba", {"attn_layer_indices": "all"}, "attn_layer_indices is 'all'; it must be a list"),
    "no layer with attention": ("bamba", {}, "layer_types has 'mamba2' alone; one layer with attention"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_settings_that_are_not_supported_are_refused(case: str) -> None:
    model_type, changes, message = ERRORS[case]
    with pytest.raises((CheckpointError, ConfigError), match=message):
        ARCHITECTURES[model_type].to_model_config({**SIZES, "num_key_value_heads": 2, **changes})
