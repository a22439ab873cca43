"""What llama.cpp's converter makes of a model of transformers: metadata and tensors, family by family.

The names are the gguf package's own; the order of rows and the keys are those of convert_hf_to_gguf.py, and llama.cpp
reads the files that come of them.
"""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

Array = NDArray[np.float32]

# Families whose heads llama.cpp turns by neighbouring dimensions.
_HYBRID = ("granitehybrid", "nemotron_h", "nemotron_h_moe")  # with Mamba 2
_PAIRED = ("llama", "mistral3", "granite", "granitemoe", *_HYBRID, "smollm3", "arcee", "olmo")
_LAYER_NORMS = ("command-r", "cohere2", "gpt2", "gptneox", "nemotron", "olmo", "phi2", "stablelm", "starcoder2")
# What its converter names by itself: gates and ups stay in one tensor.
_GEMMA4_EXPERTS = {
    "experts.gate_up_proj": "ffn_gate_up_exps.weight", "experts.down_proj": "ffn_down_exps.weight",
    "router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale",
}  # fmt: skip
CHOICE_BIASES = ("expert_bias", "e_score_correction_bias")  # buffers of the models of transformers
_HAVE_HEAD_DIM = (
    "gemma", "gemma2", "gemma3", "gemma3n", "gpt-oss", "qwen3moe", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next",
    "nemotron_h", "nemotron_h_moe", "falcon-h1",
)  # fmt: skip
_TURN_IN_PART = (
    "chatglm",
    "cohere2",
    "glm4",
    "gptneox",
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
    if architecture == "gemma4":
        config.allow_global_per_layer_attribute_access = True
        _add_gemma4(writer, config)
        return
    head_dim = _head_dim(config)
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
    else:
        writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or config.n_inner)
    writer.add_head_count(config.num_attention_heads)
    if architecture in ("lfm2", "lfm2moe", *_HYBRID):
        writer.add_head_count_kv([config.num_key_value_heads if kind == "full_attention" else 0 for kind in kinds])
    elif architecture not in ("gpt2", "gptneox"):
        writer.add_head_count_kv(config.num_key_value_heads)
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
    has_head_dim = architecture in _HAVE_HEAD_DIM
    if head_dim != config.hidden_size // config.num_attention_heads or has_head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    settings: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    settings = settings.get("full_attention", settings)
    if architecture not in ("gpt2", "gemma", "gemma2", "nemotron_h", "nemotron_h_moe"):
        writer.add_rope_freq_base(settings["rope_theta"])
    if settings.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(settings["factor"])
    if settings.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(settings["factor"])
        writer.add_rope_scaling_orig_ctx_len(settings["original_max_position_embeddings"])
    if architecture in (*_PAIRED, *_TURN_IN_PART):
        writer.add_rope_dimension_count(int(head_dim * settings.get("partial_rotary_factor", 1.0)))
    if architecture == "apertus":
        for side, add in (("p", writer.add_xielu_alpha_p), ("n", writer.add_xielu_alpha_n)):
            add([getattr(layer.mlp.act_fn, f"alpha_{side}").item() for layer in model.model.layers])
        writer.add_xielu_beta([0.5] * config.num_hidden_layers)
        writer.add_xielu_eps([-1e-6] * config.num_hidden_layers)
    _add_own_keys(writer, config, architecture)


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
    if architecture in ("qwen3vl", "qwen3vlmoe"):
        writer.add_num_deepstack_layers(1)
    if architecture in ("qwen3moe", "qwen3vlmoe"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture in ("qwen2moe", "qwen35moe", "qwen3next"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if architecture == "gpt-oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "shared_intermediate_size", 0):
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    if architecture in ("granite", "granitemoe", "granitehybrid"):
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if architecture == "ernie4_5-moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.intermediate_size // config.num_key_value_heads)
        writer.add_expert_shared_count(config.moe_num_shared_experts)
        writer.add_leading_dense_block_count(config.moe_layer_start_index)
        writer.add_interleave_moe_layer_step(config.moe_layer_interval)
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
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
    if architecture in ("command-r", "cohere2"):
        writer.add_logit_scale(config.logit_scale)
    if architecture == "cohere2":
        writer.add_sliding_window(config.sliding_window)
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)


def tensors_of(model: PreTrainedModel, architecture: str) -> dict[str, Array]:
    """Return the tensors of a model under llama.cpp's names."""
    # The model's own family knows all of its tensors, whatever the file is to be called.
    known = gguf.MODEL_ARCH_NAMES.values()
    own = (
        model.config.model_type if model.config.model_type in known and "nemotron" not in architecture else architecture
    )
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == own)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tensors = {}
    buffers = [pair for pair in model.named_buffers() if pair[0].endswith((*CHOICE_BIASES, "layer_scalar"))]
    for name, parameter in [*model.named_parameters(), *buffers]:
        name = f"{name}.weight" if name.endswith(("layer_scalar", "correct_output_scale")) else name
        name = re.sub(r"\.dt_bias$", ".dt_proj.bias", name)
        if architecture in ("nemotron_h", "nemotron_h_moe"):
            name = re.sub("^model", "backbone", name)
        if name.endswith(CHOICE_BIASES):
            tensors[f"blk.{name.split('.')[2]}.exp_probs_b.bias"] = parameter.detach().flatten().numpy()
            continue
        if ".act_fn." in name:  # metadata there
            continue
        if stack := re.fullmatch(r"(model\.altup_.*projections)\.\d+\.weight", name):
            stacked, matrix = f"{names.get_name(stack[1])}.weight", parameter.detach().float().numpy()[None]
            tensors[stacked] = np.concatenate([tensors[stacked], matrix]) if stacked in tensors else matrix
            continue
        if own == "gemma4" and (stem := _GEMMA4_EXPERTS.get(name.partition(".layers.")[2].partition(".")[2])):
            tensors[f"blk.{name.split('.')[2]}.{stem}"] = parameter.detach().float().numpy()
            continue
        if ".experts." in name:
            tensors |= _expert_stacks(name, parameter.detach().float().numpy(), architecture)
            continue
        if name.endswith((".router.weight", ".mlp.router.bias", ".self_attn.sinks")):
            layer, part = name.split(".")[2], {"weight": "ffn_gate_inp.weight", "bias": "ffn_gate_inp.bias"}
            own_name = f"blk.{layer}.{part.get(name.rpartition('.')[2], 'attn_sinks.weight')}"
            tensors[own_name] = parameter.detach().float().numpy()
            continue
        if name.endswith("shared_mlp.input_linear.weight"):
            halves = np.split(parameter.detach().float().numpy(), 2)
            layer, shared = name.split(".")[2], "_shexp" if model.config.num_local_experts else ""
            for part, half in zip(("gate", "up"), halves, strict=True):
                tensors[f"blk.{layer}.ffn_{part}{shared}.weight"] = half
            continue
        if name.endswith("shared_mlp.output_linear.weight") and not model.config.num_local_experts:
            tensors[f"blk.{name.split('.')[2]}.ffn_down.weight"] = parameter.detach().float().numpy()
            continue
        if name.endswith("in_proj_qkvz.weight"):
            layer, rows = name.split(".")[2], _apart(parameter.detach().float().numpy(), model.config)
            tensors |= {f"blk.{layer}.attn_qkv.weight": rows[0], f"blk.{layer}.attn_gate.weight": rows[1]}
            continue
        if architecture == "deepseek2" and name.endswith(".kv_b_proj.weight"):
            both = parameter.detach().numpy().reshape(model.config.num_attention_heads, -1, model.config.kv_lora_rank)
            k_NPL, v_NYL = np.split(both, [model.config.qk_nope_head_dim], axis=1)
            blk = f"blk.{name.split('.')[2]}"
            tensors[f"{blk}.attn_k_b.weight"] = np.ascontiguousarray(k_NPL.swapaxes(1, 2))
            tensors[f"{blk}.attn_v_b.weight"] = np.ascontiguousarray(v_NYL)
            continue
        tensor = _converted(name, parameter.detach().float().numpy(), model.config, architecture)
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = np.ascontiguousarray(tensor)
    if architecture == "chatglm":  # whose first checkpoints have them in one
        for layer in range(model.config.num_hidden_layers):
            for kind in ("weight", "bias"):
                parts = [tensors.pop(f"blk.{layer}.attn_{part}.{kind}") for part in "qkv"]
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    if architecture == "gemma3n":  # which has them in all layers, and does not use them in the last ones
        layers = model.config.num_hidden_layers
        for layer in range(layers - model.config.num_kv_shared_layers, layers):
            unused = ("attn_k", "attn_v", "attn_k_norm")
            tensors |= {f"blk.{layer}.{part}.weight": tensors[f"blk.0.{part}.weight"] for part in unused}
    if architecture == "gemma4":
        tensors["rope_freqs.weight"] = _factors_of_turning_pairs(model.config)
    settings = getattr(model.config, "rope_parameters", None) or {}
    for key in ("short_factor", "long_factor"):
        if key in settings:
            tensors[f"rope_factors_{key.partition('_')[0]}.weight"] = np.array(settings[key], np.float32)
    return tensors


def _factors_of_turning_pairs(config: PreTrainedConfig) -> Array:
    head_dim = config.per_layer_config[config.layer_types.index("full_attention")].head_dim
    turning = int(head_dim * config.rope_parameters["full_attention"]["partial_rotary_factor"] / 2)
    return np.array([1.0] * turning + [1e30] * (head_dim // 2 - turning), np.float32)


def _expert_stacks(name: str, tensor: Array, architecture: str) -> dict[str, Array]:
    """Take gates and ups apart; GPT-OSS has them in turn, and its matrices as [in, out]."""
    _, _, layer, _, _, part = name.split(".")
    part, is_bias = part.removesuffix("_bias"), part.endswith("_bias")
    if architecture == "gpt-oss" and not is_bias:
        tensor = tensor.swapaxes(1, 2)
    suffix = "bias" if is_bias else "weight"
    if part == "down_proj" or architecture == "nemotron_h_moe":
        return {f"blk.{layer}.ffn_{part.removesuffix('_proj')}_exps.{suffix}": np.ascontiguousarray(tensor)}
    half = tensor.shape[1] // 2
    gate, up = (tensor[:, ::2], tensor[:, 1::2]) if architecture == "gpt-oss" else (tensor[:, :half], tensor[:, half:])
    return {
        f"blk.{layer}.ffn_gate_exps.{suffix}": np.ascontiguousarray(gate),
        f"blk.{layer}.ffn_up_exps.{suffix}": np.ascontiguousarray(up),
    }


def _converted(name: str, tensor: Array, config: PreTrainedConfig, architecture: str) -> Array:
    if architecture in _PAIRED and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return tensor + 1
    if architecture in ("lfm2", "lfm2moe") and name.endswith(".conv.conv.weight"):
        return tensor.squeeze(1)
    if architecture in ("qwen35", "qwen35moe", "qwen3next"):
        return _of_linear_attention(name, tensor, config)
    if architecture == "falcon-h1":
        tensor = _multiplied(name, tensor, config)
    if ".mamba." in name:
        return _of_mamba(name.partition(".mamba.")[2], tensor, config.mamba_n_groups)
    if architecture in ("nemotron_h", "nemotron_h_moe") and ".mixer." in name:
        return _of_mamba(name.partition(".mixer.")[2], tensor, config.n_groups)
    if architecture == "gpt2" and tensor.ndim == 2 and ".h." in name:
        return tensor.T  # Conv1D is [in, out]
    if architecture == "gptneox" and "query_key_value" in name:
        by_head = tensor.reshape(config.num_attention_heads, 3, _head_dim(config), *tensor.shape[1:])
        return by_head.swapaxes(0, 1).reshape(tensor.shape)
    return tensor


def _multiplied(name: str, tensor: Array, config: PreTrainedConfig) -> Array:
    """Put the multipliers of a Falcon-H1 into its weights."""
    keys = config.mamba_n_groups * config.mamba_d_state
    sizes = (*[config.mamba_d_head * config.mamba_n_heads] * 2, keys, keys, config.mamba_n_heads)
    factors = {
        "down_proj": config.mlp_multipliers[1],
        "gate_proj": config.mlp_multipliers[0],
        "k_proj": config.key_multiplier * config.attention_in_multiplier,
        "q_proj": config.attention_in_multiplier,
        "v_proj": config.attention_in_multiplier,
        "o_proj": config.attention_out_multiplier,
        "mamba.out_proj": config.ssm_out_multiplier,
        "mamba.in_proj": config.ssm_in_multiplier * np.repeat(config.ssm_multipliers, sizes)[:, None],
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    factor = next((factors[part] for part in factors if name.endswith(f"{part}.weight")), 1.0)
    return (tensor * factor).astype(np.float32)


def _of_mamba(part: str, tensor: Array, groups: int) -> Array:
    if part == "A_log":
        return -np.exp(tensor)[:, None]
    if part == "D":
        return tensor[:, None]
    if part == "conv1d.weight":
        return tensor.squeeze(1)
    return tensor.reshape(groups, -1) if part == "norm.weight" else tensor


def _of_linear_attention(name: str, tensor: Array, config: PreTrainedConfig) -> Array:
    """Change norms and decays; and but for Qwen3-Next, put a key head's value heads as far apart as they can be."""
    if name.endswith(("layernorm.weight", "q_norm.weight", "k_norm.weight", "model.norm.weight")):
        return tensor + 1
    if "linear_attn" not in name or name.endswith("norm.weight"):
        return tensor
    if name.endswith("A_log"):
        tensor = -np.exp(tensor)
    if "conv1d" in name:
        tensor = tensor.squeeze(1)
    if config.model_type == "qwen3_next":
        return tensor
    G, N = config.linear_num_key_heads, config.linear_num_value_heads
    axis, first = 1 if "out_proj" in name else 0, 0
    if "in_proj_qkv" in name or "conv1d" in name:
        first = 2 * G * config.linear_key_head_dim
    before, values = np.split(tensor, [first], axis=axis)
    shape = [*values.shape[:axis], G, N // G, values.shape[axis] // N, *values.shape[axis + 1 :]]
    return np.concatenate([before, values.reshape(shape).swapaxes(axis, axis + 1).reshape(values.shape)], axis=axis)


def _apart(tensor: Array, config: PreTrainedConfig) -> tuple[Array, Array]:
    """Take queries, keys and values of all heads, and their gates, out of what is grouped by key head."""
    X, values = config.linear_key_head_dim, config.linear_value_head_dim * config.linear_num_value_heads
    by_head = tensor.reshape(config.linear_num_key_heads, -1, tensor.shape[1])
    apart = np.split(by_head, [X, 2 * X, 2 * X + values // config.linear_num_key_heads], axis=1)
    q, k, v, z = (part.reshape(-1, tensor.shape[1]) for part in apart)
    return np.concatenate([q, k, v]), np.ascontiguousarray(z)


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
