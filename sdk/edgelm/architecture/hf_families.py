"""The families of transformers that have our tensor names: what each has beyond a Llama, and how its config says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgelm.config import ModelConfig

# The settings of each rope_type that transformers reads; it warns of any other.
_ROPE_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate",
    ),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
    "proportional": ("factor", "partial_rotary_factor"),
}  # fmt: skip

# Fields that every family below has a key for.
_SHARED = frozenset(
    {
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "norm_eps", "rope_theta", "rope_scaling",
        "hidden_act", "tie_word_embeddings", "bos_token_id", "eos_token_ids",
    }
)  # fmt: skip
_EXPERTS = frozenset({"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"})
_WINDOWS = frozenset({"sliding_window", "layer_types"})
_SHARED_EXPERTS = _EXPERTS | {"shared_expert_intermediate_size", "layers_without_experts", "routed_scaling_factor"}
_SIGMOIDS = {"scoring_func": "sigmoid", "expert_choice_bias": True}
_MULTIPLIERS = frozenset({"attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"})
_OF_ATTENTION = frozenset({"attention_bias", "attention_output_bias"})
_BIASES = _OF_ATTENTION | {"mlp_bias"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of transformers whose tensors have our names.

    A config is of the family where each field has the value in `fixed`, or is in `free`, or has its default, and
    `fits`. keys: what config.json says beyond what all families share; absent: what it does not say of that.
    """

    architecture: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    fits: Callable[[ModelConfig], bool] = lambda config: True
    keys: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    absent: frozenset[str] = frozenset()

    def has(self, config: ModelConfig) -> bool:
        """Tell whether a config is of the family; none has the learned factors of xielu."""
        return (
            config.hidden_act != "xielu"
            and self.fits(config)
            and all(
                getattr(config, feature.name) == self.fixed.get(feature.name, feature.default)
                for feature in dataclasses.fields(config)
                if feature.name not in self.free | _SHARED
            )
        )


def rope_settings(config: ModelConfig) -> dict[str, Any] | None:
    """Return the settings of a rotation as transformers reads them; None where it is as trained."""
    scaling = config.rope_scaling
    settings = {key: getattr(scaling, key) for key in _ROPE_KEYS.get(scaling.rope_type, ())}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return {"rope_type": scaling.rope_type, **settings} if settings else None


def same(config: ModelConfig, *names: str) -> dict[str, Any]:
    """Return what config.json calls as we do."""
    return {name: getattr(config, name) for name in sorted(names)}  # a set has another order in each process


def _one_switch(config: ModelConfig) -> bool:
    """Tell whether the biases of attention are all there or all not, as families with one switch for them have it."""
    return config.attention_bias == config.attention_output_bias


def _heads_divide(config: ModelConfig) -> bool:
    return config.hidden_size % config.num_attention_heads == 0


def _has_plain_heads(config: ModelConfig) -> bool:
    return _one_switch(config) and _heads_divide(config)


def _heads_cover(config: ModelConfig) -> bool:
    return config.hidden_size == config.num_attention_heads * config.head_dim


def _layer_types(config: ModelConfig) -> list[str]:
    every = "full_attention" if config.sliding_window is None else "sliding_attention"
    return list(config.layer_types) or [every] * config.num_hidden_layers


def _growing_queries(config: ModelConfig) -> dict[str, Any]:
    rope = {"rope_theta": config.rope_theta, **(rope_settings(config) or {})}
    settings = rope | {"llama_4_scaling_beta": config.llama_4_scaling_beta}
    return {"sliding_window": config.sliding_window, "rope_scaling": None, "rope_parameters": settings}


def _windows(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window, "layer_types": _layer_types(config)}


def _windows_or_full(config: ModelConfig) -> dict[str, Any]:
    """As `_windows`, with a number where no layer has a window: some models make a mask of one for all that."""
    return {**_windows(config), "sliding_window": config.sliding_window or config.max_position_embeddings}


def _switched_windows(config: ModelConfig) -> dict[str, Any]:
    return {"use_sliding_window": config.sliding_window is not None, "max_window_layers": 0, **_windows(config)}


def _smollm3(config: ModelConfig) -> dict[str, Any]:
    rotates = [int(layer not in config.layers_without_rope) for layer in range(config.num_hidden_layers)]
    return {"no_rope_layers": rotates, **_switched_windows(config)}


def _granite(config: ModelConfig) -> dict[str, Any]:
    return {
        **same(config, *_MULTIPLIERS),
        "attention_multiplier": config.attention_scale,
    }


def _granite_swa(config: ModelConfig) -> dict[str, Any]:
    layers = range(config.num_hidden_layers)
    bases = {"global": config.rope_theta, "local": config.rope_local_theta, None: 0}
    return {
        **_granite(config),
        **_windows_or_full(config),
        "layer_rope_theta": [bases[config.rope_kind(i)] for i in layers],
    }


_SMALLEST_SCALE = 2.0**-16  # of a query_pre_attn_scalar that is a whole number of 32 bits


def _is_gemma(config: ModelConfig) -> bool:
    scale = config.attention_scale
    scalar = round(scale**-2) if _SMALLEST_SCALE <= scale <= 1 else 0
    has_scalar = scalar > 0 and abs(scalar**-0.5 - scale) < 1e-12
    return _one_switch(config) and has_scalar and config.embedding_multiplier == config.hidden_size**0.5


def _gemma(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_activation": config.hidden_act,
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        **same(config, "attn_logit_softcapping", "final_logit_softcapping"),
        **_windows_or_full(config),
    }


def _is_scaled_as_gemma(config: ModelConfig) -> bool:
    return config.embedding_multiplier == config.hidden_size**0.5 and config.attention_multiplier == 1.0


def _is_gemma4(config: ModelConfig) -> bool:
    rotates = config.rope_local_theta is not None and config.rope_scaling.rope_type in ("default", "proportional")
    ends_globally = bool(config.layer_types) and config.layer_types[-1] == "full_attention"
    return _one_switch(config) and _is_scaled_as_gemma(config) and rotates and ends_globally


def _gemma4(config: ModelConfig) -> dict[str, Any]:
    return {
        **_olmo3(config),
        "hidden_activation": config.hidden_act,
        **same(config, "final_logit_softcapping", *_OF_GEMMA4),
        "global_head_dim": config.global_head_dim or config.head_dim,
        "vocab_size_per_layer_input": config.vocab_size,
    }


def _is_gemma3n(config: ModelConfig) -> bool:
    is_scaled = _is_scaled_as_gemma(config)
    # Of Gemma 3n transformers takes no soft-cap that is null.
    has_parts = config.altup_num_inputs > 1 and config.laurel_rank > 0 and config.final_logit_softcapping is not None
    rotates = config.rope_local_theta is not None and bool(config.layer_types)
    return _one_switch(config) and _heads_divide(config) and is_scaled and rotates and has_parts


def _gemma3n(config: ModelConfig) -> dict[str, Any]:
    shares = config.activation_sparsity_pattern or (0.0,) * config.num_hidden_layers
    return {
        **_olmo3(config),
        "hidden_activation": config.hidden_act,
        "intermediate_size": [config.intermediate_size] * config.num_hidden_layers,  # as transformers writes it
        "activation_sparsity_pattern": [float(share) for share in shares],
        **same(config, "final_logit_softcapping", "altup_correct_scale", *_OF_GEMMA3N),
        "vocab_size_per_layer_input": config.per_layer_rows,
    }


def _olmo3(config: ModelConfig) -> dict[str, Any]:
    # By kind of layer, since transformers takes no other base for those with a window from the older names.
    local = {"rope_type": "default", "rope_theta": config.rope_local_theta}
    every = {"rope_theta": config.rope_theta, **(rope_settings(config) or {"rope_type": "default"})}
    return {"rope_parameters": {"full_attention": every, "sliding_attention": local}, **_windows_or_full(config)}


def _turns_in_windows(config: ModelConfig) -> bool:
    """Tell whether every layer turns its heads where none has a window, and else those that have one."""
    kinds = enumerate(_layer_types(config)) if config.sliding_window is not None else ()
    return config.layers_without_rope == tuple(layer for layer, kind in kinds if kind == "full_attention")


def _expert_keys(config: ModelConfig) -> dict[str, Any]:
    return same(config, "num_experts", "num_experts_per_tok", "norm_topk_prob")


def _has_large_experts(config: ModelConfig) -> bool:
    return config.num_experts > 0 and config.expert_size == config.intermediate_size


def _qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    return {
        **_expert_keys(config),
        "moe_intermediate_size": config.expert_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.layers_without_experts),
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
    }


def _mellum(config: ModelConfig) -> dict[str, Any]:
    return {
        **_expert_keys(config),
        **_olmo3(config),
        "moe_intermediate_size": config.expert_size,
        "mlp_layer_types": [
            "sparse" if config.has_experts(layer) else "dense" for layer in range(config.num_hidden_layers)
        ],
    }


def _has_shared_experts(config: ModelConfig) -> bool:
    """Tell whether a feed-forward as large as some experts stands beside them, behind layers without experts."""
    dense, shared = config.layers_without_experts, config.shared_expert_intermediate_size or 0
    return config.num_experts > 0 < shared and shared % config.expert_size == 0 and dense == tuple(range(len(dense)))


def _shared_expert_keys(config: ModelConfig) -> dict[str, Any]:
    return {
        **_expert_keys(config),
        "n_routed_experts": config.num_experts,
        "n_shared_experts": (config.shared_expert_intermediate_size or 0) // config.expert_size,
        "moe_intermediate_size": config.expert_size,
        "first_k_dense_replace": len(config.layers_without_experts),
        "routed_scaling_factor": config.routed_scaling_factor,
    }


_OLMO2 = {"norm_placement": "post", "qk_norm": True, "qk_norm_scope": "projection"}
_GEMMA = {"norm": "rms_offset", "norm_placement": "both"}
_GEMMA_FREE = _WINDOWS | {"embedding_multiplier", "attention_multiplier", "final_logit_softcapping"}
# transformers reads the soft-cap of attention in Gemma 3, and has no effect of it.
_GEMMA3_FREE = _GEMMA_FREE | _OF_ATTENTION | {"rope_local_theta"}
_OF_GEMMA3N = frozenset({"num_kv_shared_layers", "hidden_size_per_layer_input", "altup_num_inputs", "laurel_rank"})
_GEMMA3N_FREE = _GEMMA3_FREE | _OF_GEMMA3N | {"activation_sparsity_pattern", "vocab_size_per_layer_input"}
_OF_GEMMA4 = frozenset(
    {
        "num_global_key_value_heads", "attention_k_eq_v", "num_kv_shared_layers", "hidden_size_per_layer_input",
        "use_double_wide_mlp",
    }
)  # fmt: skip
_GEMMA4_FREE = _GEMMA3_FREE | _OF_GEMMA4 | {"global_head_dim"}

# transformers' model_type -> the features that the family has beyond those of all.
FAMILIES: dict[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM", free=_BIASES, fits=_has_plain_heads),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM", fixed={"attention_bias": True}, free=_WINDOWS, keys=_switched_windows,
    ),
    "mistral": Family(
        architecture="MistralForCausalLM", free=frozenset({"sliding_window"}),
        keys=lambda c: same(c, "sliding_window"),
    ),
    "ministral": Family(architecture="MinistralForCausalLM", free=_WINDOWS, keys=_windows),
    "ministral3": Family(
        architecture="Ministral3ForCausalLM", free=frozenset({"llama_4_scaling_beta", "sliding_window"}),
        fits=lambda c: c.llama_4_scaling_beta is not None and c.rope_scaling.rope_type == "yarn", keys=_growing_queries,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM", fixed={"qk_norm": True}, free=_WINDOWS | _OF_ATTENTION, fits=_one_switch,
        keys=_switched_windows,
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM", fixed={"qk_norm": True},
        free=_EXPERTS | _OF_ATTENTION | {"layers_without_experts", "sliding_window"},
        fits=lambda c: _one_switch(c) and c.num_experts > 0, keys=_qwen3_moe,
    ),
    "glm4_moe": Family(
        architecture="Glm4MoeForCausalLM", fixed=_SIGMOIDS,
        free=_SHARED_EXPERTS | {"qk_norm", "attention_bias", "partial_rotary_factor"}, fits=_has_shared_experts,
        keys=lambda c: {**_shared_expert_keys(c), "use_qk_norm": c.qk_norm, **same(c, "partial_rotary_factor")},
    ),
    "dots1": Family(
        architecture="Dots1ForCausalLM", fixed=_SIGMOIDS | {"qk_norm": True},
        free=_SHARED_EXPERTS | _WINDOWS | _OF_ATTENTION, fits=lambda c: _one_switch(c) and _has_shared_experts(c),
        keys=lambda c: {**_shared_expert_keys(c), **_windows(c)},
    ),
    "olmoe": Family(
        architecture="OlmoeForCausalLM", fixed={"qk_norm": True, "qk_norm_scope": "projection"},
        free=_EXPERTS | _OF_ATTENTION, fits=lambda c: _one_switch(c) and _heads_cover(c) and _has_large_experts(c),
        keys=_expert_keys,
    ),
    "flex_olmo": Family(
        architecture="FlexOlmoForCausalLM", fixed=_OLMO2, free=_EXPERTS | _OF_ATTENTION,
        fits=lambda c: _has_plain_heads(c) and _has_large_experts(c), keys=_expert_keys,
    ),
    "mellum": Family(
        architecture="MellumForCausalLM", fixed={"qk_norm": True},
        free=_EXPERTS | _WINDOWS | _OF_ATTENTION | {"layers_without_experts", "rope_local_theta"},
        fits=lambda c: _one_switch(c) and c.num_experts > 0 and c.rope_local_theta is not None, keys=_mellum,
        absent=frozenset({"rope_scaling"}),
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM", free=_BIASES | _WINDOWS | {"layers_without_rope"},
        fits=lambda c: _one_switch(c) and _heads_cover(c), keys=_smollm3,
    ),
    "granite": Family(
        architecture="GraniteForCausalLM", free=_BIASES | _MULTIPLIERS, fits=_has_plain_heads, keys=_granite,
    ),
    "granite_swa": Family(
        architecture="GraniteSWAForCausalLM", fixed={"attention_sinks": True},
        free=_BIASES | _WINDOWS | _MULTIPLIERS | {"rope_local_theta", "layers_without_rope"},
        fits=lambda c: _has_plain_heads(c) and (c.rope_local_theta is None or not rope_settings(c)),
        keys=_granite_swa,
    ),
    "olmo2": Family(architecture="Olmo2ForCausalLM", fixed=_OLMO2, free=_OF_ATTENTION, fits=_has_plain_heads),
    "olmo3": Family(
        architecture="Olmo3ForCausalLM", fixed=_OLMO2, free=_WINDOWS | _OF_ATTENTION | {"rope_local_theta"},
        fits=lambda c: _has_plain_heads(c) and c.rope_local_theta is not None, keys=_olmo3,
    ),
    "exaone4": Family(
        architecture="Exaone4ForCausalLM", fixed={"norm_placement": "post", "qk_norm": True},
        free=_WINDOWS | {"layers_without_rope"}, fits=_turns_in_windows, keys=_windows,
    ),
    "bitnet": Family(
        architecture="BitNetForCausalLM", fixed={"sub_norms": True}, free=_OF_ATTENTION,
        fits=lambda c: _one_switch(c) and _heads_cover(c),
    ),
    "seed_oss": Family(  # drops out a tenth in training unless it is told otherwise
        architecture="SeedOssForCausalLM", free=_BIASES,
        keys=lambda c: {
            "attention_out_bias": c.attention_output_bias, "attention_dropout": 0.0, "residual_dropout": 0.0,
        },
    ),
    "arcee": Family(architecture="ArceeForCausalLM", fixed={"mlp_gated": False}, free=_BIASES, fits=_has_plain_heads),
    "gemma": Family(
        architecture="GemmaForCausalLM", fixed={"norm": "rms_offset"}, free=_OF_ATTENTION | {"embedding_multiplier"},
        fits=lambda c: _has_plain_heads(c) and c.embedding_multiplier == c.hidden_size**0.5,
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM", fixed=_GEMMA, free=_GEMMA_FREE | _OF_ATTENTION | {"attn_logit_softcapping"},
        fits=lambda c: _is_gemma(c) and _heads_divide(c), keys=_gemma,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM", fixed=_GEMMA | {"qk_norm": True}, free=_GEMMA3_FREE,
        fits=lambda c: _is_gemma(c) and c.rope_local_theta is not None,
        keys=lambda c: {**_gemma(c), "rope_local_base_freq": c.rope_local_theta},
    ),
    "nemotron": Family(
        architecture="NemotronForCausalLM", fixed={"norm": "layer_offset", "mlp_gated": False},
        free=_BIASES | {"partial_rotary_factor"}, fits=_one_switch,
        keys=lambda c: same(c, "norm_eps", "partial_rotary_factor"),
    ),
    "jais2": Family(
        architecture="Jais2ForCausalLM", fixed={"norm": "layer", "mlp_gated": False}, free=_BIASES,
        fits=_has_plain_heads, keys=lambda c: {"layer_norm_eps": c.norm_eps},
    ),
    "olmo": Family(
        architecture="OlmoForCausalLM", fixed={"norm": "layer_plain"}, free=_OF_ATTENTION,
        fits=lambda c: _has_plain_heads(c) and c.norm_eps == 1e-5,
    ),
    # Of these two, rope_scaling would take the place of rope_parameters.
    "gemma3n_text": Family(
        architecture="Gemma3nForCausalLM",
        fixed={"norm_placement": "both", "qk_norm": True, "v_norm": True, "altup_correct_scale": True},
        free=_GEMMA3N_FREE, fits=_is_gemma3n, keys=_gemma3n, absent=frozenset({"rope_scaling"}),
    ),
    "gemma4_text": Family(
        architecture="Gemma4ForCausalLM",
        fixed={"norm_placement": "both", "qk_norm": True, "v_norm": True, "layer_scalar": True}, free=_GEMMA4_FREE,
        fits=_is_gemma4, keys=_gemma4, absent=frozenset({"rope_scaling"}),
    ),
    "stablelm": Family(
        architecture="StableLmForCausalLM", fixed={"norm": "layer"},
        free=frozenset({"attention_bias", "parallel_residual", "norm_placement", "partial_rotary_factor"}),
        fits=lambda c: _heads_cover(c) and c.norm_placement == ("shared" if c.parallel_residual else "pre"),
        keys=lambda c: {
            "layer_norm_eps": c.norm_eps, "use_qkv_bias": c.attention_bias,
            "use_parallel_residual": c.parallel_residual, **same(c, "partial_rotary_factor"),
        },
    ),
}  # fmt: skip
