"""What the rows of families with layers of Mamba 2 share: settings in config.json and in GGUF, and names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, hf_values
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.gguf_values import GGUFKeys, whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

LAYER = "model.layers.{i}.mamba"
_PROJECTED = ("in_proj_z", "in_proj_xbc", "in_proj_dt")  # the order of their rows in one matrix
_GGUF_PARTS = {
    "conv1d": "ssm_conv1d", "norm": "ssm_norm", "out_proj": "ssm_out", "A_log": "ssm_a", "D": "ssm_d",
    "dt_bias": "ssm_dt.bias",
}  # fmt: skip
GGUF_NAMES = {
    **{f"{LAYER}.{part}": "blk.{i}.ssm_in" for part in _PROJECTED},
    **{f"{LAYER}.{part}": f"blk.{{i}}.{name}" for part, name in _GGUF_PARTS.items()},
}
GGUF_KEYS: GGUFKeys = {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.group_count": "mamba_n_groups",
    "ssm.time_step_rank": "mamba_n_heads",
    "ssm.state_size": "mamba_d_state",
    "ssm.inner_size": None,
}
# What transformers takes in a Bamba, and in the families after it.
DEFAULTS: Mapping[str, Any] = {
    "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip
# As transformers 4 and 5 call the kinds of layers; Nemotron-H has feed-forwards by themselves.
_KINDS = {
    "attention": "full_attention", "full_attention": "full_attention", "mamba": "mamba2", "linear_attention": "mamba2",
    "mlp": "feed_forward", "moe": "feed_forward",
}  # fmt: skip


# In JSON, and as transformers 5 writes what JSON has no number for.
_NO_LIMITS = (None, [0.0, math.inf], [0.0, {"__float__": "Infinity"}])


def names(layer: str) -> dict[str, str]:
    """Return what the tensors of a layer of Mamba 2 are called where the layer is called `layer`."""
    joined = {f"{LAYER}.{part}": f"{layer}.in_proj" for part in _PROJECTED}
    return joined | {f"{LAYER}.{part}": f"{layer}.{part}" for part in _GGUF_PARTS}


def kinds_of(listed: list[str]) -> tuple[str, ...]:
    """Return our names for the kinds of layers."""
    return tuple(_KINDS.get(kind, kind) for kind in listed)


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ModelConfig for layers of Mamba 2.

    Raises:
        CheckpointError: a size is missing, or a setting is one that no published model has.
    """
    sizes = {key: hf_values.bounded(values, f"mamba_{key}") for key in ("n_heads", "n_groups", "d_state", "d_conv")}
    if values.get("mamba_d_head", "auto") == "auto":
        inner = hf_values.bounded(values, "mamba_expand") * hf_values.bounded(values, "hidden_size")
        width = inner // sizes["n_heads"]
    else:
        width = hf_values.bounded(values, "mamba_d_head")
    for key, is_refused, supported in (
        ("mamba_conv_bias", not values.get("mamba_conv_bias", True), "true"),
        ("mamba_proj_bias", values.get("mamba_proj_bias", False), "false"),
        ("time_step_limit", values.get("time_step_limit") not in _NO_LIMITS, "[0.0, Infinity]"),
    ):
        if is_refused:
            raise CheckpointError(f"config.json: {key} is {values.get(key)!r:.60}; supported is {supported}.")
    return {
        "linear_num_key_heads": sizes["n_groups"],
        "linear_num_value_heads": sizes["n_heads"],
        "linear_key_head_dim": sizes["d_state"],
        "linear_value_head_dim": width,
        "linear_conv_kernel_dim": sizes["d_conv"],
    }


def refuse_other_activations(config: ModelConfig) -> None:
    """Refuse an activation that feed-forwards have and Mamba 2 has not, in families with one key for both.

    Raises:
        CheckpointError: it is another one than silu.
    """
    if config.hidden_act != "silu":
        raise CheckpointError(f"config.json: hidden_act is {config.hidden_act!r}; beside Mamba supported is 'silu'.")


def gguf_layout(names: Mapping[str, str], row_orders: Mapping[str, str]) -> TensorLayout:
    """Return the layout of a family, of which `names` are those of the layers of Mamba 2 and of all others."""
    return TensorLayout(
        names=names,
        row_orders=row_orders,
        negative_exponentials=frozenset({"blk.{i}.ssm_a"}),
        ones_elsewhere=frozenset({"blk.{i}.ssm_conv1d.weight", "blk.{i}.ssm_a", "blk.{i}.ssm_d"}),
        vectors_in_rows=frozenset({"blk.{i}.ssm_norm.weight"}),
    )


def gguf_values(header: GGUFHeader) -> tuple[GGUFHeader, dict[str, Any]]:
    """Make what `GGUF_KEYS` do not name of config.json's values for layers of Mamba 2, which have no heads of keys and
    values there.

    Returns the header with one number of such heads, that of the layers which have some, and the values.
    """
    header, listed = gguf_header.by_layer(header)
    inner, heads = (
        whole_number(header.metadata, f"{header.architecture}.ssm.{key}") for key in ("inner_size", "time_step_rank")
    )
    return header, {
        "mamba_d_head": inner // max(heads, 1),
        "layer_types": ["full_attention" if count else "mamba" for count in listed],
    }
