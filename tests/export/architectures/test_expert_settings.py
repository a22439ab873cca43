"""Settings of experts, of Mamba 2 and of what guesses tokens ahead, as config.json has them."""

from __future__ import annotations

from typing import Any

import pytest

from edgelm.errors import CheckpointError
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.checkpoints.tensor_map import map_tensors


def expert_values(**changes: Any) -> dict[str, Any]:
    """A config.json that all families with experts read."""
    return {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, **changes,
    }  # fmt: skip


EXPERT_ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "none": ("mixtral", {"num_local_experts": 0}, "num_local_experts is 0; a model of this family has experts"),
    "a name for layers": (
        "qwen3_moe",
        {"mlp_only_layers": "all"},
        "mlp_only_layers is 'all' and decoder_sparse_step 1",
    ),
    "no step": ("qwen3_moe", {"decoder_sparse_step": 0}, r"mlp_only_layers is \[\] and decoder_sparse_step 0"),
    "nothing of blocks": ("nemotron_h", {}, "it has neither layers_block_type nor hybrid_override_pattern"),
    "latent experts": (
        "nemotron_h",
        {"hybrid_override_pattern": "M*E", "moe_latent_size": 32},
        "moe_latent_size is 32; supported is None",
    ),
    "a Ling 2 without a bias of the choice": (
        "bailing_moe",
        {"score_function": "sigmoid", "moe_router_enable_expert_bias": False},
        "moe_router_enable_expert_bias is False; supported is True",
    ),
    "layers that nothing is said of": (
        "hy_v3",
        {"mlp_layer_types": ["dense"]},
        r"mlp_layer_types is \['dense'\]; it must say 'dense' or 'sparse' of each of 4 layers",
    ),
    "groups of no experts": (
        "nemotron_h",
        {"hybrid_override_pattern": "M*E", "n_group": 0},
        "n_group is 0; it must be from 1 to",
    ),
    "groups of Trinity's experts": ("afmoe", {"topk_group": 2}, "topk_group is 2; supported is 1"),
    "other groups of Trinity's": ("afmoe", {"num_expert_groups": 4}, "num_expert_groups is 4; supported is 1"),
    "biases of what is gated": ("afmoe", {"attention_bias": True}, "attention_bias is True; supported is False"),
    "weights as they are": ("afmoe", {"route_norm": False}, "route_norm is False; supported is True"),
    "windows of no size": (
        "afmoe",
        {"sliding_window": None},
        "layer_types has 'sliding_attention', and sliding_window is",
    ),
    "windows of no size in a Mellum": (
        "mellum",
        {"sliding_window": None, "layer_types": ["sliding_attention", "full_attention"] * 2},
        "layer_types has 'sliding_attention', and sliding_window is null",
    ),
    "layers of a Mellum that nothing is said of": (
        "mellum",
        {"mlp_layer_types": ["dense"]},
        r"mlp_layer_types is \['dense'\]; it must say 'dense' or 'sparse' of each of",
    ),
    "keys of other layers in a Hunyuan": ("hunyuan_v1_moe", {"use_cla": True}, "use_cla is True; supported is False"),
    "other numbers of experts in each layer": (
        "hunyuan_v1_moe",
        {"num_experts": 4, "moe_topk": [1, 2, 1, 2]},
        r"moe_topk is \[1, 2, 1, 2\]; supported is one number for all layers",
    ),
    "another scoring of Cohere's": (
        "cohere2_moe",
        {"expert_selection_fn": "relu"},
        "expert_selection_fn is 'relu'; supported: softmax, sigmoid",
    ),
    "an average beside layers without experts": (
        "cohere2_moe",
        {"num_shared_experts": 1, "first_k_dense_replace": 2},
        "strategy is 'average', and 2 layers have no experts; supported is 'sum', and 'average' where all",
    ),
    "MiniCPM-MoE": ("minicpm", {"num_experts": 8}, "num_experts is 8; supported is 0: MiniCPM-MoE is not"),
    "a scoring of DeepSeek-MoE": ("deepseek", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; supported is"),
    "a head that is normed": ("bailing_moe", {"norm_head": True}, "norm_head is True; supported is False"),
    "another activation of Mamba": (
        "nemotron_h",
        {"hybrid_override_pattern": "M*-", "mamba_hidden_act": "relu"},
        "mamba_hidden_act is 'relu'; supported is 'silu'",
    ),
    "another activation beside Mamba": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2, "hidden_act": "gelu"},
        "hidden_act is 'gelu'; beside Mamba supported is 'silu'",
    ),
    "limits of Mamba's steps": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2, "time_step_limit": [0.0, 1.0]},
        r"time_step_limit is \[0.0, 1.0\]; supported is \[0.0, Infinity\]",
    ),
    "biases of Mamba's projections": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2, "mamba_proj_bias": True},
        "mamba_proj_bias is True; supported is false",
    ),
    "no biases of Mamba's convolution": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2, "mamba_conv_bias": False},
        "mamba_conv_bias is False; supported is true",
    ),
    "biases of the first Mamba's projections": (
        "jamba",
        {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_proj_bias": True},
        "mamba_proj_bias is True; supported is False",
    ),
    "no biases of the first Mamba's convolution": (
        "jamba",
        {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_conv_bias": False},
        "mamba_conv_bias is False; supported is True",
    ),
    "another activation beside the first Mamba": (
        "jamba",
        {"attn_layer_offset": 1, "attn_layer_period": 2, "hidden_act": "gelu"},
        "hidden_act is 'gelu'; beside Mamba supported is 'silu'",
    ),
    "biases in a Laguna": ("laguna", {"attention_bias": True}, "attention_bias is True; supported is none"),
    "a cap of a Laguna's scores": (
        "laguna",
        {"moe_router_logit_softcapping": 5.0},
        "moe_router_logit_softcapping is 5.0; supported is none",
    ),
    "layers of a Laguna that nothing is said of": (
        "laguna",
        {"mlp_layer_types": ["dense"]},
        r"mlp_layer_types is \['dense'\]; it must say 'dense' or 'sparse' of each of",
    ),
    "another gate of a Laguna": ("laguna", {"gating": False}, "gating is False; supported: true, 'per-head', 'per-"),
    "heads of a Laguna that differ otherwise": (
        "laguna",
        {"layer_types": ["full_attention"] * 2, "num_attention_heads_per_layer": [4, 8]},
        r"num_attention_heads_per_layer is \[4, 8\]; supported is one number for layers with a window, and one",
    ),
    "no list of a Laguna's heads": (
        "laguna",
        {"num_attention_heads_per_layer": 4},
        "num_attention_heads_per_layer is 4; supported is one number for layers with a window",
    ),
    "biases beside them": ("ernie4_5_moe", {"use_bias": True}, "use_bias is true; experts that have no biases beside"),
    "another activation of linear attention": (
        "olmo_hybrid",
        {"hidden_act": "gelu"},
        "hidden_act is 'gelu'; supported",
    ),
    "another activation beside linear attention and experts": (
        "lara_mini",
        {"hidden_act": "gelu"},
        "hidden_act is 'gelu'; supported is 'silu'",
    ),
    "another noise of a router": (
        "phimoe",
        {"router_jitter_noise": 0.02},
        "router_jitter_noise is 0.02; it must be 0.01",
    ),
    "one expert where the router chooses two": (
        "phimoe",
        {"num_experts_per_tok": 1},
        "num_experts_per_tok is 1; supported is 2",
    ),
    "two scales of LongRoPE": (
        "phimoe",
        {"rope_scaling": {"type": "longrope", "short_mscale": 1.1, "long_mscale": 1.2}},
        "short_mscale is 1.1 and long_mscale 1.2; they must be the same",
    ),
    "a scale of LongRoPE that is a list": (
        "phimoe",
        {"rope_scaling": {"type": "longrope", "short_mscale": [1.1], "long_mscale": 1.2}},
        r"short_mscale is \[1.1\]; it must be a number",
    ),
    "clipping": ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0; clipped queries, keys and values are not supported"),
}


@pytest.mark.parametrize("case", EXPERT_ERRORS)
def test_settings_of_experts_that_are_not_supported_are_refused(case: str) -> None:
    model_type, changes, message = EXPERT_ERRORS[case]
    with pytest.raises(CheckpointError, match=message):
        ARCHITECTURES[model_type].to_model_config(expert_values(**changes))


def test_the_scales_of_a_phi_3_5_moe_are_an_attention_factor() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope = {"type": "longrope", "short_mscale": 1.25, "long_mscale": 1.25, **factors}
    values = expert_values(rope_scaling=rope, original_max_position_embeddings=64)
    scaling = ARCHITECTURES["phimoe"].to_model_config(values).rope_scaling
    assert (scaling.rope_type, scaling.attention_factor) == ("longrope", 1.25)


def test_layers_without_experts_are_those_that_are_listed_and_those_between_the_steps() -> None:
    config = ARCHITECTURES["qwen3_moe"].to_model_config(expert_values(mlp_only_layers=[1], decoder_sparse_step=2))
    assert [config.has_experts(layer) for layer in range(4)] == [False, False, False, True]


def test_layers_that_guess_one_more_token_ahead_are_passed_over() -> None:
    row = ARCHITECTURES["ernie4_5_moe"]
    config = row.to_model_config(expert_values(moe_num_experts=6))
    present = {row.layout.source_name(name): shape for name, shape in config.tensor_shapes().items()}
    guessing = ("mtp_block.0.self_attn.q_proj", "mtp_block.0.mlp.up_proj", "mtp_emb_norm.0", "mtp_linear_proj.0")
    mapped = map_tensors(config, row.layout, present | {f"model.{name}.weight": (1,) for name in guessing}, "here")
    assert mapped.keys() == config.tensor_shapes().keys()


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("glm4_moe", ("model.layers.4.eh_proj.weight", "model.layers.4.mlp.experts.0.up_proj.weight")),
        ("bailing_moe", ("model.layers.4.eh_proj.weight", "model.layers.4.attention.query_layernorm.weight")),
        ("exaone_moe", ("mtp.fc.weight", "mtp.layers.0.self_attn.q_norm.weight", "mtp.layers.0.mlp.up_proj.weight")),
    ],
)
def test_what_guesses_further_tokens_behind_the_last_layer_is_passed_over(
    model_type: str, names: tuple[str, ...]
) -> None:
    row = ARCHITECTURES[model_type]
    values = expert_values(num_key_value_heads=4, num_experts=6, num_experts_per_tok=2)
    config = row.to_model_config(values)
    present: dict[str, tuple[int, ...]] = {}
    for name, (rows, *columns) in config.tensor_shapes().items():
        source = row.layout.source_name(name)
        present[source] = (present.get(source, (0,))[0] + rows, *columns)
    mapped = map_tensors(config, row.layout, present | dict.fromkeys(names, (1,)), "here")
    assert mapped.keys() == config.tensor_shapes().keys()
