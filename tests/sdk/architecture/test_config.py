"""ModelConfig: one validation, one list of tensors, one section of config.json."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from model_features import LINEAR
from small_configs import CONFIG, ENCODER, LONGROPE, PAIR

from edgelm.architecture.hf_config import hf_config
from edgelm.architecture.multipliers import Multipliers
from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import NORMS, ModelConfig
from edgelm.errors import ConfigError

DYNAMIC = RopeScaling(rope_type="dynamic", factor=2.0, original_max_position_embeddings=8)


@pytest.mark.parametrize("scale", [1e-300, 0.9, 2.0, 1e30])
def test_a_multiplier_of_scores_that_is_no_gemmas_is_a_granites(scale: float) -> None:
    values = hf_config(replace(CONFIG, attention_multiplier=scale))
    assert (values["model_type"], values["attention_multiplier"]) == ("granite", scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be a whole number from 1 to 2147483647."),
        ({"hidden_size": -1}, "hidden_size is -1; it must be a whole number from 1 to 2147483647."),
        ({"intermediate_size": 1.5}, "intermediate_size is 1.5; it must be a whole number from 1 to 2147483647."),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; it must be a whole number from 1 to 4096."),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'; it must be a whole number from 1 to 2147483647."),
        ({"num_key_value_heads": None}, "num_key_value_heads is None; it must be a whole number from 1 to 2147483647."),
        ({"head_dim": 10**400}, "head_dim is a number of 1329 bits; it must be a whole number from 1 to 2147483647."),
        (
            {"laurel_rank": 10**5000},
            "laurel_rank is a number of 16610 bits; it must be a whole number from 0 to 2147483647.",
        ),
        ({"head_dim": 0}, "head_dim is 0; it must be a whole number from 1 to 2147483647."),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads (4) is not a multiple of num_key_value_heads (3).",
        ),
        ({"head_dim": 7}, "head_dim is 7; rope needs an even one."),
        ({"partial_rotary_factor": 0.1}, "head_dim is 8, of which 0 turn; rope needs an even one."),
        ({"partial_rotary_factor": 0.4}, "head_dim is 8, of which 3 turn; rope needs an even one."),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; it must be above 0, up to 1."),
        ({"norm": "batch"}, f"norm is 'batch'; supported: {', '.join(NORMS)}."),
        ({"norm_placement": "middle"}, "norm_placement is 'middle'; supported: pre, post, both, shared, residual."),
        ({"norm_placement": "shared"}, "norm_placement is 'shared', which needs parallel_residual."),
        ({"scoring_func": "tanh"}, "scoring_func is 'tanh'; supported: softmax, sigmoid, sparsemixer."),
        ({"qk_norm_scope": "layer"}, "qk_norm_scope is 'layer'; supported: head, turned_head, own_head, projection."),
        ({"sliding_window": 0}, "sliding_window is 0; it must be a whole number from 1 to 2147483647."),
        ({"layer_types": ("full_attention",)}, "layer_types has 1 entries; the model has 2 layers."),
        (
            {"layer_types": ("full_attention", "chunked_attention")},
            "layer_types has 'chunked_attention'; supported: full_attention, sliding_attention, conv, "
            "linear_attention, mamba, mamba2, hybrid, feed_forward.",
        ),
        (
            {"layer_types": ("full_attention", "sliding_attention")},
            "layer_types has 'sliding_attention', which needs a sliding_window.",
        ),
        (
            {"layer_types": ("full_attention", "conv")},
            "layer_types has 'conv', which needs a conv_L_cache.",
        ),
        (
            {"layer_types": ("conv", "conv"), "conv_L_cache": 3},
            "layer_types has 'conv' alone; one layer with attention to all tokens is needed.",
        ),
        ({"conv_L_cache": 1}, "conv_L_cache is 1; it must be a whole number from 2 to 64."),
        ({"conv_L_cache": 65}, "conv_L_cache is 65; it must be a whole number from 2 to 64."),
        (
            {"layer_types": ("linear_attention", "full_attention")},
            "layer_types has 'linear_attention', which needs a linear_num_key_heads.",
        ),
        (
            {"linear_value_head_dim": 65537},
            "linear_value_head_dim is 65537; it must be a whole number from 1 to 65536.",
        ),
        (
            {"linear_conv_kernel_dim": 1},
            "linear_conv_kernel_dim is 1; it must be a whole number from 2 to 64.",
        ),
        (
            {"layer_types": ("linear_attention", "full_attention"), **LINEAR, "linear_num_key_heads": 3},
            "linear_num_value_heads (4) is not a multiple of linear_num_key_heads (3).",
        ),
        (
            {"layer_types": ("mamba", "full_attention"), **LINEAR},
            "layer_types has 'mamba', with linear_num_key_heads 2, linear_value_head_dim 16 and mamba_dt_rank None; it "
            "needs 1, 1 and a number, and no other layers that keep a state.",
        ),
        ({"mamba_dt_rank": 0}, "mamba_dt_rank is 0; it must be a whole number from 1 to 65536."),
        ({"attention_output_gate": 1}, "attention_output_gate is 1; it must be true or false."),
        ({"attention_gate_per_head": True}, "attention_gate_per_head is True, which needs attention_output_gate."),
        (
            {"num_experts": 2, "num_experts_per_tok": 1, "shared_expert_gate": True},
            "shared_expert_gate is True, which needs shared_expert_intermediate_size.",
        ),
        (
            {"num_kv_shared_layers": -1},
            f"num_kv_shared_layers is -1; it must be a whole number from 0 to {2**31 - 1}.",
        ),
        (
            {"hidden_size_per_layer_input": 1.5},
            f"hidden_size_per_layer_input is 1.5; it must be a whole number from 0 to {2**31 - 1}.",
        ),
        ({"global_head_dim": 0}, f"global_head_dim is 0; it must be a whole number from 1 to {2**31 - 1}."),
        (
            {"num_global_key_value_heads": True},
            f"num_global_key_value_heads is True; it must be a whole number from 1 to {2**31 - 1}.",
        ),
        (
            {"num_global_key_value_heads": 3},
            "num_attention_heads (4) is not a multiple of num_global_key_value_heads (3).",
        ),
        (
            {"num_key_value_heads": 2, "num_global_attention_heads": 3},
            "num_global_attention_heads (3) is not a multiple of num_key_value_heads (2).",
        ),
        ({"attention_gate_act": "relu"}, "attention_gate_act is 'relu'; supported: sigmoid, softplus."),
        (
            {"attention_gate_act": "softplus"},
            "attention_gate_act is 'softplus', which needs attention_output_gate.",
        ),
        (
            {"local_partial_rotary_factor": 0.5},
            "local_partial_rotary_factor is 0.5, with rope_local_theta None; it needs one, and must be above 0, up to "
            "1, so that an even number of dimensions turns, and some do.",
        ),
        (
            {"local_partial_rotary_factor": 0.1, "rope_local_theta": 1e4},
            "local_partial_rotary_factor is 0.1, with rope_local_theta 10000.0; it needs one, and must be above 0, up "
            "to 1, so that an even number of dimensions turns, and some do.",
        ),
        (
            {"position": "learned", "relative_attention_per_layer": True},
            "relative_attention_per_layer is set, with position 'learned', not 'relative'.",
        ),
        (
            {"position": "relative", "num_global_attention_heads": 8},
            "num_global_attention_heads is 8, with position 'relative', whose scores are those of as many heads in "
            "every layer: num_attention_heads (4).",
        ),
        (
            {"global_head_dim": 32, "rope_local_theta": 1e4},
            "global_head_dim is set, which needs an attention_multiplier, and with rope a rope_local_theta of the "
            "layers with a window.",
        ),
        (
            {"global_head_dim": 32, "attention_multiplier": 1.0},
            "global_head_dim is set, which needs an attention_multiplier, and with rope a rope_local_theta of the "
            "layers with a window.",
        ),
        (
            {"global_head_dim": 33, "attention_multiplier": 1.0, "rope_local_theta": 1e4},
            "global_head_dim is 33, of which 33 turn; rope needs an even one, of which some do.",
        ),
        (
            {"head_dim": 16, "rope_scaling": RopeScaling(rope_type="proportional", partial_rotary_factor=0.1)},
            "head_dim is 16, of which 0 turn; rope needs an even one, of which some do.",
        ),
        (
            {"num_kv_shared_layers": 1, "attention_sinks": True},
            "num_kv_shared_layers is set, which is for models with plain attention in every layer.",
        ),
        (
            {"num_kv_shared_layers": 1, "layer_types": ("full_attention", "hybrid"), **LINEAR},
            "num_kv_shared_layers is set, which is for models with plain attention in every layer.",
        ),
        ({"linear_norm_eps": 0.0}, "linear_norm_eps is 0.0; it must be a number above 0."),
        (
            {"linear_norm_placement": "shared"},
            "linear_norm_placement is 'shared' and norm_placement 'pre'; both must be one of both, post, pre, with "
            "neither parallel_residual nor a residual_multiplier.",
        ),
        (
            {"linear_norm_placement": "pre", "norm_placement": "post", "residual_multiplier": 0.5},
            "linear_norm_placement is 'pre' and norm_placement 'post'; both must be one of both, post, pre, with "
            "neither parallel_residual nor a residual_multiplier.",
        ),
        (
            {"multipliers": Multipliers(mlp_gate=2.0), "mlp_gated": False},
            "The multiplier mlp_gate is 2.0, which needs mlp_gated.",
        ),
        (
            {"num_kv_shared_layers": 1, "layer_types": ("full_attention", "conv"), "conv_L_cache": 3},
            "num_kv_shared_layers is set, which is for models with plain attention in every layer.",
        ),
        (
            {"num_kv_shared_layers": 1, "layer_types": ("full_attention", "sliding_attention"), "sliding_window": 8},
            "num_kv_shared_layers is 1 of 2; before those must be a layer of each kind that they have, whose keys and "
            "values they look at.",
        ),
        (
            {"num_kv_shared_layers": 5},
            "num_kv_shared_layers is 5 of 2; before those must be a layer of each kind that they have, whose keys and "
            "values they look at.",
        ),
        ({"v_norm": 1}, "v_norm is 1; it must be true or false."),
        (
            {"qk_norm": True, "qk_norm_scope": "own_head", "norm": "rms_offset"},
            "qk_norm_scope is 'own_head', with norm 'rms_offset' and qk_norm_weights True; it needs weights, and a "
            "norm of rms, layer, layer_no_bias.",
        ),
        ({"qk_norm_weights": False}, "qk_norm_weights is False, which needs qk_norm."),
        ({"conv_bias": 0}, "conv_bias is 0; it must be true or false."),
        *(
            (
                {"llama_4_scaling_beta": 0.1, **changes},
                "llama_4_scaling_beta is set, which needs position 'rope' and original_max_position_embeddings.",
            )
            for changes in ({}, {"position": "none"}, {"position": "learned", "rope_scaling": LONGROPE})
        ),
        (
            {"num_kv_shared_layers": 1, "layers_without_rope": (0,)},
            "layers_without_rope is (0,); with num_kv_shared_layers 1 layer 1 looks at the keys of layer 0, and both "
            "must turn or neither.",
        ),
        (
            {"hidden_size_per_layer_input": 4, "hidden_act": "xielu"},
            "hidden_size_per_layer_input is 4, which no model with hidden_act 'xielu' has.",
        ),
        (
            {"sub_norms": True, "norm": "rms_plain"},
            "sub_norms is true, with norm 'rms_plain'; such norms have weights.",
        ),
        ({"llama_4_scaling_beta": 0.0}, "llama_4_scaling_beta is 0.0; it must be a number above 0."),
        ({"layers_without_rope": (True,)}, "layers_without_rope has True; layers are counted from 0 to 1."),
        ({"layers_without_rope": (2,)}, "layers_without_rope has 2; layers are counted from 0 to 1."),
        (
            {"layers_without_input_norm": (0,), "norm_placement": "post"},
            "layers_without_input_norm is (0,), with norm_placement 'post'; it needs 'pre' or 'both'.",
        ),
        ({"embedding_norm_first": True}, "embedding_norm_first is True, which needs embedding_norm."),
        (
            {"head_transform": True, "hidden_act": "xielu"},
            "head_transform is True, which no model with hidden_act 'xielu' has.",
        ),
        ({"layers_without_experts": (-1,)}, "layers_without_experts has -1; layers are counted from 0 to 1."),
        (
            {"layers_without_feed_forward": (2,)},
            "layers_without_feed_forward has 2; layers are counted from 0 to 1.",
        ),
        (
            {"layer_types": ("full_attention", "feed_forward"), "layers_without_feed_forward": (0, 1)},
            "layers_without_feed_forward has 1, of which layer_types says 'feed_forward'.",
        ),
        ({"num_experts": -1}, "num_experts is -1; it must be a whole number from 0 to 4096."),
        ({"num_experts": "four"}, "num_experts is 'four'; it must be a whole number from 0 to 4096."),
        ({"num_experts": 4}, "num_experts_per_tok is 0; it must be a whole number from 1 to 2147483647."),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok is 3; the model has 2 experts."),
        (
            {"num_experts": 5000, "num_experts_per_tok": 1},
            "num_experts is 5000; it must be a whole number from 0 to 4096.",
        ),
        ({"n_group": 0}, "n_group is 0; it must be a whole number from 1 to 2147483647."),
        ({"topk_group": 0.5}, "topk_group is 0.5; it must be a whole number from 1 to 2147483647."),
        *(
            (
                {"num_experts": 8, "num_experts_per_tok": chosen, "n_group": groups, "topk_group": kept},
                f"n_group is {groups} and topk_group {kept}; 8 experts do not lie in such groups of two or more, or "
                f"those chosen have fewer than {chosen}.",
            )
            for groups, kept, chosen in ((3, 1, 1), (8, 2, 1), (4, 5, 1), (4, 1, 3))
        ),
        (
            {"residual_multiplier": 10**400},
            f"residual_multiplier is 1{'0' * 59}; it must be a number above 0.",
        ),
        ({"num_hidden_layers": 4097}, "num_hidden_layers is 4097; it must be a whole number from 1 to 4096."),
        (
            {"num_experts": 4096, "num_experts_per_tok": 1, "num_hidden_layers": 17},
            "num_experts is 4096 and num_hidden_layers 17; at most 65536 experts in all layers are supported.",
        ),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0; it must be a whole number from 1 to 2147483647."),
        (
            {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 10**100},
            "moe_intermediate_size is a number of 333 bits; it must be a whole number from 1 to 2147483647.",
        ),
        (
            {"num_experts": 2, "num_experts_per_tok": 1, "hidden_act": "xielu"},
            "num_experts is 2, which no model with hidden_act 'xielu' has.",
        ),
        (
            {"num_experts": 2, "num_experts_per_tok": 1, "norm_placement": "both", "expert_norms": True},
            "expert_norms is set, which needs a shared_expert_intermediate_size, and norm_placement 'both'.",
        ),
        ({"expert_scales": 1}, "expert_scales is 1; it must be true or false."),
        (
            {"num_experts": 2, "num_experts_per_tok": 1, "sub_norms": True},
            "sub_norms is True, which no model with experts has.",
        ),
        *(
            (
                {"num_experts_per_tok": min(1, experts), "num_experts": experts, "swiglu_limit": 7.0, **changes},
                "swiglu_limit is set, which is for models with experts gated by silu in every layer, and nothing "
                "beside them.",
            )
            for experts, changes in ((0, {}), (2, {"hidden_act": "gelu"}), (2, {"shared_expert_intermediate_size": 8}))
        ),
        ({"swiglu_alpha": 0.0}, "swiglu_alpha is 0.0; it must be a number above 0."),
        ({"attention_sinks": 1}, "attention_sinks is 1; it must be true or false."),
        ({"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0; it must be a number above 0."),
        ({"residual_multiplier": -1.0}, "residual_multiplier is -1.0; it must be a number above 0."),
        ({"rope_local_theta": 1.0}, "rope_local_theta is 1.0; it must be a number above 1."),
        (
            {
                "head_dim": 2,
                "rope_scaling": DYNAMIC,
            },
            "rope_type 'dynamic' needs more than 2 dimensions of a head that turn.",
        ),
        (
            {"rope_scaling": LONGROPE, "head_dim": 16},
            "short_factor has 4 numbers; a head turns in 8 pairs.",
        ),
        ({"kv_cache": "fp8"}, "kv_cache is 'fp8'; supported: fp32, int8."),
        (
            {"position": "xpos"},
            "position is 'xpos'; supported: rope, learned, sinusoidal, sinusoidal_halves, sinusoidal_fairseq, "
            "relative, alibi, none.",
        ),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'; supported: silu, gelu, gelu_pytorch_tanh, relu, relu2, xielu."),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be a number above 0."),
        ({"norm_eps": math.nan}, "norm_eps is nan; it must be a number above 0."),
        ({"rope_theta": math.inf}, "rope_theta is inf; it must be a number above 1."),
        ({"rope_theta": 1.0}, "rope_theta is 1.0; it must be a number above 1."),
        ({"mlp_gated": "false"}, "mlp_gated is 'false'; it must be true or false."),
        ({"qk_norm": 1}, "qk_norm is 1; it must be true or false."),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false."),
        ({"eos_token_ids": (2, -1)}, "eos_token_ids is (2, -1); token ids are whole numbers of 0 or more."),
        ({"suppressed_token_ids": (9, 100)}, "suppressed_token_ids are (9, 100); the vocabulary has 100 tokens."),
        ({"bos_token_id": "<s>"}, "bos_token_id is '<s>'; token ids are whole numbers of 0 or more."),
    ],
)
def test_a_field_outside_its_range_is_an_error_that_names_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(CONFIG, **changes)
    assert str(caught.value) == message


def test_lists_are_kept_as_tuples() -> None:
    listed = replace(CONFIG, eos_token_ids=[2, 3], layers_without_rope=[1])  # type: ignore[arg-type]
    assert listed == replace(CONFIG, eos_token_ids=(2, 3), layers_without_rope=(1,))
    assert hash(listed)
    with pytest.raises(ConfigError, match=r"eos_token_ids is \{2\}; it must be a list\."):
        replace(CONFIG, eos_token_ids={2})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": replace(ENCODER, position="alibi")},
            "The encoder has position 'alibi' and no encoder of its own; it must have other positions than alibi, and "
            "none.",
        ),
        (
            {"encoder": replace(ENCODER, hidden_size=8)},
            "The encoder's hidden_size is 8, the decoder's 16; they must be the same.",
        ),
        ({"own_embedding": True}, "own_embedding is true of a decoder with an encoder; it is for the encoder alone."),
        (
            {"decoder_start_token_id": None},
            "decoder_start_token_id is None; a decoder with an encoder needs a token to begin with.",
        ),
        ({"forced_bos_token_id": 100}, "decoder_prompt_ids are (0, 100); the vocabulary has 100 tokens."),
        ({"norm_placement": "post"}, "norm_placement is 'post'; with an encoder it must be pre, residual or both."),
        (
            {"encoder": replace(ENCODER, position="rope", head_dim=8, rope_scaling=DYNAMIC)},
            "rope_type is 'dynamic'; with an encoder it must be default, linear, llama3 or yarn.",
        ),
        ({"qk_norm": True}, "qk_norm is True, which no model with an encoder has."),
        ({"head_transform": True}, "head_transform is True, which no model with an encoder has."),
        (
            {"position": "relative", "relative_attention_max_distance": 16},
            "relative_attention_num_buckets is 32 and relative_attention_max_distance 16; both must be whole numbers, "
            "the first 4 or more, the second above its half and up to 65536.",
        ),
    ],
)
def test_an_encoder_that_does_not_fit_its_decoder_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(CONFIG, **PAIR | changes)
    assert str(caught.value) == message


def test_an_encoder_comes_back_from_json_and_has_none_of_its_own() -> None:
    pair = replace(CONFIG, **PAIR, forced_bos_token_id=5, suppressed_token_ids=(7,))
    values = json.loads(json.dumps(pair.to_dict()))
    assert ModelConfig.from_dict(values) == pair
    assert pair.decoder_prompt_ids == (0, 5)
    values["encoder"]["encoder"] = values["encoder"]
    assert ModelConfig.from_dict(values) == pair


def test_tensors_of_a_pair_are_named_by_their_stack() -> None:
    shapes = replace(CONFIG, **PAIR, num_hidden_layers=1).tensor_shapes()
    assert shapes["model.encoder.relative_attention_bias.weight"] == (32, 4)
    assert shapes["model.decoder.embed_positions.weight"] == (64, 16)
    assert shapes["model.decoder.layers.0.encoder_attn.k_proj.weight"] == (32, 16)
    assert "model.encoder.layers.1.mlp.up_proj.weight" in shapes
    assert not [name for name in shapes if "encoder.layers" in name and "encoder_attn" in name]


def test_an_odd_head_dim_is_fine_where_nothing_rotates() -> None:
    assert replace(CONFIG, head_dim=7, position="learned").head_dim == 7


def test_tensor_shapes_lists_a_llama_by_its_names() -> None:
    config = replace(CONFIG, num_hidden_layers=1)
    config.tensor_shapes().clear()  # who asked before may have changed what it got
    assert config.tensor_shapes() == {
        "model.embed_tokens.weight": (100, 16),
        "model.layers.0.input_layernorm.weight": (16,),
        "model.layers.0.self_attn.q_proj.weight": (32, 16),
        "model.layers.0.self_attn.k_proj.weight": (16, 16),
        "model.layers.0.self_attn.v_proj.weight": (16, 16),
        "model.layers.0.self_attn.o_proj.weight": (16, 32),
        "model.layers.0.post_attention_layernorm.weight": (16,),
        "model.layers.0.mlp.gate_proj.weight": (32, 16),
        "model.layers.0.mlp.up_proj.weight": (32, 16),
        "model.layers.0.mlp.down_proj.weight": (16, 32),
        "model.norm.weight": (16,),
        "lm_head.weight": (100, 16),
    }


def test_each_feature_adds_or_removes_its_tensors() -> None:
    def names(**changes: Any) -> set[str]:
        return set(replace(CONFIG, num_hidden_layers=1, **changes).tensor_shapes())

    plain, layer = names(), "model.layers.0"
    assert plain - names(tie_word_embeddings=True) == {"lm_head.weight"}
    assert plain - names(mlp_gated=False) == {f"{layer}.mlp.gate_proj.weight"}
    assert names(position="learned") - plain == {"model.embed_positions.weight"}
    assert names(position="sinusoidal") == names(position="none") == plain
    assert names(attention_bias=True) - plain == {f"{layer}.self_attn.{name}_proj.bias" for name in "qkv"}
    assert names(attention_output_bias=True) - plain == {f"{layer}.self_attn.o_proj.bias"}
    assert names(mlp_bias=True) - plain == {f"{layer}.mlp.{name}_proj.bias" for name in ("gate", "up", "down")}
    assert names(qk_norm=True) - plain == {f"{layer}.self_attn.{name}_norm.weight" for name in "qk"}
    assert names(qk_norm=True, norm="layer") - names(norm="layer") == {
        f"{layer}.self_attn.{name}_norm.{kind}" for name in "qk" for kind in ("weight", "bias")
    }
    assert names(norm="layer") - plain == {
        f"{layer}.input_layernorm.bias",
        f"{layer}.post_attention_layernorm.bias",
        "model.norm.bias",
    }
    assert names(norm="rms_plain") == {name for name in plain if "norm" not in name}
    assert names(norm="rms_offset") == plain
    assert names(embedding_norm=True) - plain == {"model.embed_norm.weight"}
    assert names(norm_placement="both") - plain == {
        f"{layer}.{name}_feedforward_layernorm.weight" for name in ("pre", "post")
    }
    assert plain - names(norm_placement="post") == {f"{layer}.input_layernorm.weight"}
    assert plain - names(norm_placement="shared", parallel_residual=True) == {
        f"{layer}.post_attention_layernorm.weight"
    }
    assert names(parallel_residual=True) == plain
    assert names(lm_head_bias=True) - plain == {"lm_head.bias"}


def test_query_and_key_norms_over_all_heads_are_as_wide_as_the_projections() -> None:
    shapes = replace(CONFIG, qk_norm=True, qk_norm_scope="projection").tensor_shapes()

    assert shapes["model.layers.0.self_attn.q_norm.weight"] == (32,)
    assert shapes["model.layers.0.self_attn.k_norm.weight"] == (16,)


def test_windows_and_rotations_are_asked_for_layer_by_layer() -> None:
    types = ("sliding_attention", "full_attention", "sliding_attention")
    config = replace(CONFIG, num_hidden_layers=3, sliding_window=8, layer_types=types, rope_local_theta=1e3)

    assert [config.window(layer) for layer in range(3)] == [8, None, 8]
    assert [config.rope_kind(layer) for layer in range(3)] == ["local", "global", "local"]
    config = replace(config, layer_types=(), layers_without_rope=(1,))
    assert [config.window(layer) for layer in range(3)] == [8, 8, 8]
    assert [config.rope_kind(layer) for layer in range(3)] == ["local", None, "local"]
    assert replace(config, sliding_window=None).rope_kind(0) == "global"
    assert replace(config, sliding_window=64).window(0) is None  # the whole context
    assert replace(config, position="learned").rope_kind(0) is None


def test_only_longrope_tells_short_texts_from_long_ones() -> None:
    assert replace(CONFIG, rope_scaling=LONGROPE).short_context == 16
    assert replace(CONFIG, rope_scaling=LONGROPE, max_position_embeddings=8).short_context == 8  # none is longer
    assert CONFIG.short_context is None


def test_scores_are_scaled_by_the_head_or_by_a_multiplier() -> None:
    assert CONFIG.attention_scale == 8**-0.5
    assert replace(CONFIG, attention_multiplier=0.25).attention_scale == 0.25
