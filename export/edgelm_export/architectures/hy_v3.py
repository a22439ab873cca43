"""Hy3 (295B-A21B): a Qwen3 with experts scored by sigmoids beside a shared one, behind a first layer without."""

from __future__ import annotations

from typing import Any

from edgelm_export.architectures import experts, gguf_header, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

_MLP = "model.layers.{i}.mlp"
_NAMES = {
    f"{_MLP}.gate": f"{_MLP}.router.gate",
    f"{_MLP}.gate.e_score_correction_bias": f"{_MLP}.expert_bias",
    **experts.shared_expert_names(_MLP, "shared_mlp"),
}
_GGUF_NAMES = (
    experts.GGUF_NAMES
    | llama.GGUF_QK_NORMS
    | {"model.layers.{i}.mlp.gate.e_score_correction_bias": "blk.{i}.exp_probs_b"}  # of this family without ".bias"
)


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    gguf_header.by_layer(header)  # which bounds their number
    values = sigmoid_experts.gguf_values(header)
    # The tensors say which layers have experts, and a size how many are shared.
    routers = (f"blk.{i}.ffn_gate_inp.weight" for i in range(values["num_hidden_layers"]))
    shared = whole_number(header.metadata, "hy_v3.expert_shared_feed_forward_length", 0)
    return {
        **values,
        "mlp_layer_types": ["sparse" if router in header.shapes else "dense" for router in routers],
        "n_shared_experts": shared // max(values["moe_intermediate_size"], 1),
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
    gguf=GGUFFamily(
        architecture="hy_v3",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=_GGUF_NAMES),
        has_experts=True,
    ),
)
