"""Gemma 3n: four residual streams (AltUp), a thin way beside attention (LAuReL), and features of each layer's own."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gemma, gemma3, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import WINDOW, WINDOW_PATTERN, GGUFKeys, window_kinds
from edgelm_export.checkpoints.tensor_map import TensorLayout

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "sliding_window": 512,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "final_logit_softcapping": 30.0,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "num_kv_shared_layers": 15,
    "altup_active_idx": 0,
    "altup_num_inputs": 4,
    "altup_correct_scale": True,
    "laurel_rank": 64,
}
_PATTERN = 5
_SPARSE_LAYERS, _SHARE = 10, 0.95  # the first ones of a model that has more
_DIGITS = 5  # of a share, of which a file holds the quantile in float32
_LAYER = "model.layers.{i}"
# Of a Gemma 3 whose layers have features of their own.
GGUF_NAMES = {
    **gemma.GGUF_NAMES,
    **llama.GGUF_QK_NORMS,
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection": "per_layer_model_proj",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
    f"{_LAYER}.per_layer_input_gate": "blk.{i}.inp_gate",
    f"{_LAYER}.per_layer_projection": "blk.{i}.proj",
    f"{_LAYER}.post_per_layer_input_norm": "blk.{i}.post_norm",
}
_GGUF_NAMES = {
    **GGUF_NAMES,
    "model.altup_projections.{e}": "altup_proj",
    "model.altup_unembed_projections.{e}": "altup_unembd_proj",
    f"{_LAYER}.laurel.linear_left": "blk.{i}.laurel_l",
    f"{_LAYER}.laurel.linear_right": "blk.{i}.laurel_r",
    f"{_LAYER}.laurel.post_laurel_norm": "blk.{i}.laurel_post_norm",
    f"{_LAYER}.altup.correct_output_scale": "blk.{i}.altup_correct_scale.weight",
    f"{_LAYER}.altup.router_norm": "blk.{i}.altup_router_norm",
    f"{_LAYER}.altup.modality_router": "blk.{i}.altup_router",
    f"{_LAYER}.altup.prediction_coefs": "blk.{i}.altup_predict_coef",
    f"{_LAYER}.altup.correction_coefs": "blk.{i}.altup_correct_coef",
}
_GGUF_KEYS: GGUFKeys = {
    **WINDOW,
    WINDOW_PATTERN: None,
    "attention.shared_kv_layers": ("num_kv_shared_layers", 0),
    "rope.freq_base": ("rope_theta", 1e6),
    "rope.freq_base_swa": ("rope_local_base_freq", 1e4),
    "final_logit_softcapping": ("final_logit_softcapping", 30.0),
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    "altup.active_idx": ("altup_active_idx", 0),
    "altup.num_inputs": ("altup_num_inputs", 4),
    "activation_sparsity_scale": None,
}
# What a source may have of layers that look at the keys and values of others.
_PARTS = ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "k_norm.weight")
UNUSED = frozenset(f"{_LAYER}.self_attn.{part}" for part in _PARTS)
GGUF_UNUSED = frozenset(f"blk.{{i}}.attn_{part}.weight" for part in ("k", "v", "k_norm"))


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    values |= gemma3.rotations(values, values["rope_theta"], values["rope_local_base_freq"])
    values["intermediate_size"] = _one_size(values["intermediate_size"])
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    if hf_values.whole_number(values, "altup_active_idx"):
        raise CheckpointError(
            f"config.json: altup_active_idx is {values['altup_active_idx']}; supported is 0, the first stream."
        )
    streams = hf_values.bounded(values, "altup_num_inputs")
    rows = hf_values.whole_number(values, "vocab_size_per_layer_input")
    config = llama.to_model_config(values)
    return dataclasses.replace(
        config,
        hidden_act=hf_values.activation(values, "gelu_pytorch_tanh", "hidden_activation"),
        activation_sparsity_pattern=_shares(values, layers),
        embedding_multiplier=config.hidden_size**0.5,
        final_logit_softcapping=hf_values.optional_number(values, "final_logit_softcapping"),
        rope_local_theta=hf_values.number(values, "rope_local_base_freq", 1e4),
        layer_types=tuple(hf_values.layer_types(values) or hf_values.last_sees_all(layers, _PATTERN)),
        sliding_window=hf_values.bounded(values, "sliding_window"),
        num_kv_shared_layers=hf_values.whole_number(values, "num_kv_shared_layers"),
        hidden_size_per_layer_input=hf_values.bounded(values, "hidden_size_per_layer_input"),
        vocab_size_per_layer_input=None if rows == config.vocab_size else rows,
        altup_num_inputs=streams,
        altup_correct_scale=hf_values.flag(values, "altup_correct_scale"),
        laurel_rank=hf_values.bounded(values, "laurel_rank"),
    )


def _one_size(sizes: Any) -> Any:
    """Return the size of all layers' feed-forwards, which may be listed layer by layer."""
    if not isinstance(sizes, list):
        return sizes
    if not sizes or any(size != sizes[0] for size in sizes):
        raise CheckpointError(f"config.json: intermediate_size is {sizes!r:.80}; supported is one size for all layers.")
    return sizes[0]


def _shares(values: Mapping[str, Any], layers: int) -> tuple[float, ...]:
    """Read which share of each layer's gates is set to zero; nothing where no layer has any."""
    listed = values.get("activation_sparsity_pattern")
    if listed is None:
        sparse = _SPARSE_LAYERS if layers > _SPARSE_LAYERS else 0
        listed = [_SHARE] * sparse + [0.0] * (layers - sparse)
    if not isinstance(listed, list):
        raise CheckpointError(
            f"config.json: activation_sparsity_pattern is {listed!r:.80}; it must be a list with a share of each layer."
        )
    shares = tuple(
        hf_values.number({"activation_sparsity_pattern": share}, "activation_sparsity_pattern", 0.0) for share in listed
    )
    return shares if any(shares) else ()


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    metadata = header.metadata
    sizes = metadata.get("gemma3n.feed_forward_length")
    if isinstance(sizes, array):  # of each layer
        header = header.changed({"feed_forward_length": _one_size(sizes.tolist())})
    values = gguf_header.to_hf_config(header, _GGUF_KEYS)
    table, left = "per_layer_token_embd.weight", "blk.0.laurel_l.weight"
    for name in (table, left):
        if not header.shapes.get(name):
            raise CheckpointError(f"The GGUF file has no tensor {name}: it is not a whole Gemma 3n.")
    return {
        **values,
        "layer_types": window_kinds(header) if f"gemma3n.{WINDOW_PATTERN}" in metadata else None,
        "vocab_size_per_layer_input": header.shapes[table][0],
        "laurel_rank": header.shapes[left][0],
        "activation_sparsity_pattern": _gguf_shares(header),
    }


def _gguf_shares(header: GGUFHeader) -> list[float] | None:
    """Read the shares, which a file holds as quantiles of a normal distribution: minus infinity is a share of zero."""
    quantiles = header.metadata.get("gemma3n.activation_sparsity_scale")
    if quantiles is None:
        return None
    if not isinstance(quantiles, array) or quantiles.typecode not in "fd":
        raise CheckpointError(
            f"gemma3n.activation_sparsity_scale is {str(quantiles)[:60]}; it must be a list of numbers."
        )
    return [round(NormalDist().cdf(quantile), _DIGITS) for quantile in quantiles]


def _layout_of(config: ModelConfig) -> TensorLayout:
    """Pass over the scale of what gates the features where it has no effect."""
    unused = () if config.altup_correct_scale else (f"{_LAYER}.altup.correct_output_scale",)
    return dataclasses.replace(_LAYOUT, ignored=_LAYOUT.ignored.union(unused))


_LAYOUT = TensorLayout(ignored=UNUSED)

GEMMA3N = Architecture(
    model_type="gemma3n_text",
    defaults=_DEFAULTS,
    null_keys=frozenset({"bos_token_id", "eos_token_id", "final_logit_softcapping"}),
    read_config=_to_model_config,
    features={
        "norm_placement": "both",
        "mlp_bias": False,
        "attention_multiplier": 1.0,
        "qk_norm": True,
        "v_norm": True,
    },
    layout_of=_layout_of,
    gguf=GGUFFamily(
        architecture="gemma3n",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=_GGUF_NAMES, ignored=GGUF_UNUSED),
    ),
)
