"""What llama.cpp's converter makes of the tensors of a model of transformers, as `gguf_converter.py` of its config."""

from __future__ import annotations

import re

import gguf
import numpy as np
from gguf_converter import PAIRED, key_heads, size_of_head
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

Array = NDArray[np.float32]

# What its converter names by itself: gates and ups stay in one tensor.
_GEMMA4_EXPERTS = {
    "experts.gate_up_proj": "ffn_gate_up_exps.weight", "experts.down_proj": "ffn_down_exps.weight",
    "router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale",
}  # fmt: skip
CHOICE_BIASES = ("expert_bias", "e_score_correction_bias")  # buffers of the models of transformers


def tensors_of(model: PreTrainedModel, architecture: str) -> dict[str, Array]:
    """Return the tensors of a model under llama.cpp's names."""
    # The model's own family knows all of its tensors, whatever the file is to be called.
    known = gguf.MODEL_ARCH_NAMES.values()
    if architecture == "granite_swa":
        return _of_granite_swa(model)
    if architecture in ("t5", "t5encoder"):
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, model.config.num_decoder_layers)
        return {
            names.get_name(name, try_suffixes=(".weight",)): parameter.detach().float().numpy()
            for name, parameter in model.named_parameters()
        }
    architecture = "qwen3moe" if architecture == "mellum" else architecture  # which this gguf package does not know
    own = (
        model.config.model_type if model.config.model_type in known and "nemotron" not in architecture else architecture
    )
    # Which has queries, keys and values apart.
    own = {"bailingmoe2": "dots1", "cohere2moe": "dots1", "laguna": "dots1", "hy_v3": "dots1"}.get(own, own)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == own)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tensors = {}
    buffers = [pair for pair in model.named_buffers() if pair[0].endswith((*CHOICE_BIASES, "layer_scalar"))]
    for name, parameter in [*model.named_parameters(), *buffers]:
        name = f"{name}.weight" if name.endswith(("layer_scalar", "correct_output_scale")) else name
        name = re.sub(r"\.dt_bias$", ".dt_proj.bias", name)
        if architecture in ("nemotron_h", "nemotron_h_moe"):
            name = re.sub("^model", "backbone", name)
        if architecture == "bloom":
            name = name.removeprefix("transformer.")
        if name.endswith(CHOICE_BIASES):
            bias = parameter.detach().numpy()  # ERNIE's is one row, and stays it
            bias = bias if architecture == "ernie4_5-moe" else bias.flatten()
            suffix = "" if architecture == "hy_v3" else ".bias"
            tensors[f"blk.{name.split('.')[2]}.exp_probs_b{suffix}"] = bias
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
        name = name.replace(".shared_mlp.", ".shared_experts.") if architecture == "hy_v3" else name
        if name.endswith((".router.weight", ".router.gate.weight", ".mlp.router.bias", ".self_attn.sinks")):
            layer, part = name.split(".")[2], {"weight": "ffn_gate_inp.weight", "bias": "ffn_gate_inp.bias"}
            own_name = f"blk.{layer}.{part.get(name.rpartition('.')[2], 'attn_sinks.weight')}"
            tensors[own_name] = parameter.detach().float().numpy()
            continue
        if norm := re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.([qk])_layernorm\.norms\.\d+\.weight", name):
            stacked, vector = f"blk.{norm[1]}.attn_{norm[2]}_norm.weight", parameter.detach().float().numpy()[None]
            tensors[stacked] = np.concatenate([tensors[stacked], vector]) if stacked in tensors else vector
            continue
        if name.endswith(".g_proj.weight"):
            tensors[f"blk.{name.split('.')[2]}.attn_gate.weight"] = parameter.detach().float().numpy()
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
    if architecture in ("chatglm", "bailingmoe2", "qwen"):  # whose first checkpoints have them in one
        for layer in range(model.config.num_hidden_layers):
            for kind in ("weight",) if architecture == "bailingmoe2" else ("weight", "bias"):
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


def _of_granite_swa(model: PreTrainedModel) -> dict[str, Array]:
    """Name the tensors of a family that this gguf package does not know; gates and ups stay in one."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GRANITE, model.config.num_hidden_layers)
    own = {
        "self_attn.sinks": "attn_sinks.weight", "block_sparse_moe.experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "block_sparse_moe.experts.down_proj": "ffn_down_exps.weight",
        "block_sparse_moe.router.weight": "ffn_gate_inp.weight",
        "shared_mlp.input_linear.weight": "ffn_up_shexp.weight",
        "shared_mlp.output_linear.weight": "ffn_down_shexp.weight",
    }  # fmt: skip
    tensors = {}
    for name, parameter in model.named_parameters():
        tensor = _converted(name, parameter.detach().float().numpy(), model.config, "granite_swa")
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        stem = f"blk.{layer}.{own[part]}" if part in own else names.get_name(name, try_suffixes=(".weight", ".bias"))
        tensors[stem] = np.ascontiguousarray(tensor)
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
    if architecture == "qwen35moe":  # as the converter writes it with --fuse-gate-up-exps
        return {f"blk.{layer}.ffn_gate_up_exps.weight": tensor}
    half = tensor.shape[1] // 2
    gate, up = (tensor[:, ::2], tensor[:, 1::2]) if architecture == "gpt-oss" else (tensor[:, :half], tensor[:, half:])
    return {
        f"blk.{layer}.ffn_gate_exps.{suffix}": np.ascontiguousarray(gate),
        f"blk.{layer}.ffn_up_exps.{suffix}": np.ascontiguousarray(up),
    }


def _converted(name: str, tensor: Array, config: PreTrainedConfig, architecture: str) -> Array:
    if architecture in PAIRED and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if architecture == "glm4" and hasattr(config, "sections") and ("q_proj" in name or "k_proj" in name):
        turning = int(config.head_dim * config.rope_parameters["partial_rotary_factor"])
        heads = tensor.reshape(-1, config.head_dim, *tensor.shape[1:])
        return np.concatenate([heads[:, :turning:2], heads[:, 1:turning:2], heads[:, turning:]], 1).reshape(
            tensor.shape
        )
    if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return tensor + 1
    if architecture in ("lfm2", "lfm2moe") and name.endswith(".conv.conv.weight"):
        return tensor.squeeze(1)
    if architecture in ("qwen35", "qwen35moe", "qwen3next"):
        return _of_linear_attention(name, tensor, config)
    if architecture == "falcon-h1":
        tensor = _multiplied(name, tensor, config)
    if ".mamba." in name and architecture == "jamba":
        return -np.exp(tensor) if name.endswith("A_log") else tensor.squeeze(1) if "conv1d.weight" in name else tensor
    if ".mamba." in name:
        return _of_mamba(name.partition(".mamba.")[2], tensor, config.mamba_n_groups)
    if architecture in ("nemotron_h", "nemotron_h_moe") and ".mixer." in name:
        return _of_mamba(name.partition(".mixer.")[2], tensor, config.n_groups)
    if architecture == "falcon" and "query_key_value" in name:
        K, sharing = key_heads(config), config.num_attention_heads // key_heads(config)
        groups = np.split(tensor.reshape(K, sharing + 2, size_of_head(config), -1), [sharing, sharing + 1], axis=1)
        return np.concatenate([part.reshape(-1, tensor.shape[1]) for part in groups])
    if architecture == "gpt2" and tensor.ndim == 2 and ".h." in name:
        return tensor.T  # Conv1D is [in, out]
    if architecture in ("bloom", "gptneox") and "query_key_value" in name:
        by_head = tensor.reshape(config.num_attention_heads, 3, size_of_head(config), *tensor.shape[1:])
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
