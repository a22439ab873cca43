import numpy as np
import onnx
import onnxruntime
import pytest

from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm_export.graph import MICROSOFT, OPSETS
from edgelm_export.quantize import PRECISIONS, SCHEMES, precision_named, scheme_for
from edgelm_export.quantize.int4 import quantize_int4
from edgelm_export.quantize.int8 import quantize_int8
from edgelm_export.quantize.packed import PackedWeight, in_blocks, pack, stack, unpack

QUANTIZING = [name for name, function in SCHEMES.items() if function is not None]


def random_weight(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def product(weight: PackedWeight, hidden: np.ndarray, accuracy_level: int) -> np.ndarray:
    """Run MatMulNBits alone, in ONNX Runtime."""
    parts = {"w": weight.packed, "s": weight.scales}
    if weight.zero_points is not None:
        parts["z"] = weight.zero_points
    rows = weight.packed.shape[0]
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *parts], ["y"], domain=MICROSOFT, N=rows, K=weight.columns, bits=weight.bits,
        block_size=weight.block_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, hidden.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (hidden.shape[0], rows))],
        [onnx.numpy_helper.from_array(array, name) for name, array in parts.items()],
    )
    opsets = [onnx.helper.make_opsetid(*item) for item in OPSETS.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": hidden})[0]


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("columns", [64, 192, 576, 100])  # 576 has an odd number of blocks, 100 a padded one
@pytest.mark.parametrize("scheme", QUANTIZING)
def test_onnx_runtime_multiplies_by_the_unpacked_weight(scheme: str, columns: int) -> None:
    function = SCHEMES[scheme]
    assert function is not None
    weight = function(random_weight(48, columns))
    hidden = random_weight(5, columns, seed=1)
    # At full accuracy only float32's order of sums is left; the largest seen is 4e-7.
    assert relative_error(product(weight, hidden, accuracy_level=1), hidden @ unpack(weight).T) < 1e-5
    # At level 4 the activations are rounded to 8 bits per block; the largest seen is 0.008.
    assert relative_error(product(weight, hidden, accuracy_level=4), hidden @ unpack(weight).T) < 0.02


# Relative errors of normal weights; theory for uniform rounding is 0.0058 at 8 bits and about 0.1 at 4.
@pytest.mark.parametrize(("scheme", "bound"), [("int8-block64", 0.007), ("int4-block64", 0.12)])
def test_a_scheme_keeps_the_weight_to_its_bits(scheme: str, bound: float) -> None:
    function = SCHEMES[scheme]
    assert function is not None
    weight = random_weight(64, 576)
    assert relative_error(unpack(function(weight)), weight) < bound


def test_int8_of_a_hand_computed_block() -> None:
    packed = quantize_int8(np.array([[1.27, -0.635, 0.0, 0.01]], np.float32), 4)
    assert packed.packed.tolist() == [[[255, 64, 128, 129]]]  # -63.5 rounds to even
    np.testing.assert_allclose(packed.scales, [[0.01]], rtol=1e-6)


def test_int4_finds_a_grid_that_the_weights_are_on() -> None:
    steps = np.random.default_rng(0).integers(-8, 8, (16, 128)).astype(np.float32)
    steps[:, ::64] = -8  # each block shows its whole range
    weight = steps * np.float32(0.03)
    np.testing.assert_allclose(unpack(quantize_int4(weight, 64)), weight, atol=1e-7)


def test_int4_search_beats_plain_rounding_in_weighted_error() -> None:
    weight = random_weight(64, 256)
    blocks = in_blocks(weight, 64)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    scales = largest / np.float32(-8)
    plain = pack(
        (np.clip(np.rint(blocks / scales[..., None]), -8, 7) + 8).astype(np.uint8), scales, None, bits=4, columns=256
    )

    def weighted_error(packed: PackedWeight) -> float:
        return float((np.abs(weight) * np.square(unpack(packed) - weight)).sum())

    assert weighted_error(quantize_int4(weight, 64)) < 0.95 * weighted_error(plain)


@pytest.mark.parametrize("scheme", QUANTIZING)
def test_a_zero_weight_stays_zero(scheme: str) -> None:
    function = SCHEMES[scheme]
    assert function is not None
    assert not unpack(function(np.zeros((8, 128), np.float32))).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_pack_and_unpack_are_inverse_with_zero_points_too(bits: int) -> None:
    random = np.random.default_rng(bits)
    values = random.integers(0, 1 << bits, (6, 3, 32)).astype(np.uint8)
    zeros = random.integers(0, 1 << bits, (6, 3)).astype(np.uint8)
    scales = random.random((6, 3), np.float32)
    weight = pack(values, scales, zeros, bits=bits, columns=96)
    wanted = (values.astype(np.float32) - zeros[..., None]) * scales[..., None]
    np.testing.assert_allclose(unpack(weight), wanted.reshape(6, 96), rtol=1e-6)
    hidden = random_weight(2, 96)
    assert relative_error(product(weight, hidden, accuracy_level=1), hidden @ unpack(weight).T) < 1e-5


def test_stacked_weights_are_the_stacked_rows() -> None:
    parts = [random_weight(8, 128, seed) for seed in (1, 2)]
    stacked = stack([quantize_int8(part, 64) for part in parts])
    np.testing.assert_array_equal(unpack(stacked), np.concatenate([unpack(quantize_int8(part, 64)) for part in parts]))


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_has_a_scheme_for_every_tensor(name: str) -> None:
    config = ModelConfig(
        model_type="llama", vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=5,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=8,
    )  # fmt: skip
    recipe = PRECISIONS[name].recipe(config)
    assert all(scheme_for(recipe, tensor) in {*SCHEMES, "keep"} for tensor in config.tensor_shapes())
    assert "{" not in str([rule.pattern for rule in recipe])


def test_an_unknown_precision_names_those_that_there_are() -> None:
    with pytest.raises(ExportError, match=r"No precision 'int3'\. There are: fp32, int8, int4, keep"):
        precision_named("int3")
