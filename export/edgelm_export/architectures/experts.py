"""What the rows of families with experts share: their settings in config.json and in GGUF, and llama.cpp's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.gguf_values import whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

# In llama.cpp the experts of a layer are one tensor a projection, [E, ...].
GGUF_NAMES = llama.GGUF_NAMES | {
    "model.layers.{i}.mlp.gate": "blk.{i}.ffn_gate_inp",
    "model.layers.{i}.mlp.gate.e_score_correction_bias": "blk.{i}.exp_probs_b.bias",
    "model.layers.{i}.mlp.experts.{e}.gate_proj": "blk.{i}.ffn_gate_exps",
    "model.layers.{i}.mlp.experts.{e}.up_proj": "blk.{i}.ffn_up_exps",
    "model.layers.{i}.mlp.experts.{e}.down_proj": "blk.{i}.ffn_down_exps",
    "model.layers.{i}.mlp.shared_expert_gate": "blk.{i}.ffn_gate_inp_shexp",
    **{
        f"model.layers.{{i}}.mlp.shared_experts.{part}_proj": f"blk.{{i}}.ffn_{part}_shexp"
        for part in ("gate", "up", "down")
    },
}
# Of families that llama.cpp's converter treats as Llamas with experts.
GGUF_LAYOUT = TensorLayout(names=GGUF_NAMES, row_orders=llama.GGUF_ROW_ORDERS)
GGUF_SOFTMAX, GGUF_SIGMOID = 1, 2  # of expert_gating_func


def mlx_names(stack: str) -> dict[str, str]:
    """Return how mlx-lm names the experts of a layer, which are one tensor a projection, [E, ...], in `stack`."""
    return {
        f"model.layers.{{i}}.mlp.experts.{{e}}.{part}_proj": f"{stack}.{part}_proj" for part in ("gate", "up", "down")
    }


MLX_NAMES = mlx_names("model.layers.{i}.mlp.switch_mlp")  # as most families have them


def expert_fields(values: Mapping[str, Any], count_key: str, chosen_key: str = "num_experts_per_tok") -> dict[str, Any]:
    """Return the fields of ModelConfig for experts: how many there are, and how many a token chooses.

    Raises:
        CheckpointError: there are none.
    """
    count = hf_values.whole_number(values, count_key)
    if count < 1:
        raise CheckpointError(f"config.json: {count_key} is {count}; a model of this family has experts.")
    return {"num_experts": count, "num_experts_per_tok": hf_values.whole_number(values, chosen_key)}


def sparse_layers(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the field of ModelConfig for which layers have no experts, as Qwen's families say it.

    Raises:
        CheckpointError: mlp_only_layers is no list, or decoder_sparse_step below one.
    """
    dense, step = values.get("mlp_only_layers") or [], hf_values.whole_number(values, "decoder_sparse_step", 1)
    if not isinstance(dense, list) or step < 1:
        raise CheckpointError(
            f"config.json: mlp_only_layers is {dense!r} and decoder_sparse_step {step!r}; they must be a list of "
            "layers and a whole number of 1 or more."
        )
    without = tuple(layer for layer in range(layers) if layer in dense or (layer + 1) % step)
    return {"layers_without_experts": without}


def dense_layers(values: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Return the layers without experts: those that mlp_layer_types calls dense; without it, the first so many.

    Raises:
        CheckpointError: mlp_layer_types does not say "dense" or "sparse" of each layer.
    """
    kinds = hf_values.layer_types(values, "mlp_layer_types")
    if kinds is None:
        return tuple(range(min(hf_values.whole_number(values, "first_k_dense_replace"), layers)))
    if len(kinds) != layers or not set(kinds) <= {"dense", "sparse"}:
        raise CheckpointError(
            f"config.json: mlp_layer_types is {kinds!r:.200}; it must say 'dense' or 'sparse' of each of {layers} "
            "layers."
        )
    return hf_values.layers_of(kinds, "dense")


def shared_expert_names(mlp: str, name: str = "shared_expert") -> dict[str, str]:
    """Return how families, Qwen's by default, name the feed-forward beside the experts that every token enters."""
    return {f"{mlp}.shared_experts.{part}_proj": f"{mlp}.{name}.{part}_proj" for part in ("gate", "up", "down")}


def gguf_keys(
    count: str, chosen: str = "num_experts_per_tok", size: str | None = "moe_intermediate_size"
) -> dict[str, str | tuple[str, bool | int | float] | None]:
    """Return llama.cpp's keys for experts with what config.json calls them; size: None where the family has no such."""
    return {"expert_count": count, "expert_used_count": chosen, "expert_feed_forward_length": size}


def check_gguf_scoring(header: GGUFHeader, expected: int = GGUF_SIGMOID) -> None:
    """Check that the experts of a GGUF file are scored as its family's are, where it says how.

    Raises:
        CheckpointError: it says another.
    """
    key = f"{header.architecture}.expert_gating_func"
    number = whole_number(header.metadata, key, expected)
    if number != expected:
        name = "sigmoid" if expected == GGUF_SIGMOID else "softmax"
        raise CheckpointError(f"GGUF metadata: {key} is {number}; supported is this family's {expected} ({name}).")
