"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

PEFT reads what is written here, for the transformers class that loads the base's folder. The header of the safetensors
file also says which base the adapter belongs to; PEFT does not look at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from edgelm.errors import CheckpointError
from edgelm.files.safetensors_header import check_header
from edgelm.package.peft_format import (
    BASE_GRID,
    BASE_NAME,
    BASE_SHA256,
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    check_matrices,
    does_not_fit,
    in_pairs,
    read_peft_config,
    scale_of,
    weights_path,
)
from edgelm_training.adaptation.lora import LoraConfig
from edgelm_training.adaptation.quantized_linear import GRID_NAME


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
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")
    known = {"format": "pt", BASE_NAME: base.name, BASE_SHA256: base.sha256, BASE_GRID: base.grid}
    metadata = {key: value for key, value in known.items() if value is not None}
    content = save({PREFIX + name: tensor for name, tensor in weights.items()}, metadata)
    # safetensors writes the metadata in another order each time: the same run is to write the same bytes.
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors behind it are aligned
    with (folder / WEIGHTS_FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(content)[start:])


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter that `edgelm finetune`, PEFT or mlx-lm wrote.

    Raises:
        CheckpointError: a file is missing or broken, the adapter is no plain LoRA, or a matrix lacks its partner; the
            message names what.
    """
    folder = Path(folder)
    values = read_peft_config(folder)
    path = weights_path(folder)
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            check_matrices({name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}, path)
            tensors = {name: file.get_tensor(name) for name in parts}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}. Copy it again.") from error
    matrices = in_pairs(tensors, path)
    name = metadata.get(BASE_NAME, values.get("base_model_name_or_path"))
    return Adapter(
        folder=folder,
        base=Base(name=name, sha256=metadata.get(BASE_SHA256), grid=metadata.get(BASE_GRID)),
        matrices=matrices,
        scales={layer: scale_of(values, layer, len(a), folder) for layer, (a, _) in matrices.items()},
    )


def check_layers(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that each matrix of an adapter has a weight to stand beside; `shapes` are the weights' by name.

    Raises:
        CheckpointError: some have none; the message lists them.
    """
    faults = []
    for name, (a, b) in adapter.matrices.items():
        shape, wanted = shapes.get(f"{name}.weight"), (b.shape[0], a.shape[1])
        if shape is None:
            faults.append(f"{name}: there is no such layer")
        elif shape != wanted or a.shape[0] != b.shape[1]:
            faults.append(f"{name}: it is {list(shape)}, the adapter's A and B are {list(a.shape)} and {list(b.shape)}")
    if adapter.base.grid not in (None, GRID_NAME):
        faults.append(f"its base is on the grid {adapter.base.grid!r}; this version knows {GRID_NAME}: update edgelm")
    if faults:
        raise CheckpointError(does_not_fit(adapter.folder, "model", faults))
