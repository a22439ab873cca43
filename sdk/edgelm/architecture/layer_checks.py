"""Checks of what a ModelConfig says of single layers: ranges, and fields that contradict each other."""

from __future__ import annotations

from collections.abc import Iterable

from edgelm.architecture.layer_features import LAYER_TYPES, LAYERS_WITHOUT, MAX_CONV, LayerFeatures
from edgelm.architecture.model_fields import ModelFields
from edgelm.errors import ConfigError
from edgelm.number_bounds import MOST, check_count, is_count

_OF_SOME_LAYERS = {"pre", "post", "both"}  # those that not all layers of a model need to have
_MAX_EXPERTS, _MAX_EXPERTS_IN_ALL = 4096, 1 << 16  # each makes names of tensors; in use are up to 512, and 48,000
# Each makes names of tensors; in use are up to 7,808 (128 heads in 61 layers).
_MAX_LATENT_HEADS = 1 << 16
_OWN_HEAD_NORMS = ("rms", "layer", "layer_no_bias")
_MAX_STREAMS = 64  # each makes names of tensors; in use are 4
# Of these: the least of each, and the largest, which is 256 in use; products of all are still numbers.
_LINEAR_FIELDS = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 1, "linear_key_head_dim": 1, "linear_value_head_dim": 1,
    "linear_conv_kernel_dim": 2,
}  # fmt: skip
_MAX_LINEAR = 1 << 16
# What says nothing without another field.
_NEEDS = {
    "embedding_norm_first": "embedding_norm", "qk_norm_weights": "qk_norm",
    "attention_gate_act": "attention_output_gate", "attention_gate_per_head": "attention_output_gate",
    "shared_expert_gate": "shared_expert_intermediate_size",
}  # fmt: skip
_NOT_WITH_XIELU = ("num_experts", "hidden_size_per_layer_input", "head_transform")
_NOT_WITH_LATENT = (
    "qk_norm", "v_norm", "sub_norms", "attention_bias", "attention_output_gate", "attention_k_eq_v",
    "num_kv_shared_layers", "global_head_dim", "kv_cache", "num_global_attention_heads", "num_global_key_value_heads",
    "llama_4_scaling_beta", "partial_rotary_factor", "rope_local_theta",
)  # fmt: skip
_NOT_WITH_STREAMS = ("parallel_residual", "layer_scalar", "residual_multiplier", "layers_without_feed_forward")


def check_layers(config: LayerFeatures) -> None:
    """Check the fields that tell layers apart, or say what only some models have in a layer.

    Raises:
        ConfigError: one has a value outside its range or lacks another that it needs, or two contradict each other.
    """
    _check_kinds(config)
    _check_linear_attention(config)
    _check_own_features(config)
    _check_latent_attention(config)
    _check_streams(config)
    _check_experts(config)


def _is_set(config: LayerFeatures, name: str) -> bool:
    return bool(getattr(config, name) != getattr(ModelFields, name))


def refuse_features(config: LayerFeatures, names: Iterable[str], kind: str) -> None:
    """Refuse fields that say something in a model that has something else.

    Raises:
        ConfigError: one of them has another value than a model without it.
    """
    for name in names:
        if _is_set(config, name):
            raise ConfigError(f"{name} is {getattr(config, name)!r:.80}, which no model with {kind} has.")


def _check_kinds(config: LayerFeatures) -> None:
    """Check which kind each layer is of, and what layers are named to lack."""
    for field, least, most in (("sliding_window", 1, MOST), ("conv_L_cache", 2, MAX_CONV)):
        if getattr(config, field) is not None:
            check_count(config, field, least, most)
    if config.layer_types and len(config.layer_types) != config.num_hidden_layers:
        raise ConfigError(
            f"layer_types has {len(config.layer_types)} entries; the model has {config.num_hidden_layers} layers."
        )
    for kind in config.layer_types:
        if kind not in LAYER_TYPES:
            raise ConfigError(f"layer_types has {kind!r}; supported: {', '.join(LAYER_TYPES)}.")
    for kind, field in (("sliding_attention", "sliding_window"), ("conv", "conv_L_cache")):
        if kind in config.layer_types and getattr(config, field) is None:
            raise ConfigError(f"layer_types has {kind!r}, which needs a {field}.")
    if not config.attention_layers:
        kinds = " and ".join(map(repr, sorted(set(config.layer_types))))
        raise ConfigError(f"layer_types has {kinds} alone; one layer with attention to all tokens is needed.")
    for field in LAYERS_WITHOUT:
        for layer in getattr(config, field):
            if not is_count(layer, 0, config.num_hidden_layers - 1):
                raise ConfigError(
                    f"{field} has {layer!r}; layers are counted from 0 to {config.num_hidden_layers - 1}."
                )
    if config.layers_without_input_norm and config.norm_placement not in ("pre", "both"):
        raise ConfigError(
            f"layers_without_input_norm is {config.layers_without_input_norm}, with norm_placement "
            f"{config.norm_placement!r}; it needs 'pre' or 'both'."
        )
    for layer in range(config.num_hidden_layers):
        if not config.has_feed_forward(layer) and not config.mixes(layer):
            raise ConfigError(f"layers_without_feed_forward has {layer}, of which layer_types says 'feed_forward'.")


def _check_linear_attention(config: LayerFeatures) -> None:
    for name, least in _LINEAR_FIELDS.items():
        size, most = getattr(config, name), MAX_CONV if name == "linear_conv_kernel_dim" else _MAX_LINEAR
        if size is None and config.state_layers:
            kind = config.kind(config.state_layers[0])
            raise ConfigError(f"layer_types has {kind!r}, which needs a {name}.")
        if size is not None:
            check_count(config, name, least, most)
    if config.mamba_dt_rank is not None:
        check_count(config, "mamba_dt_rank", 1, _MAX_LINEAR)
    one = (config.linear_num_key_heads, config.linear_value_head_dim)
    kinds = {config.kind(layer) for layer in config.state_layers}
    if "mamba" in kinds and (kinds != {"mamba"} or config.mamba_dt_rank is None or one != (1, 1)):
        raise ConfigError(
            f"layer_types has 'mamba', with linear_num_key_heads {one[0]}, linear_value_head_dim {one[1]} and "
            f"mamba_dt_rank {config.mamba_dt_rank}; it needs 1, 1 and a number, and no other layers that keep a state."
        )
    placements = {config.linear_norm_placement, config.norm_placement}
    if config.linear_norm_placement is not None and (
        not placements <= _OF_SOME_LAYERS or config.parallel_residual or config.residual_multiplier != 1
    ):
        raise ConfigError(
            f"linear_norm_placement is {config.linear_norm_placement!r} and norm_placement {config.norm_placement!r}; "
            f"both must be one of {', '.join(sorted(_OF_SOME_LAYERS))}, with neither parallel_residual nor a "
            "residual_multiplier."
        )
    if config.state_layers and (config.linear_num_value_heads or 0) % (config.linear_num_key_heads or 1):
        raise ConfigError(
            f"linear_num_value_heads ({config.linear_num_value_heads}) is not a multiple of linear_num_key_heads "
            f"({config.linear_num_key_heads})."
        )


def _check_experts(config: LayerFeatures) -> None:
    for field, least in (
        ("num_experts", 0),
        ("num_experts_per_tok", 1 if config.num_experts else 0),
        ("n_group", 1),
        ("topk_group", 1),
        ("moe_intermediate_size", 1),
        ("shared_expert_intermediate_size", 1),
    ):
        if getattr(config, field) is not None:
            check_count(config, field, least, _MAX_EXPERTS if field == "num_experts" else MOST)
    if config.num_experts * config.num_hidden_layers > _MAX_EXPERTS_IN_ALL:
        raise ConfigError(
            f"num_experts is {config.num_experts} and num_hidden_layers {config.num_hidden_layers}; at most "
            f"{_MAX_EXPERTS_IN_ALL} experts in all layers are supported."
        )
    if config.num_experts_per_tok > config.num_experts:
        raise ConfigError(
            f"num_experts_per_tok is {config.num_experts_per_tok}; the model has {config.num_experts} experts."
        )
    in_group = config.num_experts // config.n_group
    fits = in_group * config.n_group == config.num_experts and in_group >= 2 and config.topk_group <= config.n_group
    if config.n_group > 1 and not (fits and config.num_experts_per_tok <= config.topk_group * in_group):
        raise ConfigError(
            f"n_group is {config.n_group} and topk_group {config.topk_group}; {config.num_experts} experts do not "
            f"lie in such groups of two or more, or those chosen have fewer than {config.num_experts_per_tok}."
        )
    if config.expert_norms and (config.shared_expert_intermediate_size is None or config.norm_placement != "both"):
        raise ConfigError(
            "expert_norms is set, which needs a shared_expert_intermediate_size, and norm_placement 'both'."
        )
    if config.num_experts:
        refuse_features(config, ("sub_norms",), "experts")
    in_every_layer = all(map(config.has_experts, range(config.num_hidden_layers)))
    gated_by_silu = config.mlp_gated and config.hidden_act == "silu"
    alone = config.shared_expert_intermediate_size is None
    if config.swiglu_limit is not None and not (in_every_layer and gated_by_silu and alone):
        raise ConfigError(
            "swiglu_limit is set, which is for models with experts gated by silu in every layer, and nothing beside "
            "them."
        )


def _check_latent_attention(config: LayerFeatures) -> None:
    rank = config.kv_lora_rank
    for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"):
        size, needed = getattr(config, name), rank is not None and name != "q_lora_rank"
        if size is not None and rank is None:
            raise ConfigError(f"{name} is {size!r:.60}, which needs a kv_lora_rank.")
        if size is not None or needed:
            check_count(config, name, 1, MOST)
    if rank is None:
        return
    heads, multiplier = config.num_key_value_heads, config.attention_multiplier
    if heads != 1 or rank >= config.head_dim or multiplier is None:
        raise ConfigError(
            f"kv_lora_rank is {rank}, with num_key_value_heads {heads}, head_dim {config.head_dim} and "
            f"attention_multiplier {multiplier}; it needs one head that is larger, and an attention_multiplier."
        )
    if config.position != "rope" or config.norm not in ("rms", "rms_offset"):
        raise ConfigError(
            f"position is {config.position!r} and norm {config.norm!r}; with a kv_lora_rank they must be 'rope' and "
            "'rms' or 'rms_offset'."
        )
    if config.num_attention_heads * config.num_hidden_layers > _MAX_LATENT_HEADS:
        raise ConfigError(
            f"num_attention_heads is {config.num_attention_heads} and num_hidden_layers {config.num_hidden_layers}; at "
            f"most {_MAX_LATENT_HEADS} heads with a kv_lora_rank are supported in all layers."
        )
    refuse_features(config, _NOT_WITH_LATENT, "a kv_lora_rank")


def _check_streams(config: LayerFeatures) -> None:
    """Check the fields of several residual streams, of what is beside attention, and of gates that are nothing."""
    fields = {"altup_num_inputs": (1, _MAX_STREAMS), "laurel_rank": (0, MOST)}
    if config.vocab_size_per_layer_input is not None:
        fields["vocab_size_per_layer_input"] = (1, MOST)
    for name, (least, most) in fields.items():
        check_count(config, name, least, most)
    pattern, layers = config.activation_sparsity_pattern, config.num_hidden_layers
    if pattern and (config.num_experts or not config.mlp_gated):
        raise ConfigError("activation_sparsity_pattern is set, which is for gated feed-forwards without experts.")
    if pattern and len(pattern) != layers:
        raise ConfigError(f"activation_sparsity_pattern has {len(pattern)} entries; the model has {layers} layers.")
    for share in pattern:
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share < 1:
            raise ConfigError(f"activation_sparsity_pattern has {share!r:.60}; it must be from 0 to below 1.")
    others = {
        "norm_placement": config.norm_placement not in ("pre", "both"),
        "norm": config.norm not in ("rms", "rms_offset"),
        "layer_types": len(config.attention_layers) < layers or bool(config.state_layers),
    }
    wrong = [name for name, is_wrong in others.items() if is_wrong]
    for field, is_set in (("altup_num_inputs", config.altup_num_inputs > 1), ("laurel_rank", config.laurel_rank > 0)):
        if is_set:
            refuse_features(config, (*_NOT_WITH_STREAMS, *wrong), f"{field} {getattr(config, field)}")
    if config.altup_num_inputs > 1 and not config.hidden_size_per_layer_input:
        raise ConfigError(f"altup_num_inputs is {config.altup_num_inputs}; it needs a hidden_size_per_layer_input.")
    if config.altup_correct_scale and config.altup_num_inputs == 1:
        raise ConfigError("altup_correct_scale is true, which needs altup_num_inputs of 2 or more.")


def _check_own_features(config: LayerFeatures) -> None:
    """Check the fields that tell layers apart."""
    for name in ("global_head_dim", "num_global_attention_heads", "num_global_key_value_heads"):
        if getattr(config, name) is not None:
            check_count(config, name, 1, MOST)
    for name in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        check_count(config, name, 0, MOST)
    names = [
        f"num_{kind}" if getattr(config, f"num_global_{kind}") is None else f"num_global_{kind}"
        for kind in ("attention_heads", "key_value_heads")
    ]
    heads, kv_heads = (getattr(config, name) for name in names)
    if heads % kv_heads:
        raise ConfigError(f"{names[0]} ({heads}) is not a multiple of {names[1]} ({kv_heads}).")
    needed = [config.attention_multiplier, config.rope_local_theta if config.position == "rope" else 1.0]
    if config.global_head_dim is not None and None in needed:
        raise ConfigError(
            "global_head_dim is set, which needs an attention_multiplier, and with rope a rope_local_theta of the "
            "layers with a window."
        )
    if config.hidden_act == "xielu":
        refuse_features(config, _NOT_WITH_XIELU, "hidden_act 'xielu'")
    for field, other in _NEEDS.items():
        if _is_set(config, field) and not getattr(config, other):
            raise ConfigError(f"{field} is {getattr(config, field)!r}, which needs {other}.")
    if config.sub_norms and config.norm.endswith("_plain"):
        raise ConfigError(f"sub_norms is true, with norm {config.norm!r}; such norms have weights.")
    if config.qk_norm_scope == "own_head" and (config.norm not in _OWN_HEAD_NORMS or not config.qk_norm_weights):
        raise ConfigError(
            f"qk_norm_scope is 'own_head', with norm {config.norm!r} and qk_norm_weights {config.qk_norm_weights}; it "
            f"needs weights, and a norm of {', '.join(_OWN_HEAD_NORMS)}."
        )
    if config.multipliers.mlp_gate != 1 and not config.mlp_gated:
        raise ConfigError(f"The multiplier mlp_gate is {config.multipliers.mlp_gate}, which needs mlp_gated.")
    if config.num_kv_shared_layers == 0:
        return
    if len(config.attention_layers) < config.num_hidden_layers or config.state_layers or config.attention_sinks:
        raise ConfigError("num_kv_shared_layers is set, which is for models with plain attention in every layer.")
    kinds = {config.slides(layer) for layer in range(config.num_hidden_layers)}
    if kinds != config.sources_of_keys.keys():
        raise ConfigError(
            f"num_kv_shared_layers is {config.num_kv_shared_layers} of {config.num_hidden_layers}; before those must "
            "be a layer of each kind that they have, whose keys and values they look at."
        )
