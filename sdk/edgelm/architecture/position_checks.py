"""Checks of what a ModelConfig says of positions: rotations, and distances in buckets."""

from __future__ import annotations

from edgelm.architecture.layer_features import LayerFeatures
from edgelm.errors import ConfigError
from edgelm.number_bounds import is_count

_MAX_DISTANCE = 1 << 16  # in use is 128; each is a row of a table


def check_positions(config: LayerFeatures) -> None:
    """Check the fields that say where a token stands.

    Raises:
        ConfigError: one has a value outside its range or lacks another that it needs, or two contradict each other.
    """
    beta, original = config.llama_4_scaling_beta, config.rope_scaling.original_max_position_embeddings
    if beta is not None and not (config.position == "rope" and original):
        raise ConfigError(
            "llama_4_scaling_beta is set, which needs position 'rope' and original_max_position_embeddings."
        )
    if config.position == "rope":
        _check_rope(config)
        _check_shared_keys(config)
    if config.position == "relative":
        _check_distances(config)
    if config.position in ("relative", "alibi"):
        _check_heads(config)
    if config.position != "relative" and config.relative_attention_per_layer:
        raise ConfigError(f"relative_attention_per_layer is set, with position {config.position!r}, not 'relative'.")


def _check_rope(config: LayerFeatures) -> None:
    if not 0 < config.partial_rotary_factor <= 1:
        raise ConfigError(f"partial_rotary_factor is {config.partial_rotary_factor!r}; it must be above 0, up to 1.")
    if config.rotary_dim % 2 or not config.rotary_dim:
        part = "" if config.rotary_dim == config.head_dim else f", of which {config.rotary_dim} turn"
        raise ConfigError(f"head_dim is {config.head_dim}{part}; rope needs an even one.")
    if config.rotary_width("global") % 2 or not config.turning_dim("global"):
        name = "head_dim" if config.global_head_dim is None else "global_head_dim"
        raise ConfigError(
            f"{name} is {getattr(config, name)}, of which {config.turning_dim('global')} turn; rope needs an even one, "
            "of which some do."
        )
    local = config.local_partial_rotary_factor
    if local is not None and (
        config.rope_local_theta is None
        or not 0 < local <= 1
        or config.rotary_width("local") % 2
        or not config.rotary_width("local")
    ):
        raise ConfigError(
            f"local_partial_rotary_factor is {local!r:.60}, with rope_local_theta {config.rope_local_theta}; it needs "
            "one, and must be above 0, up to 1, so that an even number of dimensions turns, and some do."
        )
    scaling = config.rope_scaling
    if scaling.rope_type == "dynamic" and config.rotary_width("global") == 2:
        raise ConfigError("rope_type 'dynamic' needs more than 2 dimensions of a head that turn.")
    for name in ("short_factor", "long_factor"):
        count = len(getattr(scaling, name))
        if scaling.rope_type == "longrope" and count != (pairs := config.rotary_width("global") // 2):
            raise ConfigError(f"{name} has {count} numbers; a head turns in {pairs} pairs.")


def _check_shared_keys(config: LayerFeatures) -> None:
    """Check that queries turn as the keys do that they look at, which may be those of an earlier layer."""
    for layer in config.attention_layers:
        source = config.keys_of(layer)
        if config.rope_kind(layer) != config.rope_kind(source):
            raise ConfigError(
                f"layers_without_rope is {config.layers_without_rope}; with num_kv_shared_layers "
                f"{config.num_kv_shared_layers} layer {layer} looks at the keys of layer {source}, and both must turn "
                "or neither."
            )


def _check_distances(config: LayerFeatures) -> None:
    buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if not (is_count(buckets, 4) and is_count(distance, 1, _MAX_DISTANCE) and buckets < 2 * distance):
        raise ConfigError(
            f"relative_attention_num_buckets is {buckets!r} and relative_attention_max_distance {distance!r}; both "
            f"must be whole numbers, the first 4 or more, the second above its half and up to {_MAX_DISTANCE}."
        )


def _check_heads(config: LayerFeatures) -> None:
    if config.num_global_attention_heads not in (None, config.num_attention_heads):
        raise ConfigError(
            f"num_global_attention_heads is {config.num_global_attention_heads}, with position {config.position!r}, "
            "whose scores are those of as many heads in every layer: num_attention_heads "
            f"({config.num_attention_heads})."
        )
