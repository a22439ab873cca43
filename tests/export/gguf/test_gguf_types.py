from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm import CheckpointError
from edgelm_export.packed.gguf_types import TENSOR_TYPES, UNSUPPORTED_TYPE_NAMES, TensorType, dequantize, integer_blocks

# Where the float16 scales of a block are.
SCALES_AT = {
    "F16": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"), (0,)),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "Q1_0": (0,),
    "Q2_0": (0,),
}
WITH_EVERY_SCALE = ("F16", "Q4_1")
QUANTIZABLE = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
types = pytest.mark.parametrize("tensor_type", TENSOR_TYPES.values(), ids=lambda row: row.name)


def random_blocks(tensor_type: TensorType) -> NDArray[np.uint8]:
    """Make blocks of random weights that between them have every finite float16 as each of their scales, in 2 rows.

    Of most types every 31st: all multiply by a float16 scale in one way.
    """
    random = np.random.default_rng(0)
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = patterns[np.isfinite(patterns.view(np.float16))][:: 1 if tensor_type.name in WITH_EVERY_SCALE else 31]
    blocks = random.integers(0, 256, (len(finite), tensor_type.block_bytes), dtype=np.uint8)
    for position in SCALES_AT.get(tensor_type.name, ()):
        blocks[:, position : position + 2] = random.permutation(finite)[:, None].view(np.uint8)
    if tensor_type.name == "IQ1_M":  # the highest four bits of each of four words
        words = blocks[:, 48:].view(np.uint16)
        words[:] = (words & 0x0FFF) | (random.permutation(finite)[:, None] >> np.array([0, 4, 8, 12])) << 12
    return blocks.reshape(2, -1)


def unpacked(blocks: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """Unpack rows of blocks as the gguf package does; it knows the size of Q1_0 alone, a sign of each weight, and
    nothing of Q2_0 yet, which has two bits of each.
    """
    if name not in ("Q1_0", "Q2_0"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    block = blocks.reshape(-1, 18)
    scales = block[:, :2].copy().view(np.float16).astype(np.float32)
    if name == "Q2_0":
        pairs = np.unpackbits(block[:, 2:], axis=1, bitorder="little").reshape(len(block), -1, 2).astype(np.float32)
        return ((pairs @ np.float32([1, 2]) - 1) * scales).reshape(len(blocks), -1)
    signs = np.unpackbits(block[:, 2:], axis=1, bitorder="little")
    return np.where(signs, scales, -scales).reshape(len(blocks), -1)


def bits(weights: NDArray[np.float32]) -> NDArray[np.uint32]:
    return weights.view(np.uint32)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of MXFP4's largest exponents
@types
def test_scales_and_random_weights_unpack_bit_for_bit_as_in_the_gguf_package(tensor_type: TensorType) -> None:
    blocks = random_blocks(tensor_type)
    expected = unpacked(blocks, tensor_type.name)
    found = dequantize(blocks.ravel(), tensor_type.name, expected.shape)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_quantized_weights_unpack_close_to_what_they_were(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal((3, 5, 128)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    packed = gguf.quants.quantize(weights, kind)
    found = dequantize(packed.ravel(), name, weights.shape)
    np.testing.assert_array_equal(bits(found), bits(gguf.quants.dequantize(packed, kind)))
    # Measured: at most 0.30 (Q4_0, whose 16 levels span twice the largest of 32 normal weights).
    np.testing.assert_allclose(found, weights, atol=0.4)


def test_ids_and_block_sizes_are_those_of_ggml() -> None:
    assert (TENSOR_TYPES[42].block_size, TENSOR_TYPES[42].block_bytes) == (64, 18)  # which the package does not know
    for type_id, tensor_type in TENSOR_TYPES.items():
        if type_id == 42:
            continue
        kind = gguf.GGMLQuantizationType(type_id)
        assert kind.name == tensor_type.name
        assert tuple(gguf.GGML_QUANT_SIZES[kind]) == (tensor_type.block_size, tensor_type.block_bytes)
    theirs = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}  # without those that were dropped
    for type_id, name in UNSUPPORTED_TYPE_NAMES.items():
        assert theirs.get(type_id, name) == name
    assert not TENSOR_TYPES.keys() & UNSUPPORTED_TYPE_NAMES.keys()


@types
def test_memory_beyond_the_result_does_not_grow_with_the_tensor(tensor_type: TensorType) -> None:
    weights = 4 << 20
    blocks = np.zeros(weights // tensor_type.block_size * tensor_type.block_bytes, np.uint8)
    tracemalloc.start()
    dequantize(blocks, tensor_type.name, (1024, 4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Measured: at most 11 bytes for each of the 2**20 weights of a chunk (Q5_K).
    assert peak - 4 * weights < 14 << 20


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of MXFP4's largest exponents
@pytest.mark.parametrize(
    ("name", "width", "low", "high"),
    [
        ("Q4_0", 4, -8, 7),
        ("Q8_0", 8, -128, 127),
        ("MXFP4", 8, -12, 12),
        ("NVFP4", 8, -12, 12),
        ("IQ1_S", 8, -9, 9),
        ("IQ2_XXS", 8, -43, 43),
        ("IQ3_XXS", 8, -62, 62),
        ("IQ3_S", 8, -15, 15),
        ("IQ4_NL", 8, -127, 113),
        ("IQ4_XS", 8, -127, 113),
        ("Q1_0", 8, -1, 1),
        ("Q2_0", 8, -1, 2),
    ],
)
def test_symmetric_types_give_their_exact_grid(name: str, width: int, low: int, high: int) -> None:
    tensor_type = next(row for row in TENSOR_TYPES.values() if row.name == name)
    data = random_blocks(tensor_type).ravel()
    shape = (2, 32, 32 * tensor_type.block_size)
    grid = integer_blocks(data, name, shape)
    assert grid is not None
    size = {"NVFP4": 16, "Q1_0": 128, "Q2_0": 64}.get(name, 32)
    assert (grid.bits, grid.block_size) == (width, size)
    assert grid.values.shape == (2 * 32, 32 * tensor_type.block_size // size, size)
    assert grid.scales.shape == (2 * 32, 32 * tensor_type.block_size // size)
    assert (grid.values.dtype, grid.scales.dtype) == (np.int8, np.float32)
    assert (grid.values.min(), grid.values.max()) == (low, high)
    weights = (grid.scales[:, :, None] * grid.values).reshape(shape)
    np.testing.assert_array_equal(bits(weights), bits(dequantize(data, name, shape)))


@types
def test_other_types_have_no_grid_of_4_or_8_bits(tensor_type: TensorType) -> None:
    data = np.zeros(tensor_type.block_bytes, np.uint8)
    grid = integer_blocks(data, tensor_type.name, (1, tensor_type.block_size))
    has_one = {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "MXFP4", "NVFP4"}
    has_one |= {"IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "Q1_0", "Q2_0"}
    assert (grid is not None) == (tensor_type.name in has_one)


def test_an_unsupported_type_is_an_error_that_lists_the_supported_ones() -> None:
    for unpack in (dequantize, integer_blocks):
        with pytest.raises(CheckpointError, match=r"Tensor type 'Q8_K' is not supported; supported: F32, .*Q6_K"):
            unpack(np.zeros(292, np.uint8), "Q8_K", (256,))


@pytest.mark.parametrize("shape", [(), (33,), (2, 32)])
def test_data_of_another_size_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match="18 bytes are not a Q4_0 tensor of shape"):
        dequantize(np.zeros(18, np.uint8), "Q4_0", shape)
