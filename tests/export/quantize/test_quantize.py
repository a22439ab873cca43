from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from package_logits import distance

from edgelm.architecture.block_grid import Grid, exact_grid, in_blocks, outermost_grid
from edgelm.architecture.quantization_recipe import TRANSFORMS
from edgelm.architecture.quantization_scheme import METHODS, Scheme, parse_scheme
from edgelm.errors import ExportError
from edgelm_export.graph.graph import MICROSOFT, OPSETS
from edgelm_export.quantize.folding import CHOOSERS
from edgelm_export.quantize.gptq import quantize_gptq
from edgelm_export.quantize.grid import GRIDS, hqq_grid, own_grid, quantize_alone
from edgelm_export.quantize.keep import keep_grid
from edgelm_export.quantize.packed import PackedWeight, pack, stack, unpack
from edgelm_export.quantize.statistics import InputStatistics

# Every method, width and kind of grid, and the smallest and largest blocks.
SCHEMES = [
    "int8-block16", "int8-block64", "int8-block256", "int8-block64-asymmetric", "int8-block32-searched",
    "int4-block16", "int4-block64", "int4-block64-rounded", "int4-block32-asymmetric", "int4-block128-asymmetric-hqq",
    "int2-block32-asymmetric", "int2-block64", "int2-block128-asymmetric-hqq",
]  # fmt: skip


def quantized(weight: np.ndarray, name: str) -> PackedWeight:
    return quantize_alone(weight, parse_scheme(name))


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


@pytest.mark.parametrize("columns", [64, 192, 576, 100])  # 576 has an odd number of blocks, 100 a padded one
@pytest.mark.parametrize("scheme", SCHEMES)
def test_onnx_runtime_multiplies_by_the_unpacked_weight(scheme: str, columns: int) -> None:
    weight = quantized(random_weight(48, columns), scheme)
    hidden = random_weight(5, columns, seed=1)
    # At full accuracy only float32's order of sums is left; the largest seen is 4e-7.
    assert distance(product(weight, hidden, accuracy_level=1), hidden @ unpack(weight).T) < 1e-5
    # At level 4 the activations are rounded to 8 bits per block; the largest seen is 0.008.
    assert distance(product(weight, hidden, accuracy_level=4), hidden @ unpack(weight).T) < 0.02


# Relative errors of normal weights; theory for uniform rounding is 0.0058 at 8 bits and about 0.1 at 4.
@pytest.mark.parametrize(
    ("scheme", "bound"),
    [
        ("int8-block64", 0.007), ("int8-block64-asymmetric", 0.007), ("int4-block64", 0.12),
        ("int4-block64-asymmetric", 0.11), ("int4-block64-asymmetric-hqq", 0.12), ("int2-block64-asymmetric", 0.50),
    ],
)  # fmt: skip
def test_a_scheme_keeps_the_weight_to_its_bits(scheme: str, bound: float) -> None:
    weight = random_weight(64, 576)
    assert distance(unpack(quantized(weight, scheme)), weight) < bound


def test_int8_of_a_hand_computed_block() -> None:
    steps = np.array([[127, -63.5, 0.0, 1] + [0.0] * 12], np.float32)
    packed = quantized(steps * np.float32(2**-7), "int8-block16")
    assert packed.packed[0, 0, :5].tolist() == [255, 64, 128, 129, 128]  # -63.5 rounds to even
    assert packed.scales.tolist() == [[2**-7]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_are_such_as_float16_holds(scheme: str) -> None:
    scales = quantized(random_weight(16, 256), scheme).scales
    assert np.array_equal(scales.astype(np.float16), scales)


def test_weights_of_another_grid_are_not_stacked() -> None:
    schemes = ("int4-block32", "int4-block64", "int8-block32", "int4-block32-asymmetric")
    assert len({quantized(random_weight(8, 128), scheme).layout for scheme in schemes}) == 4


@pytest.mark.filterwarnings("error")
def test_scales_beyond_what_float16_holds_stay_in_float32() -> None:
    for size in (1e-6, 1e8):
        weight = random_weight(16, 256) * np.float32(size)
        packed = quantized(weight, "int8-block64")
        assert packed.stored_scales.dtype == np.float32
        assert distance(unpack(packed), weight) < 0.007


def test_the_search_finds_a_grid_that_the_weights_are_on() -> None:
    steps = np.random.default_rng(0).integers(-8, 8, (16, 128)).astype(np.float32)
    steps[:, ::64] = -8  # each block shows its whole range
    weight = steps * np.float32(0.03)
    np.testing.assert_allclose(unpack(quantized(weight, "int4-block64")), weight, atol=1e-7)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_on_a_grid_keep_their_integers(scheme: str) -> None:
    kind = parse_scheme(scheme)
    random = np.random.default_rng(0)
    top, shape = (1 << kind.bits) - 1, (12, 3, kind.block_size)
    values = random.integers(0, top + 1, shape).astype(np.float32)
    zeros = np.full(shape[:2], top // 2 + 1, np.float32)
    # The whole range, which no other symmetric grid holds, and a single step, without which a coarser one might.
    values[..., 0], values[..., 1], values[..., 2] = 0, top, zeros + 1
    if not kind.symmetric:
        zeros = random.integers(0, top, shape[:2]).astype(np.float32)
        values[..., 2] = zeros + 1
    signs = random.choice([-1, 1], shape[:2]) if kind.symmetric else 1
    # Few enough bits that a scale times an integer of 8 bits is exact in float32.
    scales = ((random.random(shape[:2]) + 0.1) * 0.03 * signs).astype(np.float16).astype(np.float32)
    weight = Grid(top=top, scales=scales, zeros=zeros).weights(values).reshape(12, -1)

    packed = quantized(weight, scheme)

    assert np.array_equal(unpack(packed), weight)
    kept = pack(
        values.astype(np.uint8), scales, None if kind.symmetric else zeros.astype(np.uint8),
        bits=kind.bits, columns=weight.shape[1],
    )  # fmt: skip
    assert np.array_equal(packed.packed, kept.packed)
    assert np.array_equal(packed.scales, kept.scales)


def test_a_matrix_in_pieces_is_what_it_is_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(37, 200)
    weight[::5, 64:128] = 0  # blocks without a weight, between others
    weight[3, ::3] = 0
    for name in SCHEMES:
        whole = quantized(weight, name)
        with monkeypatch.context() as patch:
            patch.setattr("edgelm_export.quantize.grid._WEIGHTS_AT_ONCE", 1000)  # five rows
            pieces = quantized(weight, name)
        pieces.check(weight.shape)
        assert all(
            np.array_equal(getattr(pieces, part), getattr(whole, part)) for part in ("packed", "scales", "zero_points")
        )


def test_zeros_beside_integers_of_a_scale_leave_them_on_their_grid() -> None:
    steps = np.random.default_rng(0).integers(-8, 8, (4, 128)).astype(np.float32)
    steps[1, 64:], steps[2, ::2] = 0, 0

    own, found = exact_grid(in_blocks(steps * np.float32(0.03125), 64), parse_scheme("int4-block64"))

    assert found.all()
    assert np.array_equal(np.abs(own.scales[2]), [0.03125, 0.03125])


def test_a_block_beside_its_grid_is_searched_and_the_others_are_kept() -> None:
    steps = np.random.default_rng(0).integers(-8, 8, (4, 128)).astype(np.float32)
    weight = steps * np.float32(0.03125)
    weight[1, 70] *= np.float32(1.01)

    _, found = exact_grid(in_blocks(weight, 64), Scheme(bits=4, block_size=64, symmetric=True, method="searched"))
    kept = unpack(quantized(weight, "int4-block64"))

    assert found.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert np.array_equal(np.delete(kept, 1, 0), np.delete(weight, 1, 0))


@pytest.mark.parametrize("scheme", ["int4-block64-rounded", "int4-block64-asymmetric-rounded"])
def test_a_block_on_a_grid_that_rounding_would_not_find_is_kept_beside_others(scheme: str) -> None:
    weight = random_weight(2, 128)
    steps = np.random.default_rng(0).integers(-3, 8, 64).astype(np.float32)  # of 16 steps, a part
    weight[0, :64] = steps * np.float32(0.03125)

    packed = quantized(weight, scheme)

    assert packed.scales[0, 0] == 0.03125
    assert np.array_equal(unpack(packed)[0, :64], weight[0, :64])
    assert not np.array_equal(unpack(packed)[0, 64:], weight[0, 64:])


def test_a_zero_point_of_5_bits_lies_between_two_steps_in_a_hand_computed_block() -> None:
    weight = np.arange(16, dtype=np.float32)[None] - np.float32(7.3)  # 16 levels that no multiple of their step begins
    packed = quantized(weight, "int5-block16-asymmetric")
    # A level is two steps of 0.5; the least is 14.6 of them below zero: 117 eighths, 14.625.
    assert packed.scales.tolist() == [[0.5]]
    assert packed.zero_points is not None
    assert packed.zero_points.tolist() == [[117]]
    assert packed.packed.ravel().tolist() == list(range(0, 32, 2))
    np.testing.assert_allclose(unpack(packed), weight - 0.0125, atol=1e-6)
    # In 4 bits none lies there, and the grid is searched.
    assert not own_grid(in_blocks(weight, 16), parse_scheme("int4-block16-asymmetric"))[1].any()


@pytest.mark.parametrize("method", ["searched", "gptq"])
@pytest.mark.parametrize("bits", [5, 6])
def test_even_levels_that_begin_anywhere_are_held_to_a_thirty_second(bits: int, method: str) -> None:
    random = np.random.default_rng(bits)
    levels = random.integers(0, 16, (48, 4, 32)).astype(np.float32)
    levels[..., :2] = 0, 15
    level = random.uniform(0.01, 0.1, (48, 4, 1)).astype(np.float16).astype(np.float32)
    weight = (level * (levels - random.uniform(0.5, 14.5, level.shape))).astype(np.float32).reshape(48, 128)
    scheme = parse_scheme(f"int{bits}-block32-asymmetric-{method}")
    if method == "gptq":
        x = random.standard_normal((256, 128)).astype(np.float32)
        packed = quantize_gptq(weight, InputStatistics.of(x, x), scheme)
    else:
        packed = quantize_alone(weight, scheme)
    missed = np.abs(unpack(packed) - weight).reshape(levels.shape) / level
    assert missed.max() < 1 / 32 + 1e-4  # half of an eighth of half a level, or of a quarter of a quarter


@pytest.mark.parametrize("asymmetric", ["", "-asymmetric"])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_search_beats_plain_rounding_in_weighted_error(bits: int, asymmetric: str) -> None:
    weight = random_weight(64, 256)

    def weighted_error(method: str) -> float:
        packed = quantized(weight, f"int{bits}-block64{asymmetric}-{method}")
        return float((np.abs(weight) * np.square(unpack(packed) - weight)).sum())

    assert weighted_error("searched") < 0.95 * weighted_error("rounded")


def test_hqq_leaves_a_smaller_robust_error_than_rounding_where_weights_have_outliers() -> None:
    weight = random_weight(64, 256)
    weight[:, ::50] *= 6

    def robust_error(method: str) -> float:  # the l0.7 norm that HQQ minimizes
        packed = quantized(weight, f"int4-block64-asymmetric-{method}")
        return float((np.abs(unpack(packed) - weight) ** 0.7).sum())

    assert robust_error("hqq") < 0.98 * robust_error("rounded")
    # Blocks of every size are split alike. Which of two grids is better by the last bit alone may be another.
    one, other = (unpack(quantized(size * weight, "int4-block64-asymmetric-hqq")) / size for size in (1, 1024))
    assert (one == other).mean() > 0.99


def test_hqq_is_never_worse_than_where_it_begins_and_moves_zero_points() -> None:
    blocks = in_blocks(random_weight(256, 64, seed=1) ** 3, 64)
    scheme = Scheme(bits=5, block_size=64, symmetric=False, method="hqq")
    begun, found = outermost_grid(blocks, scheme), hqq_grid(blocks, scheme)
    errors = [(np.abs(grid.weights(grid.nearest(blocks)) - blocks) ** 0.7).sum(-1) for grid in (begun, found)]
    assert (errors[1] <= errors[0]).all()
    assert (begun.zeros != found.zeros).any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_zero_weight_stays_zero(scheme: str) -> None:
    assert not unpack(quantized(np.zeros((8, 128), np.float32), scheme)).any()


@pytest.mark.parametrize("size", [1e-20, 1e-25, 1e-35])
@pytest.mark.parametrize(
    "scheme", ["int5-block32-asymmetric", "int6-block64", "int4-block64-asymmetric", "int8-block32"]
)
def test_weights_whose_products_float32_does_not_hold_keep_their_size(scheme: str, size: float) -> None:
    """A channel that died in training, beside others."""
    weight = np.random.default_rng(6).standard_normal((4, 128)).astype(np.float32)
    weight[1] *= np.float32(size)
    for method in ("searched", "hqq", "rounded"):
        got = unpack(quantized(weight, f"{scheme}-{method}"))[1]
        assert np.abs(got - weight[1]).max() < 0.3 * np.abs(weight[1]).max(), method


def test_an_asymmetric_grid_of_a_hand_computed_block() -> None:
    weight = np.array([[-0.5, 1.0, 0.25, 0.0] + [0.0] * 12], np.float32)
    blocks = in_blocks(weight, 16)
    grid = outermost_grid(blocks, Scheme(bits=4, block_size=16, symmetric=False, method="rounded"))
    np.testing.assert_allclose(grid.scales, [[0.1]], rtol=1e-6)  # 1.5 over 15 steps
    assert grid.zeros.tolist() == [[5]]
    assert grid.nearest(blocks)[0, 0, :4].tolist() == [0, 15, 7, 5]  # 2.5 rounds to even


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pack_and_unpack_are_inverse_with_zero_points_too(bits: int) -> None:
    random = np.random.default_rng(bits)
    values = random.integers(0, 1 << bits, (6, 3, 32)).astype(np.uint8)
    zeros = random.integers(0, 1 << bits, (6, 3)).astype(np.uint8)
    scales = random.random((6, 3), np.float32)
    weight = pack(values, scales, zeros, bits=bits, columns=96)
    wanted = (values.astype(np.float32) - zeros[..., None]) * scales[..., None]
    np.testing.assert_allclose(unpack(weight), wanted.reshape(6, 96), rtol=1e-6)
    hidden = random_weight(2, 96)
    assert distance(product(weight, hidden, accuracy_level=1), hidden @ unpack(weight).T) < 1e-5


def test_stacked_weights_are_the_stacked_rows() -> None:
    parts = [random_weight(8, 128, seed) for seed in (1, 2)]
    for scheme in ("int8-block64", "int4-block32-asymmetric"):
        stacked = stack([quantized(part, scheme) for part in parts])
        apart = [unpack(quantized(part, scheme)) for part in parts]
        np.testing.assert_array_equal(unpack(stacked), np.concatenate(apart))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int3-block32", r"A scheme has 3 bits; there are 8, 6, 5, 4, 2\."),
        ("int2-block16", r"A scheme of 2 bits has blocks of 16; ONNX Runtime is fast with 32, 64, 128\."),
        ("int4-block32-magic", r"A scheme has the method 'magic'; there are rounded, searched, hqq, gptq, shortlist\."),
        (
            "q4_k_m",
            r"No scheme is called 'q4_k_m'\. There are fp32, fp16, bf16, keep and int8.*-block16\|32\|64\|128\|256\[",
        ),
    ],
)
def test_a_scheme_that_there_is_not_is_refused_with_those_that_there_are(name: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_scheme(name)


def test_every_method_and_transform_that_a_recipe_may_name_has_a_row() -> None:
    assert set(METHODS) == set(GRIDS)
    assert set(TRANSFORMS) == {*CHOOSERS, "rotate"}  # which reads no text: quantize/rotation.py


@pytest.mark.parametrize(("stored", "dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16), ("F32", np.float32)])
def test_kept_floats_are_of_their_type_unless_what_is_folded_in_takes_more_digits(stored: str, dtype: Any) -> None:
    weight = random_weight(4, 32).astype(dtype).astype(np.float32)
    for factor, kept in ((1, dtype), (np.float32(1.1), np.float32)):
        source: Any = SimpleNamespace(
            quantized_blocks=lambda *_: None, tensor=lambda _, f=factor: weight * f, stored_type=lambda _: stored
        )
        found = keep_grid(source, "model.layers.0.mlp.up_proj.weight")
        assert isinstance(found, np.ndarray)
        assert found.dtype == kept
        assert np.array_equal(found.astype(np.float32), weight * factor)


def test_a_weight_counts_its_bytes_on_the_disk() -> None:
    weight = random_weight(16, 256)
    # Bits a weight: of its integers, and its share of a scale of 16 bits and of a zero point.
    for name, bits in (
        ("int8-block64", 8 + 16 / 64),
        ("int4-block32-asymmetric", 4 + 20 / 32),
        ("int2-block64-asymmetric", 2 + 18 / 64),
    ):
        assert quantized(weight, name).nbytes * 8 == bits * weight.size
    wide = quantized(weight * np.float32(1e-6), "int8-block64")  # with scales below those of float16
    assert wide.nbytes * 8 == (8 + 32 / 64) * weight.size
