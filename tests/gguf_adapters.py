"""What llama.cpp's converter makes of an adapter of PEFT's: a GGUF file with matrices in pairs, by its names.

A row of B goes where the row of its weight goes, so models whose weights are B, and ones in a column by which a layer
is known, are converted as any model (`gguf_tensors.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf_tensors import tensors_of
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel

Array = NDArray[np.float32]
_SETTINGS: dict[str, Any] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}


def write_adapter(
    path: Path,
    tensors: Mapping[str, Array],
    architecture: str,
    dtype: str = "F32",
    *,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write tensors as a file of an adapter. settings: of its metadata; None is no such key."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (_SETTINGS | dict(settings or {})).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)](key, value)
    kind = gguf.GGMLQuantizationType[dtype]
    for name, tensor in tensors.items():
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted_adapter(adapted: PeftModel, base: PreTrainedModel, architecture: str) -> dict[str, Array]:
    """Return the tensors of an adapter under llama.cpp's names; `base` is the model without it."""
    parts = {name.removeprefix("base_model.model."): tensor for name, tensor in adapted.named_parameters()}
    pairs = {
        name.replace(".lora_A.default", ""): (tensor, parts[name.replace("lora_A", "lora_B")])
        for name, tensor in parts.items()
        if ".lora_A." in name
    }
    layers, rows_of_b = (_with_weights(base, pairs, is_b, architecture) for is_b in (False, True))
    tensors = {}
    for name, marks in layers.items():
        if name.endswith("weight") and marks.ndim == 2 and marks.any():
            a, b = list(pairs.values())[int(marks[0].argmax())]
            tensors[f"{name}.lora_a"] = a.detach().numpy()
            tensors[f"{name}.lora_b"] = np.ascontiguousarray(rows_of_b[name][:, : b.shape[1]])
    return tensors


def _with_weights(
    base: PreTrainedModel, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], is_b: bool, architecture: str
) -> dict[str, Array]:
    """Convert a model whose weights with an adapter begin with B, or have ones in the column of their number."""
    model, numbers = copy.deepcopy(base), {name: number for number, name in enumerate(pairs)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if name in pairs and is_b:
                weight[:, : pairs[name][1].shape[1]] = pairs[name][1]
            elif name in pairs:
                weight[:, numbers[name]] = 1
    return tensors_of(model, architecture)
