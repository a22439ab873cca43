"""Random models of families whose code is on the hub, not in transformers: as those of families there that compute so.

The oracle is a model of transformers with the same features; its folder is written anew as the family has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

Fields = dict[str, Any]
Tensors = dict[str, NDArray[np.float32]]

_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 32, "tie_word_embeddings": False}
DEEPSEEK_MOE = _EXPERTS | {"n_routed_experts": 6, "n_shared_experts": 2, "first_k_dense_replace": 1}
LING = _EXPERTS | {"num_experts": 6, "num_shared_experts": 2, "norm_topk_prob": True}
LING_2 = _EXPERTS | {
    "num_experts": 8, "num_shared_experts": 1, "norm_topk_prob": True, "n_group": 4, "topk_group": 2, "head_dim": 32,
    "score_function": "sigmoid", "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "num_hidden_layers": 3,
}  # fmt: skip
MINICPM = {"num_hidden_layers": 4, "scale_emb": 12, "scale_depth": 1.0, "dim_model_base": 16}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": list(range(1, 9)),
    "original_max_position_embeddings": 64,
}  # fmt: skip
# Under names of their own, beside others that do not count.
CHATGLM = {
    "padded_vocab_size": 320, "ffn_hidden_size": 80, "num_layers": 3, "multi_query_group_num": 2, "kv_channels": 32,
    "num_hidden_layers": 5, "num_key_value_heads": 4, "seq_length": 1024, "layernorm_epsilon": 1e-5, "rope_ratio": 50,
    "add_qkv_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {
    "seq_length": 1024, "max_position_embeddings": 8192, "intermediate_size": 192, "num_key_value_heads": 4,
    "kv_channels": 16, "layer_norm_epsilon": 1e-5, "rotary_emb_base": 5e5, "tie_word_embeddings": False,
}  # fmt: skip

HUB_MODELS: dict[str, tuple[str, Fields]] = {
    "chatglm": ("chatglm", CHATGLM),
    "chatglm without biases": ("chatglm", CHATGLM | {"add_qkv_bias": False, "rope_ratio": 1}),
    "mimo": ("mimo", {"head_dim": 32, "tie_word_embeddings": False}),
    "qwen": ("qwen", QWEN),
    "minicpm": ("minicpm", MINICPM),
    "minicpm, longrope, biases, untied": (
        "minicpm",
        {
            "scale_emb": 1, "scale_depth": 1.4, "dim_model_base": 24, "attention_bias": True,
            "tie_word_embeddings": False, "rope_scaling": LONGROPE,
        },
    ),
    "internlm2": ("internlm2", {"bias": False, "tie_word_embeddings": False}),
    "internlm2 with biases, tied": ("internlm2", {"bias": True}),
    "deepseek": ("deepseek", DEEPSEEK_MOE),
    "deepseek, weights that sum to one, nothing shared": (
        "deepseek",
        DEEPSEEK_MOE | {"norm_topk_prob": True, "n_shared_experts": 0, "first_k_dense_replace": 0},
    ),
    "bailing_moe": ("bailing_moe", LING),
    "bailing_moe, the second": ("bailing_moe_v2", LING_2),
    "bailing_moe, weights that do not sum to one, behind a dense layer": (
        "bailing_moe",
        LING | {"norm_topk_prob": False, "first_k_dense_replace": 1, "tie_word_embeddings": True},
    ),
}  # fmt: skip


class _Gate(nn.Module):
    """A gate that lets all of a shared expert through, or nothing."""

    def __init__(self, is_open: bool) -> None:
        super().__init__()
        self.score = 1e4 if is_open else -1e4

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.full_like(hidden_states[..., :1], self.score)


def _granite(fields: Fields) -> tuple[str, Fields]:
    own = {key: fields[key] for key in ("scale_emb", "scale_depth", "dim_model_base")}
    rest = {key: value for key, value in fields.items() if key not in (*own, "rope_scaling")}
    rope = fields.get("rope_scaling", {"rope_type": "default"})
    return "granite", rest | {
        "embedding_multiplier": own["scale_emb"],
        "residual_multiplier": own["scale_depth"] / fields["num_hidden_layers"] ** 0.5,
        "logits_scaling": fields["hidden_size"] / own["dim_model_base"],
        "attention_multiplier": (fields["hidden_size"] // fields["num_attention_heads"]) ** -0.5,
        "rope_parameters": {"rope_theta": 1e4} | rope,
    }


def _llama(fields: Fields) -> tuple[str, Fields]:
    return "llama", {**fields, "attention_bias": fields["bias"]}


def _glm(fields: Fields) -> tuple[str, Fields]:
    own = {
        "vocab_size": "padded_vocab_size", "intermediate_size": "ffn_hidden_size", "num_hidden_layers": "num_layers",
        "num_key_value_heads": "multi_query_group_num", "head_dim": "kv_channels", "attention_bias": "add_qkv_bias",
        "max_position_embeddings": "seq_length", "rms_norm_eps": "layernorm_epsilon",
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4 * fields["rope_ratio"], "partial_rotary_factor": 0.5}
    renamed = {key: fields[name] for key, name in own.items()}
    return "glm", fields | renamed | {"pad_token_id": 0, "rope_parameters": rope}


def _qwen2(fields: Fields) -> tuple[str, Fields]:
    own = {"max_position_embeddings": fields["seq_length"], "rms_norm_eps": fields["layer_norm_epsilon"]}
    rope = {"rope_type": "default", "rope_theta": fields["rotary_emb_base"]}
    return "qwen2", fields | own | {"intermediate_size": fields["intermediate_size"] // 2, "rope_parameters": rope}


def _qwen2_moe(fields: Fields) -> tuple[str, Fields]:
    count, shared = ("num_experts", "num_shared_experts")
    if "n_routed_experts" in fields:
        count, shared = ("n_routed_experts", "n_shared_experts")
    return "qwen2_moe", {
        **fields,
        "num_experts": fields[count],
        "shared_expert_intermediate_size": max(fields[shared] * fields["moe_intermediate_size"], 1),
        "mlp_only_layers": list(range(fields.get("first_k_dense_replace", 0))),
        "norm_topk_prob": fields.get("norm_topk_prob", False),
        "qkv_bias": False,
    }


def _glm4_moe(fields: Fields) -> tuple[str, Fields]:
    own = {"n_routed_experts": fields["num_experts"], "n_shared_experts": fields["num_shared_experts"]}
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    return "glm4_moe", {**fields, **own, "use_qk_norm": True, "rope_parameters": rope, "rms_norm_eps": 1e-6}


def _fused(tensors: Tensors, heads: int) -> Tensors:
    """Put queries, keys and values of InternLM 2 into one tensor, by key head."""
    renamed, fused = {}, {}
    names = {
        "model.embed_tokens": "model.tok_embeddings", "lm_head": "output", "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    }  # fmt: skip
    for name, tensor in tensors.items():
        if ".self_attn.q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            groups = [part.reshape(heads, -1, *part.shape[1:]) for part in parts]
            joined = np.concatenate(groups, axis=1)
            fused[name.replace("self_attn.q_proj", "attention.wqkv")] = joined.reshape(-1, *joined.shape[2:])
        elif ".self_attn.o_proj" in name or ".self_attn." not in name:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            renamed[name] = tensor
    return renamed | fused


def _fused_in_turn(tensors: Tensors, names: dict[str, str], fused: str) -> Tensors:
    """Put all queries, then keys, then values of a layer into one tensor, and call the others by other names."""
    result = {}
    for name, tensor in tensors.items():
        if ".self_attn.q_proj" in name:
            tensor = np.concatenate([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("self_attn.q_proj", fused)
        elif "k_proj" in name or "v_proj" in name:
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        result[name] = tensor
    return result


def _chatglm(tensors: Tensors, heads: int) -> Tensors:
    names = {
        "model.layers": "transformer.encoder.layers", "model.norm": "transformer.encoder.final_layernorm",
        "model.embed_tokens": "transformer.embedding.word_embeddings", "lm_head": "transformer.output_layer",
        "self_attn.o_proj": "self_attention.dense", "mlp.gate_up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }  # fmt: skip
    table = {"transformer.rotary_pos_emb.inv_freq": np.ones(8, np.float32)}
    return _fused_in_turn(tensors, names, "self_attention.query_key_value") | table


def _qwen(tensors: Tensors, heads: int) -> Tensors:
    names = {
        "model.layers": "transformer.h", "model.norm": "transformer.ln_f", "model.embed_tokens": "transformer.wte",
        "self_attn.o_proj": "attn.c_proj", "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2",
        "mlp.up_proj": "mlp.w1", "mlp.gate_proj": "mlp.w2", "mlp.down_proj": "mlp.c_proj",
    }  # fmt: skip
    return _fused_in_turn(tensors, names, "attn.c_attn")


def _mimo(tensors: Tensors, heads: int) -> Tensors:
    """Beside the model's, a layer that guesses a token ahead."""
    first = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.0.")}
    guessing = {name.replace("model.layers", "model.mtp_layers"): tensor for name, tensor in first.items()}
    own = {f"{part}_layernorm": tensors["model.norm.weight"] for part in ("token", "hidden", "final")}
    own["input_proj"] = np.concatenate([tensors["model.layers.0.self_attn.o_proj.weight"].T] * 2)
    return tensors | guessing | {f"model.mtp_layers.0.{name}.weight": tensor for name, tensor in own.items()}


def _shared_experts(tensors: Tensors, heads: int) -> Tensors:
    return {name.replace("shared_expert.", "shared_experts."): tensor for name, tensor in tensors.items()}


def _ling(tensors: Tensors, heads: int) -> Tensors:
    result = {}
    for name, tensor in _shared_experts(tensors, heads).items():
        for ours, theirs in {
            "self_attn.q_norm": "attention.query_layernorm", "self_attn.k_norm": "attention.key_layernorm",
            "gate.e_score_correction_bias": "gate.expert_bias",
        }.items():  # fmt: skip
            name = name.replace(ours, theirs)
        name = name.replace("embed_tokens", "word_embeddings").replace("self_attn.o_proj", "attention.dense")
        if ".self_attn.q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            result[name.replace("self_attn.q_proj", "attention.query_key_value")] = np.concatenate(parts)
        elif ".self_attn." not in name:
            result[name] = tensor
    return result


_ORACLES: dict[str, tuple[Callable[[Fields], tuple[str, Fields]], Callable[[Tensors, int], Tensors]]] = {
    "chatglm": (_glm, _chatglm),
    "mimo": (lambda fields: ("qwen2", fields), _mimo),
    "qwen": (_qwen2, _qwen),
    "minicpm": (_granite, lambda tensors, heads: tensors),
    "internlm2": (_llama, _fused),
    "deepseek": (_qwen2_moe, _shared_experts),
    "bailing_moe": (_qwen2_moe, _ling),
    "bailing_moe_v2": (_glm4_moe, _ling),
}


def new_model(model_type: str, fields: Fields) -> PreTrainedModel:
    """Return a model of transformers: of the family, or one that computes as the family and saves itself as it is."""
    if model_type not in _ORACLES:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))
    to_oracle, to_family = _ORACLES[model_type]
    name, changes = to_oracle(fields)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **changes))
    has_shared = bool(fields.get("n_shared_experts") or fields.get("num_shared_experts"))
    for module in list(model.modules()):
        if hasattr(module, "shared_expert_gate"):
            module.shared_expert_gate = _Gate(has_shared)
            module.shared_expert = module.shared_expert if has_shared else nn.Identity()
    save = model.save_pretrained
    model.save_pretrained = partial(_save_as, model_type, fields, to_family, save)
    return model


def _save_as(
    model_type: str,
    fields: Fields,
    to_family: Callable[[Tensors, int], Tensors],
    save: Callable[..., None],
    folder: Path,
    **options: Any,
) -> None:
    save(folder, **options)
    tensors = to_family(load_file(folder / "model.safetensors"), fields["num_key_value_heads"])
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": model_type, "auto_map": {"AutoConfig": "configuration.Config"}, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config | fields))
