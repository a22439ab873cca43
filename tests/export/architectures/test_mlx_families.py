"""Folders that mlx-lm wrote of families whose tensors it names, or stores, otherwise than transformers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_folder import Tensors, pack_folder
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveModel = Callable[..., Any]
SETTINGS = {"bits": 8, "group_size": 32, "mode": "affine"}
W = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
PARTS = {part: part for part in W.values()}
EXPERTS = {"head_dim": 16, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 32,
    "num_key_value_heads": 4, "n_routed_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "head_dim": 64, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
LINEAR_EXPERTS = LINEAR | EXPERTS | {"head_dim": 64, "shared_expert_intermediate_size": 32}


def renamed(tensors: Tensors, part: str, other: str) -> Tensors:
    return {name.replace(part, other): tensor for name, tensor in tensors.items()}


FAMILIES: dict[str, tuple[dict[str, Any], Callable[[Tensors], Tensors]]] = {
    "mixtral": (
        {"num_local_experts": 3, "tie_word_embeddings": False},
        lambda tensors: stacked(tensors, "block_sparse_moe", {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}),
    ),
    "qwen3_moe": (
        {
            "head_dim": 16, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "mlp_only_layers": [1],
        },
        lambda tensors: stacked(tensors, "mlp", PARTS),
    ),
    "olmoe": (
        {"num_experts": 3, "num_experts_per_tok": 2, "pad_token_id": 0},
        lambda tensors: stacked(tensors, "mlp", PARTS),
    ),
    "exaone_moe": (EXPERTS, lambda tensors: renamed(stacked(tensors, "mlp", PARTS), "mlp.e_", "mlp.gate.e_")),
    "afmoe": (EXPERTS, lambda tensors: renamed(stacked(tensors, "mlp", PARTS), "switch_mlp", "experts")),
    "deepseek_v2": (LATENT, lambda tensors: stacked(tensors, "mlp", PARTS)),
    "glm4_moe_lite": (LATENT, lambda tensors: with_heads_apart(tensors)),
    "lfm2_moe": (
        {
            "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention"],
        },
        lambda tensors: {
            re.sub(r"feed_forward\.(w\d)", lambda match: f"feed_forward.{W[match[1]]}", name): tensor
            for name, tensor in stacked(tensors, "feed_forward", {ours: theirs for theirs, ours in W.items()}).items()
        },
    ),
    "granitemoeshared": (
        {"num_local_experts": 3, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
        lambda tensors: halved(tensors),
    ),
    "granitemoehybrid": (
        {
            "num_local_experts": 0, "shared_intermediate_size": 64, "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 4, "mamba_d_state": 16,
        },
        lambda tensors: {
            name: tensor.swapaxes(1, 2) if name.endswith("conv1d.weight") else tensor
            for name, tensor in halved(tensors).items()
        },
    ),
    "jamba": (
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_dt_rank": 32, "pad_token_id": 0},
        lambda tensors: {
            name: tensor.swapaxes(1, 2) if name.endswith("conv1d.weight") else tensor
            for name, tensor in tensors.items()
        },
    ),
    "laguna": (
        EXPERTS | {"num_attention_heads_per_layer": [4, 4], "shared_expert_intermediate_size": 32},
        lambda tensors: renamed(
            renamed(stacked(tensors, "mlp", PARTS), "mlp.gate.weight", "mlp.gate.proj.weight"),
            "mlp.experts.e_",
            "mlp.gate.e_",
        ),
    ),
    "qwen3_5_text": (LINEAR, lambda tensors: as_qwen3_5(tensors)),
    "qwen3_5_moe_text": (LINEAR_EXPERTS, lambda tensors: as_qwen3_5(tensors)),
    "qwen3_next": (LINEAR_EXPERTS, lambda tensors: as_qwen3_5(tensors)),
    "gpt_oss": (
        {"head_dim": 32, "num_local_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": False},
        lambda tensors: taken_apart(tensors),
    ),
    "gpt2": (
        {"n_inner": 96},
        lambda tensors: {
            name.replace("transformer.", "model."): tensor.T if ".h." in name and tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()
        },
    ),
    "gpt_neox": (
        {"tie_word_embeddings": False},
        lambda tensors: {
            name.replace("gpt_neox.layers", "model.h")
            .replace("gpt_neox.", "model.")
            .replace("embed_out", "model.embed_out"): tensor
            for name, tensor in tensors.items()
        },
    ),
}  # fmt: skip


def with_heads_apart(tensors: Tensors) -> Tensors:
    """Give both matrices of each head of latent attention tensors of their own, [N, out, in]."""
    result = {}
    for name, tensor in stacked(tensors, "mlp", PARTS).items():
        if not name.endswith(".kv_b_proj.weight"):
            result[name] = tensor
            continue
        k_NPL, v_NYL = np.split(tensor.reshape(4, -1, 32), [64], axis=1)
        stem = name.removesuffix("kv_b_proj.weight")
        result |= {f"{stem}embed_q.weight": k_NPL.swapaxes(1, 2), f"{stem}unembed_out.weight": v_NYL}
    return result


def as_qwen3_5(tensors: Tensors) -> Tensors:
    """Give norms as they are multiplied by, convolutions as [C, K, 1], and all experts one tensor."""
    result = stacked(tensors, "mlp", PARTS)
    for name, tensor in result.items():
        if name.endswith("conv1d.weight"):
            result[name] = tensor.swapaxes(1, 2)
        elif name.endswith("norm.weight") and "linear_attn" not in name:
            result[name] = tensor + 1
    return result


def halved(tensors: Tensors) -> Tensors:
    """Give the gates and ups of Granite's feed-forwards tensors of their own, but for those beside experts."""
    result = {}
    for name, tensor in tensors.items():
        if name.endswith("block_sparse_moe.input_linear.weight"):
            for part, half in zip(("gate", "up"), np.split(tensor, 2, axis=1), strict=True):
                result[name.replace("input_linear", f"switch_mlp.{part}_proj")] = half
        elif "shared_mlp" in name and not any("block_sparse_moe" in name for name in tensors):
            halves = np.split(tensor, 2) if "input_linear" in name else [tensor]
            for part, half in zip(("gate", "up") if len(halves) > 1 else ("down",), halves, strict=True):
                result[re.sub(r"shared_mlp\.\w+", f"mlp.{part}_proj", name)] = half
        else:
            result[name.replace("moe.output_linear", "moe.switch_mlp.down_proj")] = tensor
    return result


def stacked(tensors: Tensors, block: str, names: dict[str, str]) -> Tensors:
    """Put the experts of each layer into one tensor, as mlx-lm does."""
    experts: dict[str, list[NDArray[Any]]] = {}
    others = {}
    for name in sorted(tensors):
        match = re.fullmatch(rf"(model\.layers\.\d+\.{block})\.experts\.\d+\.(\w+)\.weight", name)
        if match:
            experts.setdefault(f"{match[1]}.switch_mlp.{match[2]}.weight", []).append(tensors[name])
        else:
            others[name] = tensors[name]
    for ours, theirs in names.items():
        for name in [name for name in experts if name.endswith(f".{theirs}.weight")]:
            others[name.replace(f".{theirs}.", f".{ours}.")] = np.stack(experts[name])
    return others


def taken_apart(tensors: Tensors) -> Tensors:
    """Give GPT-OSS's gates and ups tensors of their own, [E, out, in]."""
    result = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix("_bias")
        kind = "bias" if stem != name else "weight"
        if ".experts." not in name:
            result[name] = tensor
            continue
        turned = tensor if kind == "bias" else tensor.swapaxes(1, 2)
        if stem.endswith("gate_up_proj"):
            result[f"{stem.replace('gate_up_proj', 'gate_proj')}.{kind}"] = turned[:, 0::2]
            result[f"{stem.replace('gate_up_proj', 'up_proj')}.{kind}"] = turned[:, 1::2]
        else:
            result[f"{stem}.{kind}"] = turned
    return {name: np.ascontiguousarray(tensor) for name, tensor in result.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_mlx_lm_names_otherwise_are_read(save_model: SaveModel, tmp_path: Path, family: str) -> None:
    changes, as_mlx = FAMILIES[family]
    save_model(family, tmp_path / "hf", **changes)
    plain = HuggingFaceCheckpoint(tmp_path / "hf")
    shutil.copytree(tmp_path / "hf", tmp_path / "mlx")
    path = tmp_path / "mlx" / "model.safetensors"
    save_file({name: np.ascontiguousarray(t) for name, t in as_mlx(load_file(path)).items()}, path)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "mlx")
    for name in plain.config.tensor_shapes():
        reach = 2e-7 if name.endswith("norm.weight") and family.startswith("qwen3") else 0  # of 1 + weight, rounded
        np.testing.assert_allclose(checkpoint.tensor(name), plain.tensor(name), rtol=0, atol=reach, err_msg=name)
    pack_folder(tmp_path / "mlx", SETTINGS)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "mlx")
    for name, shape in plain.config.tensor_shapes().items():
        reach = np.abs(plain.tensor(name)).max() / 100 if len(shape) == 2 else 2e-7
        np.testing.assert_allclose(checkpoint.tensor(name), plain.tensor(name), rtol=0, atol=reach, err_msg=name)
    assert checkpoint.source["tensor_types"] == ["F32", "MLX-8bit"]
    export_package(checkpoint, tmp_path / "package", "keep")
