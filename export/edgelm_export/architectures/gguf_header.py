"""The metadata that all families of GGUF files share, as config.json's values."""

from __future__ import annotations

import dataclasses
import re
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgelm.config import MAX_LAYERS
from edgelm.errors import CheckpointError
from edgelm_export.architectures.gguf_values import (
    NO_KEYS,
    GGUFKeys,
    float32_number,
    named_values,
    refuse_unknown_keys,
    rope_scaling,
    whole_number,
)
from edgelm_export.checkpoints.tensor_map import TensorLayout
from edgelm_export.gguf.token_ids import token_id_values

if TYPE_CHECKING:
    from edgelm_export.architectures.architecture import GGUFFamily, GGUFHeader

# What of `<architecture>.*` is read below, repeats what the tensors say, is the caller's choice (pooling), or has no
# effect in llama.cpp either (yarn_attn_factor: the factor of attention that config.json names follows from the rest;
# tensor_data_layout: the order of rows that all files of a family have, as older converters named it).
_KEYS = frozenset(
    {
        "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.finetuned", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.dimension_count",
        "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "attention.causal", "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon", "pooling_type", "rope.scale_linear", "tensor_data_layout",
    }
)  # fmt: skip
_LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
LONGROPE_TENSORS = frozenset(_LONGROPE.values())  # what a layout ignores whose family has them
# What is of images in a model whose text part is read.
SECTIONS = "rope.dimension_sections"
_OF_IMAGES = frozenset({SECTIONS, "n_deepstack_layers"})
_GATES_AND_UPS = dict.fromkeys(("blk.{i}.ffn_gate_exps", "blk.{i}.ffn_up_exps"), "blk.{i}.ffn_gate_up_exps")

_GUESSING = "nextn_predict_layers"
_OF_LAYER = re.compile(r"blk\.(\d+)\.")


def under_own_name(metadata: Mapping[str, Any], architecture: str) -> Mapping[str, Any]:
    """Return the metadata of a file with the keys of its family, which llama.cpp calls `architecture`.

    A model that also reads images has its own name before its keys. Those of text are kept; the sections of rope are
    not: of a text the three numbers of a position are one and the same, so it turns as any other.
    """
    prefix = f"{metadata['general.architecture']}."
    if prefix == f"{architecture}.":
        return metadata
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    kept = {f"{architecture}.{key}": value for key, value in own.items() if key not in _OF_IMAGES}
    others = {key: value for key, value in metadata.items() if not key.startswith(prefix)}
    return {**others, **kept, "general.architecture": architecture}


def without_guessing_layers(header: GGUFHeader) -> GGUFHeader:
    """Return the header without the layers behind those of the model that guess further tokens.

    Raises:
        CheckpointError: there are no others in the file, or not so many layers, or the last ones do not guess.
    """
    name, metadata = header.architecture, header.metadata
    guessing = whole_number(metadata, f"{name}.{_GUESSING}", 0)
    if not guessing:
        return header
    layers = whole_number(metadata, f"{name}.block_count")
    kept = layers - guessing
    if not 0 < kept < layers:
        raise CheckpointError(f"GGUF metadata: {name}.{_GUESSING} is {guessing} of {layers} layers.")
    shapes = {
        tensor: shape
        for tensor, shape in header.shapes.items()
        if (layer := _OF_LAYER.match(tensor)) is None or int(layer[1]) < kept
    }
    if not any(map(_OF_LAYER.match, shapes)):
        raise CheckpointError(
            "The GGUF file has the layers alone that guess further tokens (MTP): the model itself is another file."
        )
    # Some converters say of a model how many it had, and do not count them (llama.cpp, src/models/deepseek4.cpp).
    left_out = header.shapes.keys() - shapes.keys()
    if left_out and not any(".nextn." in tensor for tensor in left_out):
        raise CheckpointError(
            f"GGUF metadata: {name}.{_GUESSING} is {guessing}, and of the {layers} layers none guesses further tokens. "
            "Take a file that another version of the converter made."
        )
    per_layer = {
        key: value[:kept]
        for key, value in metadata.items()
        if isinstance(value, (list, array)) and len(value) == layers and key.startswith(f"{name}.")
    }
    header = dataclasses.replace(header, metadata={**metadata, **per_layer}, shapes=shapes)
    return header.changed({"block_count": kept, _GUESSING: 0})


def layout_of(family: GGUFFamily, header: GGUFHeader) -> TensorLayout:
    """Return the layout of a file, some of which have queries, keys and values in one tensor, gates and ups of all
    experts, or both matrices of all heads of latent attention.

    Where a position has three numbers, as in the text part of a model that reads images, none turns by neighbours.
    """
    layout, joined = family.layout, "blk.{i}.attn_qkv"
    if SECTIONS in {key.removeprefix(f"{family.architecture}.") for key in header.metadata}:
        orders = {name: order for name, order in layout.row_orders.items() if order != "pairs"}
        layout = dataclasses.replace(layout, row_orders=orders)
    if any(name.endswith(".ffn_gate_up_exps.weight") for name in header.shapes):  # not in the first layers of some
        joined_names = {name: _GATES_AND_UPS.get(theirs, theirs) for name, theirs in layout.names.items()}
        layout = dataclasses.replace(layout, names=joined_names)
    names = layout.names
    if "blk.0.attn_kv_b.weight" in header.shapes:
        heads = dict.fromkeys((name for name in names if ".heads." in name), "blk.{i}.attn_kv_b")
        return dataclasses.replace(layout, names={**names, **heads})
    # Who has it anyway may mean something else by it, as linear attention does.
    if "blk.0.attn_qkv.weight" not in header.shapes or joined in names.values():
        return layout
    packed = dict.fromkeys((f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"), joined)
    return dataclasses.replace(layout, names={**names, **packed})


def by_layer(header: GGUFHeader, key: str = "attention.head_count_kv") -> tuple[GGUFHeader, list[int]]:
    """Read a size of each layer, such as its heads of keys and values: none, or one and the same as all others have.

    Returns the header with that size for all, as `to_hf_config` reads it, and the list.

    Raises:
        CheckpointError: the file has more layers than are supported, or lists the size for more or fewer than it has.
    """
    name, layers = f"{header.architecture}.{key}", whole_number(header.metadata, f"{header.architecture}.block_count")
    if layers > MAX_LAYERS:
        raise CheckpointError(
            f"GGUF metadata: {header.architecture}.block_count is {layers}; at most {MAX_LAYERS} are supported."
        )
    sizes = header.metadata.get(name)
    if not isinstance(sizes, array):
        return header, [whole_number(header.metadata, name, 1)] * layers
    if len(sizes) != layers:
        raise CheckpointError(f"GGUF metadata: {name} has {len(sizes)} entries; the model has {layers} layers.")
    counts = set(sizes) - {0}
    if len(counts) == 1:
        header = header.changed({key: counts.pop()})
    return header, sizes.tolist()


def to_hf_config(
    header: GGUFHeader, keys: GGUFKeys = NO_KEYS, *, norm: str = "rms", turns_a_part: bool = False
) -> dict[str, Any]:
    """Make the values of config.json that all families share, in Llama's terms.

    keys: those of the family, which count before the shared ones. norm: "rms" or "layer". turns_a_part: a head may turn
    in its first part alone.

    Raises:
        CheckpointError: the metadata lacks a value, or asks for a feature that is not supported.
    """
    metadata, shapes, prefix = header.metadata, header.shapes, f"{header.architecture}."
    epsilon = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}[norm]
    # A converter may write both epsilons of a config that has one; llama.cpp reads that of the family's norm.
    refuse_unknown_keys(metadata, prefix, frozenset(f"{prefix}{key}" for key in _KEYS | keys.keys()))
    if not shapes.get("token_embd.weight"):
        raise CheckpointError("The GGUF file has no tensor token_embd.weight: it is not a whole model.")
    hidden_size = whole_number(metadata, f"{prefix}embedding_length")
    heads = whole_number(metadata, f"{prefix}attention.head_count")
    head_dim = whole_number(metadata, f"{prefix}attention.key_length", hidden_size // max(heads, 1))
    rotated = whole_number(metadata, f"{prefix}rope.dimension_count", head_dim)
    values = whole_number(metadata, f"{prefix}attention.value_length", head_dim)
    for key, size in (
        ("rope.dimension_count", head_dim if turns_a_part else rotated),
        ("attention.value_length", values),
    ):
        if size != head_dim:
            raise CheckpointError(f"{prefix}{key} is {size}; supported is the head's own size, {head_dim}.")
    config = {
        # The embedding has the last word: some files pad it beyond the tokenizer's vocabulary.
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden_size,
        # Left out of some files whose layers all have experts.
        "intermediate_size": whole_number(
            metadata, f"{prefix}feed_forward_length", metadata.get(f"{prefix}expert_feed_forward_length")
        ),
        "num_hidden_layers": whole_number(metadata, f"{prefix}block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole_number(metadata, f"{prefix}attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": whole_number(metadata, f"{prefix}context_length"),
        "rms_norm_eps": float32_number(metadata, f"{prefix}{epsilon}"),
        # The older pair of keys, which transformers 4 and 5 both read.
        "rope_theta": float32_number(metadata, f"{prefix}rope.freq_base", 10000.0),
        "rope_scaling": _longrope(header) or rope_scaling(metadata, prefix),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "tie_word_embeddings": "output.weight" not in shapes,
        **token_id_values(metadata),
    }
    config |= {"partial_rotary_factor": rotated / max(head_dim, 1)} if turns_a_part else {}
    return config | named_values(metadata, prefix, keys)


def _longrope(header: GGUFHeader) -> dict[str, Any] | None:
    """Return LongRoPE's factors, where a file has some, as the decimals that they were written from: not 1.10000002."""
    factors = {
        key: [float(str(factor)) for factor in header.rope_factors[name]]
        for key, name in _LONGROPE.items()
        if name in header.rope_factors
    }
    return {"rope_type": "longrope", **factors} if factors else None
