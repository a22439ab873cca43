"""Checkpoints that bitsandbytes quantized, built here by hand as it packs them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from quantized_folders import pack_arrays
from safetensors.numpy import load_file, save_file

from edgelm.errors import CheckpointError
from edgelm_export.exporter import export_package
from edgelm_export.packed.bitsandbytes_format import four_bit_matrices
from edgelm_export.sources import huggingface
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

BLOCK, SIZES = 32, 4  # numbers of a block, and blocks whose sizes have one of their own
UP = "model.layers.0.mlp.up_proj"
Tensors = dict[str, np.ndarray]


def four_bits(stem: str, shape: tuple[int, int], levels: str, *, nested: bool) -> tuple[Tensors, np.ndarray]:
    """Return a random matrix as it lies in a file, and what it stands for."""
    random = np.random.default_rng(len(stem) + shape[1])
    codes = random.integers(0, 16, shape[0] * shape[1]).astype(np.uint8)
    table = np.sort(random.uniform(-1, 1, 16)).astype(np.float32)
    blocks = len(codes) // BLOCK
    state = {"quant_type": levels, "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(shape)}
    name, sizes = f"{stem}.weight", random.uniform(0.01, 0.1, blocks).astype(np.float32)
    tensors = {
        name: (codes[::2] << 4 | codes[1::2])[:, None],
        f"{name}.quant_map": table,
        f"{name}.absmax": sizes,
    }
    if nested:
        indices, own = random.integers(0, 256, blocks).astype(np.uint8), random.uniform(0.01, 0.02, -(-blocks // SIZES))
        map_256 = np.linspace(-1, 1, 256, dtype=np.float32)
        own = own.astype(np.float32)
        state |= {"nested_blocksize": SIZES, "nested_dtype": "float32", "nested_offset": 0.05}
        tensors |= {f"{name}.absmax": indices, f"{name}.nested_absmax": own, f"{name}.nested_quant_map": map_256}
        sizes = map_256[indices] * own[np.arange(blocks) // SIZES] + np.float32(0.05)
    tensors[f"{name}.quant_state.bitsandbytes__{levels}"] = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    return tensors, (table[codes].reshape(-1, BLOCK) * sizes[:, None]).reshape(shape)


def eight_bits(stem: str, shape: tuple[int, int]) -> tuple[Tensors, np.ndarray]:
    random = np.random.default_rng(shape[1])
    values, largest = random.integers(-127, 128, shape).astype(np.int8), random.uniform(0.1, 1, shape[0])
    largest = largest.astype(np.float32)
    tensors = {f"{stem}.weight": values, f"{stem}.SCB": largest, f"{stem}.weight_format": np.array(0, np.uint8)}
    return tensors, values * (largest / np.float32(127))[:, None]


def quantize_folder(folder: Path, kind: str) -> Tensors:
    """Replace the matrices of a saved model's layers by random ones; return what each stands for."""

    def pack(stem: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        if kind == "int8":
            return eight_bits(stem, weight.shape)
        return four_bits(stem, weight.shape, kind, nested=kind == "nf4")

    bits = {"load_in_8bit": kind == "int8", "load_in_4bit": kind != "int8"}
    settings = {"quant_method": "bitsandbytes", **bits, "bnb_4bit_quant_type": kind}
    return pack_arrays(folder, settings, pack)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_matrix_is_read_as_what_it_stands_for(save_llama: Any, tmp_path: Path, kind: str) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, kind)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for key, expected in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(key), expected, err_msg=key)
        assert checkpoint.stored_type(key) == kind.upper()
        assert (checkpoint.quantized_blocks(key) is not None) == (kind == "int8")
    export_package(checkpoint, tmp_path / "package", "keep", name="tiny")
    with PackageCheckpoint(tmp_path / "package") as package:
        # Scales have 16 bits on the disk; levels are rounded to 255 steps of a block's range.
        error = (
            np.abs(package.tensor(f"{UP}.weight") - wanted[f"{UP}.weight"]).max() / np.abs(wanted[f"{UP}.weight"]).max()
        )
        assert error <= (1e-3 if kind == "int8" else 0.005)


def test_a_matrix_may_have_an_odd_number_of_blocks() -> None:
    tensors, expected = four_bits("x", (3, BLOCK), "nf4", nested=True)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    matrix = four_bit_matrices(shapes, tensors.__getitem__, "here")["x.weight"]
    np.testing.assert_array_equal(matrix.weight(tensors.__getitem__), expected)


@pytest.mark.parametrize(
    ("part", "changed", "message"),
    [
        ("absmax", np.zeros(3, np.uint8), r"up_proj\.weight\.absmax is \[3\] for a matrix of \[128, 64\]"),
        ("absmax", np.zeros(256, np.float32), r"not supported: .*up_proj\.weight\.absmax \(F32 instead of U8\)"),
        ("quant_map", np.zeros(8, np.float32), r"up_proj\.weight\.quant_map is \[8\] for a matrix of"),
        ("nested_absmax", np.zeros(1, np.float32), r"up_proj\.weight\.nested_absmax is \[1\] for a matrix of"),
        ("nested_quant_map", None, r"does not describe model\.layers\.0\.mlp\.up_proj\.weight: '.*nested_quant_map'"),
        ("state", b"{", r"does not describe model\.layers\.0\.mlp\.up_proj\.weight: "),
        ("state", b'{"shape": [128, 64], "blocksize": 0}', r"shape and blocks are \[128, 64, 0, 1\]"),
        ("state", b'{"shape": [128, 64], "blocksize": 48}', r"up_proj\.weight is \[4096, 1\] for a matrix of"),
        ("state", b'{"shape": [128], "blocksize": 64}', r"does not describe .*: not enough values"),
        ("state", b'{"shape": 3, "blocksize": 64}', r"does not describe .*: cannot unpack"),
        (
            "state",
            b'{"shape": [128, 64], "blocksize": 32, "nested_blocksize": 4, "nested_offset": 1%s}' % (b"0" * 400),
            r"does not describe .*: int too large to convert to float",
        ),
        ("state", b" " * 5000, r"'nf4' of \[5000\] is no description of 4 bits"),
    ],
)
def test_what_does_not_fit_is_named(
    save_llama: Any, tmp_path: Path, part: str, changed: np.ndarray | bytes | None, message: str
) -> None:
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "nf4")
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"{UP}.weight.{'quant_state.bitsandbytes__nf4' if part == 'state' else part}"
    del tensors[name]
    if changed is not None:
        tensors[name] = np.frombuffer(changed, np.uint8).copy() if isinstance(changed, bytes) else changed
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceCheckpoint(tmp_path)


def test_sizes_of_a_block_larger_than_its_matrix_take_no_memory(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "nf4")
    tensors, name = load_file(tmp_path / "model.safetensors"), f"{UP}.weight"
    state = {"shape": [128, 64], "blocksize": BLOCK, "nested_blocksize": 2**31 - 1, "nested_offset": 0.05}
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    tensors[f"{name}.nested_absmax"] = tensors[f"{name}.nested_absmax"][:1]
    save_file(tensors, tmp_path / "model.safetensors")
    tracemalloc.start()
    weight = HuggingFaceCheckpoint(tmp_path).tensor(name)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    sizes = tensors[f"{name}.nested_quant_map"][tensors[f"{name}.absmax"]] * tensors[f"{name}.nested_absmax"] + 0.05
    largest = np.abs(tensors[f"{name}.quant_map"]).max()
    assert np.abs(weight).max() <= largest * sizes.max() * (1 + 1e-6)


def test_a_header_is_parsed_once_for_all_descriptions_and_weights(
    save_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "nf4")
    opened: list[Any] = []

    def safe_open(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return safetensors.safe_open(*arguments, **options)

    monkeypatch.setattr(huggingface, "safe_open", safe_open)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for name in checkpoint.config.tensor_shapes():
        checkpoint.tensor(name)
    assert len(opened) == 1
