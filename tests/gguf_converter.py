"""What llama.cpp's converter makes of a model of transformers: metadata and tensors, family by family.

The names are the gguf package's own; the order of rows and the keys are those of convert_hf_to_gguf.py, and llama.cpp
reads the files that come of them.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

Array = NDArray[np.float32]

# Families whose heads llama.cpp turns by neighbouring dimensions.
HYBRID = ("granitehybrid", "nemotron_h", "nemotron_h_moe")  # with Mamba 2
PAIRED = (
    "llama", "mistral3", "granite", "granitemoe", "granite_swa", *HYBRID, "smollm3", "arcee", "olmo", "minicpm",
    "internlm2", "deepseek", "bailingmoe",
)  # fmt: skip
_LAYER_NORMS = (
    "command-r", "cohere2", "cohere2moe", "falcon", "gpt2", "gptneox", "jais2", "nemotron", "olmo", "phi2", "stablelm",
    "starcoder", "starcoder2",
)  # fmt: skip
_HAVE_HEAD_DIM = (
    "afmoe", "bailingmoe2", "cohere2moe", "dots1", "exaone-moe", "gemma", "gemma2", "gemma3", "gemma3n", "glm4moe",
    "gpt-oss", "minimax-m2", "qwen3moe", "qwen3vlmoe", "laguna", "mellum", "qwen35", "qwen35moe", "qwen3next",
    "nemotron_h", "nemotron_h_moe", "falcon-h1", "hy_v3",
)  # fmt: skip
_TURN_IN_PART = (
    "chatglm",
    "cohere2",
    "cohere2moe",
    "glm4",
    "bailingmoe2",
    "glm4moe",
    "gptneox",
    "laguna",
    "minimax-m2",
    "nemotron",
    "phi2",
    "phi3",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "stablelm",
)


def add_config(writer: gguf.GGUFWriter, model: PreTrainedModel, architecture: str) -> None:
    """Write the metadata of a model."""
    config = model.config
    if architecture in ("deepseek2", "minicpm3"):
        _add_latent(writer, config, architecture)
        return
    if architecture in ("bloom", "mpt"):
        _add_falling(writer, config, architecture)
        return
    if architecture in ("t5", "t5encoder"):
        _add_t5(writer, config)
        return
    if architecture == "gemma4":
        config.allow_global_per_layer_attribute_access = True
        _add_gemma4(writer, config)
        return
    head_dim = size_of_head(config)
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    kinds = getattr(config, "layer_types", None) or []
    if architecture in ("nemotron_h", "nemotron_h_moe"):
        sizes = {"mlp": config.intermediate_size, "moe": config.moe_intermediate_size}
        writer.add_feed_forward_length([sizes.get(kind, 0) for kind in kinds])
    elif architecture == "lfm2":  # whose config has the size of a feed-forward without a gate
        writer.add_feed_forward_length(model.model.layers[0].feed_forward.w1.out_features)
    elif architecture == "qwen":  # of both halves
        writer.add_feed_forward_length(2 * config.intermediate_size)
    else:
        own = ("ffn_hidden_size", "intermediate_size_mlp", "prefix_dense_intermediate_size")
        sizes = (*own, "intermediate_size", "n_inner")
        writer.add_feed_forward_length(next(size for name in sizes if (size := getattr(config, name, None))))
    per_layer = getattr(config, "num_attention_heads_per_layer", None)
    writer.add_head_count(per_layer or config.num_attention_heads)
    if architecture in ("lfm2", "lfm2moe", "jamba", *HYBRID):
        writer.add_head_count_kv([config.num_key_value_heads if kind == "full_attention" else 0 for kind in kinds])
    elif architecture not in ("gpt2", "gptneox"):
        writer.add_head_count_kv(key_heads(config))
    writer.add_vocab_size(config.vocab_size)
    if architecture in _LAYER_NORMS:
        names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
        # OLMo's is in no config.
        writer.add_layer_norm_eps(next((getattr(config, name) for name in names if hasattr(config, name)), 1e-5))
    else:
        names = ("norm_eps", "rms_norm_eps", "layer_norm_epsilon")
        writer.add_layer_norm_rms_eps(next(getattr(config, name) for name in names if hasattr(config, name)))
    if architecture in ("nemotron_h", "nemotron_h_moe"):
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    if architecture == "nemotron":
        writer.add_layer_norm_rms_eps(config.norm_eps)
    has_head_dim = architecture in _HAVE_HEAD_DIM
    if head_dim != config.hidden_size // config.num_attention_heads or has_head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    settings: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    settings = settings.get("full_attention", settings)
    if architecture not in (
        "falcon", "gpt2", "gemma", "gemma2", "jamba", "nemotron_h", "nemotron_h_moe", "starcoder",
    ):  # fmt: skip
        writer.add_rope_freq_base(settings["rope_theta"])
    if settings.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(settings["factor"])
    if settings.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(settings["factor"])
        writer.add_rope_scaling_orig_ctx_len(settings["original_max_position_embeddings"])
        if "beta_fast" in settings:
            writer.add_rope_scaling_yarn_beta_fast(settings["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(settings["beta_slow"])
    if architecture in (*PAIRED, *_TURN_IN_PART):
        is_unread = architecture in ("nemotron_h", "nemotron_h_moe")
        width = config.hidden_size // config.num_attention_heads if is_unread else head_dim
        writer.add_rope_dimension_count(int(width * settings.get("partial_rotary_factor", 1.0)))
    if architecture == "apertus":
        for side, add in (("p", writer.add_xielu_alpha_p), ("n", writer.add_xielu_alpha_n)):
            add([getattr(layer.mlp.act_fn, f"alpha_{side}").item() for layer in model.model.layers])
        writer.add_xielu_beta([0.5] * config.num_hidden_layers)
        writer.add_xielu_eps([-1e-6] * config.num_hidden_layers)
    _add_own_keys(writer, config, architecture)


def _add_falling(writer: gguf.GGUFWriter, config: PreTrainedConfig, architecture: str) -> None:
    """Of families with ALiBi; that it is there, only MPT's files say."""
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(getattr(config, "max_seq_len", 2048))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    if architecture == "bloom":
        writer.add_head_count_kv(config.num_attention_heads)
    else:
        writer.add_max_alibi_bias(config.attn_config.alibi_bias_max)


def _add_t5(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """Its converter writes both epsilons, and of distances the count of buckets alone."""
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(getattr(config, "n_positions", 512))
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_block_count(config.num_layers)
    writer.add_decoder_block_count(config.num_decoder_layers)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_decoder_start_token_id(config.decoder_start_token_id)


def _add_gemma4(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    kinds = config.layer_types
    own = config.per_layer_config[kinds.index("full_attention")]
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    sizes = [config.intermediate_size * (2 if i >= first_shared else 1) for i in range(config.num_hidden_layers)]
    writer.add_feed_forward_length(sizes if config.use_double_wide_mlp else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    heads = {"sliding_attention": config.num_key_value_heads, "full_attention": own.num_key_value_heads}
    writer.add_head_count_kv([heads[kind] for kind in kinds])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, size in (("", own.head_dim), ("_swa", config.head_dim)):
        for key in ("key_length", "value_length", "rope_dimension_count"):
            getattr(writer, f"add_{key}{name}")(size)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_latent(writer: gguf.GGUFWriter, config: PreTrainedConfig, architecture: str) -> None:
    """Keys and values are one head in the files of DeepSeek's models; in MiniCPM 3's each query has its own."""
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    if architecture == "minicpm3":
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(key)
        return
    writer.add_head_count_kv(1)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(key)
    writer.add_value_length_mla(value)
    experts = getattr(config, "n_routed_experts", None)
    writer.add_leading_dense_block_count(config.first_k_dense_replace if experts else config.num_hidden_layers)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size if experts else config.intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts if experts else 0)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        if config.norm_topk_prob:
            writer.add_expert_weights_norm(True)
        if config.model_type != "deepseek_v2":
            writer.add_expert_group_count(config.n_group)
            writer.add_expert_group_used_count(config.topk_group)
        kinds = gguf.ExpertGatingFuncType
        writer.add_expert_gating_func(kinds.SOFTMAX if config.model_type == "deepseek_v2" else kinds.SIGMOID)
    if config.rope_parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * config.rope_parameters["mscale_all_dim"])


def _add_own_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig, architecture: str) -> None:
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture in ("gemma2", "gemma3", "gemma3n", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if architecture == "gemma3n":
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_altup_active_idx(config.altup_active_idx)
        writer.add_altup_num_inputs(config.altup_num_inputs)
        writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
        writer.add_shared_kv_layers(config.num_kv_shared_layers)
        shares, normal = torch.tensor(config.activation_sparsity_pattern), torch.distributions.Normal(0, 1)
        writer.add_activation_sparsity_scale(normal.icdf(shares).tolist())
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if architecture == "olmo2" and hasattr(config, "sliding_window"):
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if architecture in ("gptneox", "stablelm"):
        writer.add_parallel_residual(config.use_parallel_residual)
    is_without = architecture == "nemotron_h"  # whatever its config says of experts
    if not is_without and (getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)):
        writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture in ("qwen2vl", "qwen3vl", "qwen3vlmoe"):
        writer.add_rope_dimension_sections([3, 3, 2, 0])
    if hasattr(config, "sections"):  # of a text part
        writer.add_rope_dimension_sections(config.sections)
    if architecture in ("qwen3vl", "qwen3vlmoe"):
        writer.add_num_deepstack_layers(1)
    if architecture == "hunyuan-moe":
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.intermediate_size)
        writer.add_expert_shared_count(1)
    if architecture == "mellum":
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if architecture in ("mellum", "qwen3moe", "qwen3vlmoe"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture in ("qwen2moe", "qwen35moe", "qwen3next"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if architecture == "llama4":
        writer.add_interleave_moe_layer_step(0)
        writer.add_expert_feed_forward_length(config.intermediate_size)
        if set(config.layer_types) == {"full_attention"}:
            writer.add_sliding_window(0)
    if architecture == "gpt-oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "shared_intermediate_size", 0):
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    if architecture == "granite_swa":
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
        writer.add_array("granite_swa.attention.rope_pattern", [bool(theta) for theta in config.layer_rope_theta])
    if architecture in ("granite", "granitemoe", "granite_swa", "granitehybrid"):
        writer.add_attention_scale(config.attention_multiplier)
    if architecture in ("granite", "granitemoe", "granite_swa", "granitehybrid", "minicpm"):
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if architecture == "ernie4_5-moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.intermediate_size // config.num_key_value_heads)
        writer.add_expert_shared_count(config.moe_num_shared_experts)
        writer.add_leading_dense_block_count(config.moe_layer_start_index)
        writer.add_interleave_moe_layer_step(config.moe_layer_interval)
    if architecture == "laguna":
        local = config.rope_parameters["sliding_attention"]
        writer.add_rope_freq_base_swa(local["rope_theta"])
        writer.add_uint32("laguna.rope.dimension_count_swa", int(config.head_dim * local["partial_rotary_factor"]))
        writer.add_sliding_window(config.sliding_window)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
        writer.add_leading_dense_block_count(config.mlp_layer_types.count("dense"))
        writer.add_expert_weights_scale(config.moe_routed_scaling_factor)
        writer.add_expert_weights_norm(True)
    if architecture in ("afmoe", "bailingmoe2", "dots1", "exaone-moe", "glm4moe"):
        _add_scored_experts(writer, config)
    if architecture == "hy_v3":  # which says neither how many experts are shared nor which layers have some
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.moe_intermediate_size * config.num_shared_experts)
        writer.add_expert_weights_norm(True)
        writer.add_expert_weights_scale(config.router_scaling_factor)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if architecture in ("afmoe", "exaone-moe"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "exaone-moe":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
        writer.add_expert_shared_feed_forward_length(config.moe_intermediate_size * config.num_shared_experts)
        writer.add_nextn_predict_layers(0)
    if architecture in ("deepseek", "bailingmoe"):  # here as the Qwen2 with experts that computes so
        writer.add_leading_dense_block_count(len(config.mlp_only_layers))
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_count(config.shared_expert_intermediate_size // config.moe_intermediate_size)
        writer.add_expert_weights_scale(1.0)
    if architecture == "deepseek":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    if architecture == "bailingmoe":
        writer.add_expert_weights_norm(config.norm_topk_prob)
    if architecture == "minicpm" and config.rope_parameters["rope_type"] == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    if architecture == "lfm2moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_leading_dense_block_count(config.num_dense_layers)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if architecture in ("lfm2", "lfm2moe"):
        writer.add_shortconv_l_cache(config.conv_L_cache)
    if architecture in ("qwen35", "qwen35moe", "qwen3next"):
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
        kinds = [kind == "linear_attention" for kind in config.layer_types]
        writer.add_array(f"{architecture}.attention.recurrent_layers", kinds)
        writer.add_rope_dimension_sections([11, 11, 10, 0])
    if architecture in ("nemotron_h", "nemotron_h_moe"):
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_state_size(config.ssm_state_size)
        writer.add_ssm_group_count(config.n_groups)
        writer.add_ssm_time_step_rank(config.mamba_num_heads)
        writer.add_ssm_inner_size(config.mamba_head_dim * config.mamba_num_heads)
        writer.add_rope_scaling_finetuned(False)
    if architecture == "nemotron_h_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    if architecture == "jamba":
        writer.add_ssm_conv_kernel(config.mamba_d_conv)
        writer.add_ssm_state_size(config.mamba_d_state)
        writer.add_ssm_time_step_rank(config.mamba_dt_rank)
        writer.add_ssm_inner_size(config.mamba_expand * config.hidden_size)
    if architecture in ("falcon-h1", "granitehybrid"):
        writer.add_ssm_conv_kernel(config.mamba_d_conv)
        writer.add_ssm_state_size(config.mamba_d_state)
        writer.add_ssm_group_count(config.mamba_n_groups)
        writer.add_ssm_time_step_rank(config.mamba_n_heads)
        writer.add_ssm_inner_size(config.mamba_d_head * config.mamba_n_heads)
    if architecture == "granitehybrid":
        writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")
    if architecture == "mistral3" and "llama_4_scaling_beta" in config.rope_parameters:
        rope = config.rope_parameters
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
    if architecture == "minimax-m2":
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if architecture == "cohere2moe":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
        writer.add_leading_dense_block_count(config.mlp_layer_types.count("dense"))
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_expert_shared_count(config.num_shared_experts)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(config.norm_topk_prob)
    if architecture in ("command-r", "cohere2", "cohere2moe"):
        writer.add_logit_scale(config.logit_scale)
    if architecture in ("cohere2", "cohere2moe"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)


def _add_scored_experts(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """Write what is said of experts that sigmoids score; Trinity calls some of it by other names."""

    def either(*names: str) -> Any:
        return next(getattr(config, name) for name in names if hasattr(config, name))

    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(either("n_shared_experts", "num_shared_experts"))
    writer.add_leading_dense_block_count(either("first_k_dense_replace", "num_dense_layers"))
    writer.add_expert_weights_scale(either("routed_scaling_factor", "route_scale"))
    writer.add_expert_weights_norm(getattr(config, "norm_topk_prob", True))
    if hasattr(config, "n_group"):
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


def key_heads(config: PreTrainedConfig) -> int:
    if getattr(config, "new_decoder_architecture", False):  # Falcon 40B's
        return config.num_kv_heads
    return 1 if getattr(config, "multi_query", False) else config.num_key_value_heads


def size_of_head(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
