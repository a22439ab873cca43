"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

PEFT reads what is written here, for the transformers class that loads the base's folder. The header of the safetensors
file also says which base the adapter belongs to; PEFT does not look at it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgelm.errors import CheckpointError
from edgelm.safetensors_header import check_header_length
from edgelm_training.lora import LoraConfig, LoraLinear, linear_names, quantize_linears
from edgelm_training.model import Transformer
from edgelm_training.quantized_linear import GRID_NAME

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# What PEFT puts before the names of the model that it wraps.
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_SHA256, _NAME, _GRID = "edgelm.base_sha256", "edgelm.base_name", "edgelm.base_grid"

# Kinds of LoRA that PEFT has besides, and the values with which they are off.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    **dict.fromkeys(
        (
            "use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "alpha_pattern", "layer_replication",
            "trainable_token_indices", "target_parameters", "megatron_config", "alora_invocation_tokens", "use_qalora",
        ),
        (None, False, {}, []),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that an adapter was trained on.

    name: its folder. sha256: of its weights; None: unknown, as PEFT does not keep it. grid: the one that its layers'
    weights were on while the adapter learned; None: as they are.
    """

    name: str | None
    sha256: str | None
    grid: str | None = None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter as it stands on the disk. matrices: A [rank, in] and B [out, rank] by the layer's name."""

    folder: Path
    base: Base
    matrices: Mapping[str, tuple[Tensor, Tensor]]
    scales: Mapping[str, float]


def write_adapter(weights: Mapping[str, Tensor], config: LoraConfig, base: Base, folder: Path) -> None:
    """Write an adapter into a folder, for whoever gives that folder its name when it is whole.

    weights: as `lora.adapter_weights` returns them.

    Raises:
        OSError, SafetensorError: the disk is full or refuses.
    """
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    known = {"format": "pt", _NAME: base.name, _SHA256: base.sha256, _GRID: base.grid}
    metadata = {key: value for key, value in known.items() if value is not None}
    save_file({_PREFIX + name: tensor for name, tensor in weights.items()}, folder / WEIGHTS_FILE, metadata=metadata)
    # safetensors makes files that their owner alone can read.
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter that `edgelm finetune` or PEFT wrote.

    Raises:
        CheckpointError: a file is missing or broken, the adapter is no plain LoRA, or a matrix lacks its partner; the
            message names what.
    """
    folder = Path(folder)
    values = _read_config(folder)
    for key, plain in _PLAIN.items():
        if values.get(key, plain[0]) not in plain:
            raise CheckpointError(
                f"{folder / CONFIG_FILE} has {key} = {values[key]!r:.60}; only plain LoRA adapters can be read."
            )
    path = folder / WEIGHTS_FILE
    try:
        check_header_length(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}. Copy it again.") from error
    matrices = _in_pairs(tensors, path)
    name = metadata.get(_NAME, values.get("base_model_name_or_path"))
    return Adapter(
        folder=folder,
        base=Base(name=name, sha256=metadata.get(_SHA256), grid=metadata.get(_GRID)),
        matrices=matrices,
        scales={layer: _scale(values, len(a), folder) for layer, (a, _) in matrices.items()},
    )


def load_adapter(model: Transformer, adapter: Adapter) -> None:
    """Put an adapter on the model that it was trained on, whose other weights are frozen by that.

    The layers of a base in 4 bits are put on their grid first.

    Raises:
        CheckpointError: a layer does not exist in the model's blocks, or has another shape.
    """
    shapes = {f"{name}.weight": tuple(model.get_submodule(name).weight.shape) for name in linear_names(model)}
    check_layers(adapter, shapes)
    model.requires_grad_(False)
    if adapter.base.grid is not None:
        quantize_linears(model)
    for name, (a, b) in adapter.matrices.items():
        layer = LoraLinear(model.get_submodule(name), len(a), adapter.scales[name])  # type: ignore[arg-type]
        with torch.no_grad():
            layer.lora_A.weight.copy_(a)
            layer.lora_B.weight.copy_(b)
        model.set_submodule(name, layer)


def check_layers(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that each matrix of an adapter has a weight to stand beside; `shapes` are the weights' by name.

    Raises:
        CheckpointError: some have none; the message lists every one.
    """
    faults = []
    for name, (a, b) in adapter.matrices.items():
        shape, wanted = shapes.get(f"{name}.weight"), (b.shape[0], a.shape[1])
        if shape is None:
            faults.append(f"{name}: there is no such layer")
        elif shape != wanted or a.shape[0] != b.shape[1]:
            faults.append(f"{name}: it is {list(shape)}, the adapter's A and B are {list(a.shape)} and {list(b.shape)}")
    if adapter.base.grid not in (None, GRID_NAME):
        faults.append(f"its base is on the grid {adapter.base.grid!r}; this version knows {GRID_NAME}")
    if faults:
        raise CheckpointError(f"The adapter in {adapter.folder} does not fit the model:\n  " + "\n  ".join(faults))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no adapter: there is no {CONFIG_FILE}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no object with settings.")
    return values


def _in_pairs(tensors: Mapping[str, Tensor], path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    layers = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
    expected = {layer + end for layer in layers for end in (_A, _B)}
    strange = sorted(tensors.keys() ^ expected)
    if strange or not layers:
        raise CheckpointError(
            f"{path} is no plain LoRA adapter; unpaired or unknown: {', '.join(strange[:5]) or 'all of it'}"
            + (f" and {len(strange) - 5} more." if len(strange) > 5 else ".")
        )
    return {layer.removeprefix(_PREFIX): (tensors[layer + _A], tensors[layer + _B]) for layer in layers}


def _scale(values: Mapping[str, Any], rank: int, folder: Path) -> float:
    alpha = values.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise CheckpointError(f"{folder / CONFIG_FILE} has lora_alpha = {alpha!r}; it must be a number.")
    # Rank-stabilized LoRA (arXiv:2312.03732) divides by the root.
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)
