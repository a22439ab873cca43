"""Falcon-H1: Mamba 2 beside attention in each layer, and fixed factors of what almost every projection gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.architecture.multipliers import Multipliers
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import bamba, gguf_header, hf_values, llama, mamba2
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout

# One of its names has no end there.
_GGUF_NAMES = (
    llama.GGUF_NAMES | mamba2.GGUF_NAMES | {"model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.ffn_norm"}
)
_SINGLE_MULTIPLIERS = ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if values.get("mamba_d_head", "auto") == "auto" and values["mamba_d_ssm"] is not None:
        inner, heads = (hf_values.bounded(values, key) for key in ("mamba_d_ssm", "mamba_n_heads"))
        values["mamba_d_head"] = inner // heads
    config = llama.to_model_config(values)
    given = {name: hf_values.number(values, f"{name}_multiplier", 1.0) for name in _SINGLE_MULTIPLIERS}
    _refuse_what_is_not_read(values, config, given)
    return dataclasses.replace(
        config,
        layer_types=("hybrid",) * config.num_hidden_layers,
        embedding_multiplier=given["embedding"],
        logits_scaling=1 / given["lm_head"],
        # What attention reads is multiplied, so queries, keys and values are: scores twice, and what is made of them.
        attention_multiplier=config.attention_scale * given["key"] * given["attention_in"] * given["attention_in"],
        multipliers=_multipliers(values, given),
        mamba_rms_norm=hf_values.flag(values, "mamba_rms_norm"),
        **mamba2.fields(values),
    )


def _multipliers(values: Mapping[str, Any], given: Mapping[str, float]) -> Multipliers:
    """Return the multipliers of projections, with those of what they read."""
    gate, down = _numbers(values, "mlp_multipliers", 2)
    z, x, b, c, dt = (factor * given["ssm_in"] for factor in _numbers(values, "ssm_multipliers", 5))
    of_attention = given["attention_out"] * given["attention_in"]
    of_mamba = {"ssm_z": z, "ssm_x": x, "ssm_b": b, "ssm_c": c, "ssm_dt": dt, "ssm_out": given["ssm_out"]}
    return Multipliers(attention_out=of_attention, mlp_gate=gate, mlp_down=down, **of_mamba)


def _numbers(values: Mapping[str, Any], key: str, length: int) -> list[float]:
    """Read a list of so many numbers; None and absence mean ones."""
    listed = values.get(key)
    listed = [1.0] * length if listed is None else listed
    if not isinstance(listed, list) or len(listed) != length or None in listed:
        raise CheckpointError(f"config.json: {key} is {listed!r:.60}; it must be a list of {length} numbers.")
    return [hf_values.number({key: each}, key, 1.0) for each in listed]


def _refuse_what_is_not_read(values: Mapping[str, Any], config: ModelConfig, given: Mapping[str, float]) -> None:
    mamba2.refuse_other_activations(config)
    norm_comes_first = hf_values.flag(values, "mamba_rms_norm") and hf_values.flag(values, "mamba_norm_before_gate")
    for key, value, is_refused, supported in (
        ("projectors_bias", values.get("projectors_bias"), hf_values.flag(values, "projectors_bias"), "false"),
        ("mamba_norm_before_gate", True, norm_comes_first, "false, where mamba_rms_norm is true"),
        ("lm_head_multiplier", given["lm_head"], given["lm_head"] <= 0, "a number above 0"),
        (
            "attention_in_multiplier",
            given["attention_in"],
            config.attention_bias and given["attention_in"] != 1,
            "1, where attention_bias is true",
        ),
    ):
        if is_refused:
            raise CheckpointError(f"config.json: {key} is {value!r:.60}; supported is {supported}.")


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    # Of the multipliers a file says nothing: llama.cpp's converter puts them into the weights.
    header, of_mamba = mamba2.gguf_values(header)
    return {
        **gguf_header.to_hf_config(header, mamba2.GGUF_KEYS),
        **{key: value for key, value in of_mamba.items() if key != "layer_types"},
        "mamba_rms_norm": "blk.0.ssm_norm.weight" in header.shapes,
        "mamba_norm_before_gate": False,
    }


FALCON_H1 = Architecture(
    model_type="falcon_h1",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mamba_d_ssm": 1024,
        **mamba2.DEFAULTS,
        "mamba_norm_before_gate": True,
    },
    read_config=_to_model_config,
    layout=TensorLayout(names=bamba.NAMES),
    gguf=GGUFFamily(
        architecture="falcon-h1",
        to_hf_config=_gguf_to_hf_config,
        layout=mamba2.gguf_layout(_GGUF_NAMES, {}),
        has_multiplied_weights=True,
    ),
)
