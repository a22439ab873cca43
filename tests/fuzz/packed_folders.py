"""Folders whose matrices are packed, one of each format: their settings, and the tensors that stand for a matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
from fuzz.mutations import mutate_bytes, mutate_json
from safetensors.numpy import load_file, save

from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

FOLDER = "folder"  # its settings in a line, then its safetensors file
_SIZE = 32  # of hidden states and of feed-forward, so that each matrix is small and a group of inputs is one row
_GROUP = 16
_FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
_TYPES = {
    "F16": np.float16, "F32": np.float32, "F8_E4M3": _FLOAT8, "I8": np.int8, "U8": np.uint8, "I32": np.int32,
    "U32": np.uint32, "I64": np.int64,
}  # fmt: skip
Tensors = dict[str, np.ndarray]


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.zeros(shape, dtype)


def _gptq(N: int, K: int) -> Tensors:
    return {
        "qweight": _zeros((K // 8, N), np.int32), "qzeros": _zeros((K // _GROUP, N // 8), np.int32),
        "scales": _zeros((K // _GROUP, N), np.float16), "g_idx": np.arange(K, dtype=np.int32) // _GROUP,
    }  # fmt: skip


def _awq(N: int, K: int) -> Tensors:
    return {
        "qweight": _zeros((K, N // 8), np.int32), "qzeros": _zeros((K // _GROUP, N // 8), np.int32),
        "scales": _zeros((K // _GROUP, N), np.float16),
    }  # fmt: skip


def _compressed(N: int, K: int) -> Tensors:
    return {
        "weight_packed": _zeros((N, K // 8), np.int32), "weight_scale": _zeros((N, K // _GROUP), np.float16),
        "weight_shape": np.array([N, K], np.int64),
    }  # fmt: skip


def _nvfp4(N: int, K: int) -> Tensors:
    return {
        "weight": _zeros((N, K // 2), np.uint8), "weight_scale": _zeros((N, K // 16), _FLOAT8),
        "weight_scale_2": np.array(0.5, np.float32), "input_scale": np.array(0.1, np.float32),
    }  # fmt: skip


def _compressed_nvfp4(N: int, K: int) -> Tensors:
    return {
        "weight_packed": _zeros((N, K // 2), np.uint8), "weight_scale": _zeros((N, K // 16), _FLOAT8),
        "weight_global_scale": np.ones(1, np.float32), "input_global_scale": np.ones(1, np.float32),
    }  # fmt: skip


def _mixed(N: int, K: int) -> Tensors:
    return (_compressed if N < _SIZE else _compressed_nvfp4)(N, K)


def _mxfp4(N: int, K: int) -> Tensors:
    return {"weight": _zeros((N, K // 2), np.uint8), "weight_scale": _zeros((N, K // 32), np.uint8)}


def _mxfp8(N: int, K: int) -> Tensors:
    return {"weight": _zeros((N, K), _FLOAT8), "weight_scale": _zeros((N, K // 32), np.uint8)}


def _fp8_in_blocks(N: int, K: int) -> Tensors:
    blocks = (-(-N // 24), -(-K // 16))
    return {"weight": _zeros((N, K), _FLOAT8), "weight_scale_inv": _zeros(blocks, np.float32)}


def _four_bits(N: int, K: int) -> Tensors:
    blocks = N * K // 32
    state = {"quant_type": "nf4", "blocksize": 32, "dtype": "bfloat16", "shape": [N, K], "nested_blocksize": 4,
             "nested_dtype": "float32", "nested_offset": 0.05}  # fmt: skip
    return {
        "weight": _zeros((N * K // 2, 1), np.uint8), "weight.absmax": _zeros((blocks,), np.uint8),
        "weight.quant_map": _zeros((16,), np.float32), "weight.nested_quant_map": _zeros((256,), np.float32),
        "weight.nested_absmax": _zeros((-(-blocks // 4),), np.float32),
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }  # fmt: skip


def _eight_bits(N: int, K: int) -> Tensors:
    return {
        "weight": _zeros((N, K), np.int8), "SCB": _zeros((N,), np.float32), "weight_format": _zeros((), np.uint8),
    }  # fmt: skip


def _torchao(N: int, K: int) -> Tensors:
    parts = {"qdata": _zeros((N, K), np.int8), "scale": _zeros((N, K // _GROUP), np.float32)}
    return {f"_weight_{part}": each for part, each in (parts | {"zero_point": parts["scale"].astype(np.int8)}).items()}


def _modelopt(N: int, K: int) -> Tensors:
    scales = {"weight_scale": _zeros((N, K // _GROUP), np.float32), "pre_quant_scale": _zeros((K,), np.float16)}
    return {"weight": _zeros((N // 2, K), np.uint8), **scales}


def _hqq(N: int, K: int) -> Tensors:
    groups = N * K // _GROUP
    return {
        "W_q": _zeros((groups // 2, _GROUP), np.uint8), "packing": np.frombuffer(b"4bit_u8", np.uint8),
        "scale": _zeros((groups, 1), np.float16), "zero": _zeros((groups, 1), np.float16),
        "shape": np.array((N, K), np.int64), "axis": np.array(1, np.int32),
    }  # fmt: skip


def _ternary(N: int, K: int) -> Tensors:
    return {"weight": _zeros((N // 4, K), np.uint8), "weight_scale": np.ones(1, np.float32)}


def _mlx(bits: int, group: int, scales: Any, *more: str) -> Callable[[int, int], Tensors]:
    def parts(N: int, K: int) -> Tensors:
        beside = {part: _zeros((N, K // group), scales) for part in ("scales", *more)}
        return {"weight": _zeros((N, K * bits // 32), np.uint32), **beside}

    return parts


_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": _GROUP, "symmetric": True}
_QUARK = {"global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}, "export": {"pack_method": "reorder"}}
_TORCHAO = {"_type": "Int8DynamicActivationIntxWeightConfig", "_version": 2,
            "_data": {"weight_dtype": {"_type": "torch.dtype", "_data": "int4"}}}  # fmt: skip
# The settings of a folder, and what it has in the place of a matrix [N, K] of its layers.
_FORMATS: Sequence[tuple[Mapping[str, Any], Callable[[int, int], Tensors]]] = (
    ({"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "desc_act": True, "checkpoint_format": "gptq"}, _gptq),
    ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:exllamav2", "data_type": "int"}, _gptq),
    ({"quant_method": "awq", "bits": 4, "group_size": _GROUP, "version": "GEMM"}, _awq),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized",
      "config_groups": {"a": {"weights": _INT4}, "b": {"weights": _INT4 | {"num_bits": 8}}}}, _compressed),
    ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
      "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}, _compressed_nvfp4),
    ({"quant_method": "compressed-tensors", "format": "mixed-precision",
      "config_groups": {"a": {"weights": _INT4}, "b": {"weights": {"num_bits": 4, "type": "float"}}}}, _mixed),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, _nvfp4),
    ({"quant_method": "quark", **_QUARK}, _mxfp4),
    ({"quant_method": "modelopt", "quant_algo": "MXFP8"}, _mxfp8),
    ({"quant_method": "fp8", "weight_block_size": [24, 16]}, _fp8_in_blocks),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, _four_bits),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, _eight_bits),
    ({"quant_method": "torchao", "quant_type": {"default": _TORCHAO}}, _torchao),
    ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, _modelopt),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "axis": 1}}}, _hqq),
    ({"quant_method": "bitnet", "linear_class": "bitlinear"}, _ternary),
    ({"bits": 4, "group_size": 32, "mode": "affine"}, _mlx(4, 32, np.float16, "biases")),
    ({"bits": 4, "group_size": 16, "mode": "nvfp4"}, _mlx(4, 16, np.uint8)),
    ({"bits": 8, "group_size": 32, "mode": "mxfp8"}, _mlx(8, 32, np.uint8)),
)  # fmt: skip


def prepare(folder: Path) -> Sequence[bytes]:
    """Write a checkpoint of one small layer; return it as each format packs it."""
    from make_tiny_model import CONFIG, make_checkpoint

    from edgelm.config import ModelConfig

    small = {"num_hidden_layers": 1, "intermediate_size": _SIZE, "vocab_size": 16}
    make_checkpoint(folder, ModelConfig.from_dict(CONFIG.to_dict() | small))
    plain = load_file(folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_bytes())
    (folder / "rest.json").write_text(json.dumps(values))
    seeds = []
    for settings, parts_of in _FORMATS:
        tensors: Tensors = {}
        for name, tensor in plain.items():
            if tensor.ndim == 2 and ".layers." in name:
                stem = name.removesuffix(".weight")
                tensors |= {f"{stem}.{part}": each for part, each in parts_of(*tensor.shape).items()}
            else:
                tensors[name] = tensor.astype(np.float16)
        seeds.append(json.dumps(settings).encode() + b"\n" + save(tensors, {"format": "pt"}))
    return seeds


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change the settings, the list of tensors, or bytes of small tensors."""
    settings, _, weights = data.partition(b"\n")
    kind = random.random()
    if kind < 0.35:
        settings = mutate_json(settings, random).replace(b"\n", b" ")
    if 0.3 < kind < 0.75:
        length = int.from_bytes(weights[:8], "little")
        header = mutate_json(weights[8 : 8 + length].rstrip(), random)
        weights = len(header).to_bytes(8, "little") + header + weights[8 + length :]
    if kind > 0.7:
        weights = _with_another_tensor(weights, random) if random.random() < 0.7 else mutate_bytes(weights, random)
    return settings + b"\n" + weights


def _with_another_tensor(weights: bytes, random: Random) -> bytes:
    """Give one part of a matrix another shape, type or content, as a whole file has it."""
    try:
        tensors = tensors_of(weights)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # it was changed before
        return weights
    name = random.choice([name for name in tensors if ".layers." in name])
    tensor, action = tensors[name], random.random()
    if action < 0.1:
        del tensors[name]
    elif action < 0.2:
        tensors[name.rpartition(".")[0] + random.choice((".x", ".g_idx", ".weight", ".qzeros"))] = tensor
    elif action < 0.5:
        others = {tensor.shape[::-1], (tensor.size,), (1, *tensor.shape), tensor.shape[1:], (0, *tensor.shape), ()}
        others |= {(tensor.size, 1), (2, tensor.size // 2), (*tensor.shape, 1), (0,)}
        tensors[name] = np.resize(tensor, random.choice(sorted(others)))
    elif action < 0.7:
        types = (np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_, _FLOAT8)
        tensors[name] = tensor.astype(random.choice(types))
    else:
        content = mutate_bytes(tensor.tobytes(), random)[: tensor.nbytes].ljust(tensor.nbytes, b"\xff")
        tensors[name] = np.frombuffer(content, tensor.dtype).reshape(tensor.shape)
    return save(tensors, {"format": "pt"})


def tensors_of(weights: bytes) -> Tensors:
    """Take a file apart: safetensors' own function for numpy knows no float8."""
    length = int.from_bytes(weights[:8], "little")
    header, data = json.loads(weights[8 : 8 + length]), weights[8 + length :]
    del header["__metadata__"]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], _TYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


def read(folder: Path) -> None:
    """Read everything of a folder."""
    settings, _, weights = (folder / FOLDER).read_bytes().partition(b"\n")
    text = (folder / "rest.json").read_bytes().removesuffix(b"}") + b', "quantization_config": ' + settings + b"}"
    (folder / "config.json").write_bytes(text)
    (folder / "model.safetensors").write_bytes(weights)
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.source
        for name in checkpoint.config.tensor_shapes():
            assert checkpoint.stored_type(name)
            checkpoint.quantized_blocks(name)
            checkpoint.tensor(name)
            checkpoint.rows(name, 0, 1)
