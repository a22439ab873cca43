"""Layers of an adapter: those that training found in a family's published folder, as those of a package.

A row of a weight is a row of B, and a column of it one of A: what splits a weight of the folder into ours, and puts its
rows in order, does so with B, and each part has the A of the whole.

Shapes: R rank, D and N what a projection takes and gives: A is [R, D], B is [N, R].
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from edgelm.architecture.multipliers import Multipliers
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm.package.adapter import MAX_RANK
from edgelm.package.peft_format import CONFIG_FILE, MERGE_WHERE_TRAINED, does_not_fit, is_base_ours, unknown_order
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import (
    CANONICAL,
    EXPERTS,
    GATHERED,
    HEAD,
    POSITIONS,
    Part,
    TensorLayout,
    parts_of,
)
from edgelm_export.checkpoints.text_part import layers_in_text
from edgelm_export.reference.weights import Array

Matrices = Mapping[str, tuple[Array, Array]]

# What a model of transformers calls layers that its family's folders call otherwise, and PEFT with it.
_IN_TRANSFORMERS = {
    "laguna": (r"\.mlp\.shared_experts\.", ".mlp.shared_expert."),
    "lfm3": (r"\.self_attn\.g_proj$", ".self_attn.gate_proj"),
    "nemotron_h": (r"^model\.layers\.(\d+)\.mixer\.", r"backbone.layers.\1.mixer."),
}
# Layers of linear attention that folders of OLMo Hybrid have apart, and edgelm as rows of one.
_QUERIES_KEYS_VALUES, _JOINED = re.compile(r"(.*\.linear_attn\.)([qkv])_proj"), "in_proj_qkv"


def layout_of_adapter(
    layers: Collection[str], config: ModelConfig, base_name: str | None, folder: Path
) -> tuple[TensorLayout, tuple[str, ...]]:
    """Tell in which layout an adapter of PEFT or mlx-lm found its layers: edgelm's, or that of the family's folders.

    Their names tell it, and where both have the same, the name of the base. Returns notes too, for the manifest.

    Raises:
        CheckpointError: the rows of some stand in another order there, and nothing tells where the adapter learned; or
            the model's weights are multiplied, and those that it learned on were not.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        return CANONICAL, ()
    if _has_multiplied_weights(architecture, config) and not is_base_ours(base_name):
        raise CheckpointError(
            f"The adapter in {folder} was trained on {base_name or 'a model that it does not name'}. A "
            f"{config.model_type} is published with multipliers of its projections beside the weights; the model here, "
            "which a GGUF file was made into, has them in its weights, and nothing tells how large they were. Take one "
            f"made of the published folder, or {MERGE_WHERE_TRAINED}"
        )
    weights = {f"{layer}.weight" for layer in layers}
    layout = architecture.layout_for(config, dict.fromkeys(weights, ()))
    parts = parts_of(config, layout)
    sources = {part.source for part in parts.values()}
    if weights & sources - parts.keys():
        return layout, ()
    if weights & parts.keys() - sources:
        return CANONICAL, ()
    others = [name for name in weights & parts.keys() if not (parts[name].source == name and parts[name].is_whole)]
    reordered = sorted({name.split(".")[-2] for name in others})
    is_ours = is_base_ours(base_name)
    if not reordered or is_ours:
        return CANONICAL, ()
    if is_ours is None:
        raise CheckpointError(
            f"{unknown_order(config.model_type, base_name, reordered, folder)}. Say in its {CONFIG_FILE} which folder "
            f"or model of the hub it was trained on (base_model_name_or_path), or {MERGE_WHERE_TRAINED}"
        )
    note = f"The adapter was trained on {base_name}, a {config.model_type} as published: the rows of "
    return layout, (f"{note}{' and '.join(reordered)} were put in edgelm's order.",)


def _has_multiplied_weights(architecture: Architecture, config: ModelConfig) -> bool:
    beside = config.multipliers != Multipliers() or config.embedding_multiplier != 1 or config.logits_scaling != 1
    return architecture.gguf is not None and architecture.gguf.has_multiplied_weights and not beside


def as_in_folders(matrices: Matrices, config: ModelConfig) -> Matrices:
    """Return the layers of an adapter by their names in the family's folders, which transformers calls otherwise."""
    if config.model_type == "olmo_hybrid":
        return _with_one_projection(matrices, config)
    if config.model_type not in _IN_TRANSFORMERS:
        return matrices
    pattern, name = _IN_TRANSFORMERS[config.model_type]
    return {re.sub(pattern, name, layer): pair for layer, pair in matrices.items()}


def _with_one_projection(matrices: Matrices, config: ModelConfig) -> Matrices:
    """Join the layers of queries, keys and values of linear attention: their products stand behind each other.

    One of another shape is left, to be refused by its name.
    """
    keys = (config.linear_num_key_heads or 0) * (config.linear_key_head_dim or 0)
    places = {"q": slice(0, keys), "k": slice(keys, 2 * keys), "v": slice(2 * keys, config.linear_channels)}
    joined = dict(matrices)
    parts: dict[str, list[tuple[Array, Array]]] = {}
    for layer, (a, b) in matrices.items():
        found = _QUERIES_KEYS_VALUES.fullmatch(layer)
        place = places[found[2]] if found else slice(0)
        if found and a.shape[1] == config.hidden_size and b.shape == (place.stop - place.start, len(a)):
            rows = np.zeros((config.linear_channels, len(a)), np.float32)
            rows[place] = b
            parts.setdefault(found[1] + _JOINED, []).append((a, rows))
            del joined[layer]
    for layer, pairs in parts.items():
        joined[layer] = np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs], axis=1)
    return joined


def layers_of_text(matrices: Matrices, config: ModelConfig) -> tuple[Matrices, tuple[str, ...]]:
    """Return the layers of an adapter as those of a model of text, where it learned on one that reads images or sound.

    Returns notes too, for the manifest.
    """
    names = layers_in_text(matrices, config.model_type)
    left_out = len(matrices) - len(names)
    note = (
        f"Layers of what reads images or sound, which the text part has not, were left out: {left_out} of the "
        "adapter's."
    )
    return {name: matrices[layer] for layer, name in names.items()}, (note,) if left_out else ()


def layers_of_checkpoint(
    matrices: Matrices, config: ModelConfig, base_name: str | None, folder: Path
) -> tuple[Matrices, tuple[str, ...]]:
    """Return the layers of an adapter of PEFT or mlx-lm as those of a checkpoint folder of edgelm, to be merged there.

    Those that have edgelm's names and order already are as they are, and not compared with the config. Returns notes
    too, for the user.

    Raises:
        CheckpointError: layers do not fit the model, or nothing tells in which order their rows are.
    """
    matrices, of_parts = layers_of_text(as_in_folders(matrices, config), config)
    layout, of_rows = layout_of_adapter(matrices, config, base_name, folder)
    if layout is not CANONICAL:
        matrices = _in_our_order(matrices, config, layout, folder, "model")
    return matrices, of_parts + of_rows


def layers_of_package(matrices: Matrices, config: ModelConfig, layout: TensorLayout, folder: Path) -> Matrices:
    """Return the matrices A and B of each projection of a package that an adapter in some layout changes.

    Raises:
        CheckpointError: layers do not fit the package; the message lists them.
    """
    return _in_our_order(matrices, config, layout, folder, "package")


def _in_our_order(matrices: Matrices, config: ModelConfig, layout: TensorLayout, folder: Path, what: str) -> Matrices:
    """Split layers, and put their rows in order, for a `model` or a `package`.

    A projection that folders have in a larger matrix may have its own name, as in Lara's model of transformers.
    """
    shapes = config.tensor_shapes()
    parts: dict[str, dict[str, Part]] = {}
    for name, part in parts_of(config, layout).items():
        parts.setdefault(part.source, {})[name.removesuffix(".weight")] = part
    parts = {name: {name.removesuffix(".weight"): part} for name, part in parts_of(config, CANONICAL).items()} | parts
    faults: list[str] = []
    found: dict[str, tuple[Array, Array]] = {}
    for layer, (a, b) in matrices.items():
        of_layer = parts.get(f"{layer}.weight", {})
        of_parts = [shapes[f"{name}.weight"] for name in of_layer]
        shape = (sum(rows for rows, *_ in of_parts), *of_parts[0][1:]) if of_parts else ()
        if what == "package" and (fault := _why_not_beside(layer, of_layer, len(a))) is not None:
            faults.append(f"{layer}: {fault}")
        elif len(shape) != 2 or any(part.index is not None for part in of_layer.values()):
            faults.append(f"{layer}: there is no such projection")
        elif any(part.columns is not None for part in of_layer.values()):
            faults.append(f"{layer}: its columns stand otherwise in edgelm")
        elif (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:
            faults.append(
                f"{layer}: it is {list(shape)}, the adapter's A and B are {list(a.shape)} and {list(b.shape)}"
            )
        else:
            found |= {name: (a, b if part.rows is None else b[part.rows]) for name, part in of_layer.items()}
    if faults:
        raise CheckpointError(does_not_fit(folder, what, faults))
    return found


def _why_not_beside(layer: str, names: Collection[str], rank: int) -> str | None:
    """Say why a layer, which is these projections, takes no adapter beside it; None where it does."""
    if any(EXPERTS in name for name in names):
        return "experts take no adapter beside them"
    if any(f"{name}.weight" in (HEAD, POSITIONS, *GATHERED) for name in names):
        return "there is no such projection"
    if any(".altup." in name for name in names):
        return "what predicts and corrects residual streams takes no adapter beside it"
    if 1 <= rank <= MAX_RANK:
        return None
    joined = " for queries, keys and values together" if layer.endswith(_JOINED) else ""
    return f"rank {rank}, and ranks are 1 to {MAX_RANK}{joined}"
