"""How fast a run is, and how much of what the device could do that is."""

from __future__ import annotations

import math
import re
import time

import torch

from edgelm.config import ModelConfig
from edgelm.memory.available_memory import peak_memory
from edgelm_training.runs.device import Device

# Dense bf16 and fp16 peaks in FLOP/s from NVIDIA's data sheets, by words of the device's name; the first match counts.
_CUDA_PEAKS = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10", 125e12),
    ("T4", 65e12),
    ("V100", 125e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)
_PROBE_SIZE, _PROBE_ROUNDS = 1024, 5


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Count the floating-point operations of a forward and a backward pass, per token (PaLM, arXiv:2204.02311, B).

    Six for each parameter in a matrix product (not for tables, where a token's row is looked up, nor for experts that a
    token does not go through), and 12 · heads · head size · length for each layer with attention.
    """
    tables = ["embed_positions.weight", "embed_tokens_per_layer.weight"]
    tables += [] if config.tie_word_embeddings else ["embed_tokens.weight"]
    looked_up = (math.prod(shape) for name, shape in config.tensor_shapes().items() if name.endswith(tuple(tables)))
    matrices = config.count_active_parameters() - sum(looked_up)
    heads = sum(config.query_heads(layer) * config.head_size(layer) for layer in config.attention_layers)
    return 6.0 * matrices + 12.0 * heads * sequence_length


def peak_flops(device: Device) -> float | None:
    """Return the FLOP/s that the device reaches at best: of GPUs as published, of CPUs as measured now in 0.1 s."""
    if device.device.type == "cuda":
        name = torch.cuda.get_device_name(device.device)
        known = next((peak for words, peak in _CUDA_PEAKS if re.search(rf"\b{words}\b", name)), None)
        return None if device.precision == "fp32" else known
    if device.device.type != "cpu" or device.emulates:
        return None  # measured on what is emulated it takes seconds to minutes
    a = torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=device.dtype)
    seconds = []
    for _ in range(_PROBE_ROUNDS):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2.0 * _PROBE_SIZE**3 / min(seconds)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory that this process has held: of the GPU, else of the computer (Windows does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()
