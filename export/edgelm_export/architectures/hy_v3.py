"""Hy3 (295B-A21B): a Qwen3 with experts scored by sigmoids beside a shared one, behind a first layer without."""

from __future__ import annotations

from edgelm_export.architectures import sigmoid_experts
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.tensor_map import TensorLayout

_MLP = "model.layers.{i}.mlp"
_NAMES = {
    f"{_MLP}.gate": f"{_MLP}.router.gate",
    f"{_MLP}.gate.e_score_correction_bias": f"{_MLP}.expert_bias",
    **{f"{_MLP}.shared_experts.{part}_proj": f"{_MLP}.shared_mlp.{part}_proj" for part in ("gate", "up", "down")},
}


HY_V3 = Architecture(
    model_type="hy_v3",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 11158840.0,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 192,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.826,
    },
    renamed={
        "n_routed_experts": "num_experts",
        "n_shared_experts": "num_shared_experts",
        "routed_scaling_factor": "router_scaling_factor",
    },
    read_config=sigmoid_experts.to_model_config,
    features={"qk_norm": True},
    layout=TensorLayout(names=_NAMES, has_more_layers=True),
    gguf=None,
)
