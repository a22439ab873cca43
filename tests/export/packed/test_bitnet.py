"""BitNet: weights of -1, 0 and 1, packed or still in floats, and norms that stand before the last projections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from make_tiny_model import CONFIG, make_checkpoint
from package_logits import distance
from quantized_folders import say_quantized
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm.runtime.session import DecoderSession
from edgelm_export.exporter import export_package
from edgelm_export.quantize.channel_scales import ScaledCheckpoint
from edgelm_export.quantize.folding import choose_scales
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveModel = Callable[..., PreTrainedModel]
IDS = np.random.default_rng(0).integers(3, 320, 40).tolist()
AUTO = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = AUTO | {"quantization_mode": "online"}
Tensors = dict[str, torch.Tensor]


def pack(folder: Path, *, divides: bool) -> Tensors:
    """Pack a saved model as transformers does, and return what each matrix stands for."""
    # PyTorch's compiler, for functions beside this one, would take four seconds to be imported.
    with patch.object(torch, "compile", lambda function: function):
        from transformers.integrations.bitnet import pack_weights

    tensors, stands_for = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().mean()
        signs = (tensors[name] / scale).round().clamp(-1, 1)
        stands_for[name] = signs * scale
        tensors[name] = pack_weights(signs.clone())
        tensors[f"{name}_scale"] = (1 / scale if divides else scale).reshape(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return stands_for


@pytest.mark.parametrize("settings", [AUTO, {"quant_method": "bitnet"}, ONLINE], ids=["auto", "plain", "online"])
def test_a_bitnet_is_read_as_what_it_stands_for_and_kept_on_two_bits(
    settings: dict[str, Any], tmp_path: Path, save_model: SaveModel
) -> None:
    save_model("bitnet", tmp_path / "hf", intermediate_size=128, pad_token_id=0)
    stands_for = load_file(tmp_path / "hf" / "model.safetensors")
    if settings is ONLINE:
        for name in [name for name in stands_for if name.endswith("_proj.weight")]:
            scale = stands_for[name].abs().mean()
            stands_for[name] = (stands_for[name] / scale).round().clamp(-1, 1) * scale
    else:
        stands_for |= pack(tmp_path / "hf", divides=settings is not AUTO)
    say_quantized(tmp_path / "hf", settings)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "hf")
    for name in checkpoint.config.tensor_shapes():
        np.testing.assert_allclose(checkpoint.tensor(name), stands_for[name].numpy(), rtol=1e-6, atol=0, err_msg=name)
    assert checkpoint.source["tensor_types"] == ["BitNet", "F32"]
    blocks = checkpoint.quantized_blocks("model.layers.0.mlp.down_proj.weight")
    assert blocks is not None
    assert (blocks.bits, blocks.zero_points) == (2, None)

    export_package(checkpoint, tmp_path / "package", "keep", name="tiny")
    session = DecoderSession(tmp_path / "package", ModelConfig.load(tmp_path / "package"))
    (expected_TV,) = reference_logits(checkpoint, [IDS])
    got_TV = session.forward(IDS, session.new_cache(), all_logits=True)
    # MatMulNBits rounds activations to 8 bits, as BitNet itself does. Measured: 0.020.
    assert distance(got_TV, expected_TV) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (AUTO | {"use_rms_norm": True}, "quantization_config's use_rms_norm is True, which is not supported"),
        (
            ONLINE | {"modules_to_not_convert": ["q_proj"]},
            r"modules_to_not_convert is \['q_proj'\], which is not supported",
        ),
    ],
)
def test_a_bitnet_of_another_form_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, save_model: SaveModel
) -> None:
    save_model("bitnet", tmp_path, pad_token_id=0)
    say_quantized(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceCheckpoint(tmp_path)


def test_a_matrix_with_more_scales_than_one_is_refused(tmp_path: Path, save_model: SaveModel) -> None:
    save_model("bitnet", tmp_path, pad_token_id=0)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(2)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    say_quantized(tmp_path, AUTO)
    with pytest.raises(CheckpointError, match=r"mlp.up_proj.weight_scale is \[2\] instead of one number"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize("way", ["smooth", "awq"])
def test_scales_of_channels_stand_at_the_norms_before_the_last_projections(way: str, tmp_path: Path) -> None:
    config = ModelConfig.from_dict(CONFIG.to_dict() | {"sub_norms": True, "norm_placement": "pre"})
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    scales = choose_scales(checkpoint, way, PRECISIONS["int8"].rules, [IDS], lambda *_: None)
    assert {"model.layers.0.self_attn.attn_sub_norm", "model.layers.0.mlp.ffn_sub_norm"} <= scales.divisors.keys()
    changed = ScaledCheckpoint(checkpoint, scales)
    (expected_TV,), (logits_TV,) = (reference_logits(each, [IDS]) for each in (checkpoint, changed))
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4 * np.abs(expected_TV).max())
