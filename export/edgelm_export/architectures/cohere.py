"""Cohere's Command R and Aya: attention and feed-forward side by side behind one layer norm without a bias.

Command R+ also norms queries and keys, each head by weights of its own, which are the rows of one tensor.
Cohere 2 (Command R7B, Tiny Aya) has windows in three layers of four; those that see all do not turn their heads.
Compass, the part of North Micro that reads text, says by kind of layer whether and how heads turn, by halves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gemma3, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import NO_KEYS, WINDOW, GGUFKeys, float32_number
from edgelm_export.checkpoints.tensor_map import TensorLayout
from edgelm_export.checkpoints.text_part import plain_rope

DEFAULTS: Mapping[str, Any] = {
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
    "bos_token_id": 5,
    "eos_token_id": 255001,
}
_BASE = 10000.0
_PATTERN = 4  # of these, the last layer sees all
_RENAMED: Mapping[str, str] = {"rms_norm_eps": "layer_norm_eps"}
FEATURES: Mapping[str, Any] = {
    "norm": "layer_no_bias", "norm_placement": "shared", "parallel_residual": True, "mlp_bias": False,
}  # fmt: skip
_HEAD_NORMS = tuple(llama.GGUF_QK_NORMS)
_ROW_ORDERS = llama.GGUF_ROW_ORDERS | dict.fromkeys(_HEAD_NORMS, "pairs")


def read_scaled(values: Mapping[str, Any]) -> ModelConfig:
    """Read config.json's values as those of a Llama whose logits are multiplied by `logit_scale`."""
    scale = hf_values.number(values, "logit_scale", 0.0625)
    if not scale > 0:
        raise CheckpointError(f"config.json: logit_scale is {scale}; it must be above 0.")
    return dataclasses.replace(llama.to_model_config(values), logits_scaling=1 / scale)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    has_norms = hf_values.flag(values, "use_qk_norm")
    config = read_scaled(values)
    return dataclasses.replace(config, qk_norm=has_norms, qk_norm_scope="own_head" if has_norms else "head")


def _to_model_config_2(values: dict[str, Any]) -> ModelConfig:
    config = read_scaled(values)
    step = hf_values.bounded({"sliding_window_pattern": _PATTERN} | dict(values), "sliding_window_pattern")
    kinds = hf_values.layer_types(values) or hf_values.last_sees_all(config.num_hidden_layers, step)
    return dataclasses.replace(
        config,
        layers_without_rope=hf_values.layers_of(kinds, "full_attention"),
        **hf_values.windows_by_kind(values, kinds),
    )


def _to_compass_config(values: dict[str, Any]) -> ModelConfig:
    settings = values.get("rope_parameters")
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    kinds = hf_values.layer_types(values) or ["full_attention"] * layers
    if not isinstance(settings, Mapping) or not settings.keys() >= set(kinds):
        raise CheckpointError(
            f"config.json: rope_parameters is {settings!r:.80}; it must say of each kind in layer_types how its heads "
            "turn, or null."
        )
    turning = {kind: rope for kind in sorted(set(kinds)) if (rope := settings[kind]) is not None}
    if not all(isinstance(rope, Mapping) for rope in turning.values()):
        raise CheckpointError(f"config.json: rope_parameters is {settings!r:.80}; it must hold objects or null.")
    ropes = {kind: plain_rope(rope) for kind, rope in turning.items()}
    both = gemma3.rotations({"rope_parameters": ropes}, _BASE, _BASE) if len(ropes) > 1 else {}
    scale = 1.0 if values.get("logit_scale") is None else values["logit_scale"]
    every = {"logit_scale": scale, "rope_parameters": next(iter(ropes.values()), None), "rope_scaling": None}
    return dataclasses.replace(
        read_scaled(values | every | both),
        position="rope" if ropes else "none",
        layers_without_rope=tuple(layer for layer, kind in enumerate(kinds) if ropes and kind not in ropes),
        rope_local_theta=both.get("rope_local_base_freq"),
        **hf_values.windows(values, hf_values.optional_whole_number(values, "sliding_window"), kinds),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    return _gguf_values(header) | {"use_qk_norm": "blk.0.attn_q_norm.weight" in header.shapes}


def _gguf_values(header: GGUFHeader, keys: GGUFKeys = NO_KEYS) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, {"logit_scale": None, **keys}, norm="layer")
    return values | {"logit_scale": float32_number(header.metadata, f"{header.architecture}.logit_scale")}


# Both transformers and llama.cpp turn neighbouring dimensions of a head.
COHERE = Architecture(
    model_type="cohere",
    defaults={**DEFAULTS, "rope_theta": 5e5},
    renamed=_RENAMED,
    read_config=_to_model_config,
    features=FEATURES,
    layout=TensorLayout(row_orders=_ROW_ORDERS, vectors_in_rows=frozenset(f"{name}.weight" for name in _HEAD_NORMS)),
    gguf=GGUFFamily(
        architecture="command-r",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(
            names=llama.GGUF_NAMES | llama.GGUF_QK_NORMS,
            row_orders=_ROW_ORDERS,
            vectors_in_rows=frozenset(f"{name}.weight" for name in llama.GGUF_QK_NORMS.values()),
        ),
    ),
)
COHERE2 = Architecture(
    model_type="cohere2",
    defaults={**DEFAULTS, "sliding_window": 4096},
    renamed=_RENAMED,
    read_config=_to_model_config_2,
    features=FEATURES,
    layout=TensorLayout(row_orders=llama.GGUF_ROW_ORDERS),
    gguf=GGUFFamily(
        architecture="cohere2",
        to_hf_config=lambda header: _gguf_values(header, WINDOW),
        layout=dataclasses.replace(llama.GGUF_LAYOUT, ignored=frozenset({"rope_freqs.weight"})),
    ),
)
COHERE_COMPASS = Architecture(
    model_type="cohere_compass_text",
    defaults={**DEFAULTS, "logit_scale": None, "sliding_window": 4096},
    renamed=_RENAMED,
    read_config=_to_compass_config,
    features=FEATURES,
    gguf=None,
)
