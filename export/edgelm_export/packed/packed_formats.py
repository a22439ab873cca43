"""Packed formats: matrices that a folder stores quantized: by GPTQ, AWQ or compressed-tensors here, by others beside.

These three are integers with a scale, and perhaps a zero point, for each group of inputs: MatMulNBits' own grid, so
that `--precision keep` repacks them without rounding. Each packs its integers into int32 in another order.
Sources: AutoGPTQ's and AutoAWQ's checkpoints (qweight, qzeros, scales, g_idx), compressed-tensors' pack-quantized.
Shapes: N outputs, K inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import FLOATS, QuantizedBlocks, Read, shown
from edgelm_export.packed.bitnet_format import TernaryMatrix, ternary_matrices
from edgelm_export.packed.bitsandbytes_format import FourBitMatrix, four_bit_matrices
from edgelm_export.packed.float4_format import Float4Matrix, float4_matrices
from edgelm_export.packed.float8_format import ScaledMatrix, compressed_weights, mixes_kinds, scaled_matrices
from edgelm_export.packed.grid_of_groups import Grid
from edgelm_export.packed.hqq_format import HQQMatrix, hqq_matrices
from edgelm_export.packed.mlx_format import MLXMatrix, mlx_matrices
from edgelm_export.packed.modelopt_format import ModelOptMatrix, modelopt_matrices
from edgelm_export.packed.mxfp4 import MXFP4Stack, mxfp4_stacks
from edgelm_export.packed.torchao_format import TorchAOMatrix, torchao_matrices

# AutoAWQ puts these outputs of each eight into the nibbles of an int32, the first into the lowest.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class PackedMatrix:
    """One matrix in its parts: the format's row, the stem of the parts' names, bits and shape."""

    format: str
    stem: str
    bits: int
    shape: tuple[int, int]
    settings: Mapping[str, Any]

    @property
    def type(self) -> str:
        """What the matrix is stored as, such as "GPTQ-4bit"."""
        return f"{self.format.upper()}-{self.bits}bit"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that its tensors may have."""
        return tuple(self.stored_types)

    @property
    def stored_types(self) -> dict[str, tuple[str, ...]]:
        """The types that its tensors must have on disk."""
        return {f"{self.stem}.{part}": types for part, types in FORMATS[self.format].parts.items()}

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix in float32; `read` gives its tensors."""
        return FORMATS[self.format].unpack(self, read).weight()

    def blocks(self, read: Read) -> QuantizedBlocks | None:
        """Return the matrix in MatMulNBits' blocks; None where its groups are not blocks of a size that is fast."""
        return FORMATS[self.format].unpack(self, read).blocks()


@dataclass(frozen=True, kw_only=True)
class _Format:
    """One format.

    main: the part by which a packed matrix is found. parts: all of them, and their types on disk. optional: what a
    matrix may lack. layout_keys: of the settings, those that say how the integers are packed; the first that is there
    does. layouts: what is read of that; the first where nothing is said. shape: [N, K] of the matrix, from the main
    part's and the number of integers in a word. groups: the part and the dimension of it that are of the groups.
    beside: the other parts' shapes, from N, K, G and that number.
    """

    main: str
    parts: Mapping[str, tuple[str, ...]]
    optional: frozenset[str] = frozenset()
    bits: tuple[int, ...]
    layout_keys: tuple[str, ...]
    layouts: tuple[str, ...]
    shape: Callable[[tuple[int, ...], int], tuple[int, int]]
    groups: tuple[str, int]
    beside: Callable[[int, int, int, int], Mapping[str, tuple[int, ...]]]
    unpack: Callable[[PackedMatrix, Read], Grid]


# A matrix of any format, or the stacked ones of experts.
Packed = (
    PackedMatrix
    | MLXMatrix
    | MXFP4Stack
    | TernaryMatrix
    | ScaledMatrix
    | FourBitMatrix
    | Float4Matrix
    | HQQMatrix
    | ModelOptMatrix
    | TorchAOMatrix
)


def packed_matrices(
    config: Mapping[str, Any], present: Mapping[str, tuple[int, ...]], read: Read, where: object
) -> Mapping[str, Packed]:
    """Find the packed matrices of a folder by its config.json's quantization_config, under the names of plain ones.

    present: the shapes of its tensors. read: gives one of them as it is stored.

    Raises:
        CheckpointError: it is quantized in another way, or its settings are broken.
    """
    for key in ("rotation_config", "spinquant_config"):
        if config.get(key):
            raise CheckpointError(
                f"{where}: quantization_config's {key} is {config[key]!r:.80}, which is not supported: the model would "
                "rotate its activations as it runs. Take a folder without it, or the model's unquantized one."
            )
    config = _as_packed(config)
    method = config.get("quant_method")
    if method is None and {"bits", "group_size"} <= config.keys():  # mlx-lm names no method
        return mlx_matrices(config, present, where)
    if method == "mxfp4":
        return mxfp4_stacks(present)
    if method == "bitnet":
        return ternary_matrices(config, present, where)
    if method == "bitsandbytes" and config.get("load_in_4bit"):
        return four_bit_matrices(present, read, where)
    if method == "hqq":
        return hqq_matrices(present, read, where)
    if mixes_kinds(config):
        floats = float4_matrices(present, where)
        rest = without_parts(present, floats)
        integers = _integers("compressed-tensors", config, rest, read, where)
        return {**floats, **(scaled_matrices(config, rest, where) or {}), **integers}
    for find in (torchao_matrices if method == "torchao" else scaled_matrices, modelopt_matrices):
        found = find(config, present, where)
        if found is not None:
            return found
    format_name = method if isinstance(method, str) else ""
    row = FORMATS.get(format_name)
    if row is None or _bits(config) not in row.bits or _layout(row, config) not in row.layouts:
        raise _unsupported(config, row, where)
    return _integers(format_name, config, present, read, where)


def _unsupported(config: Mapping[str, Any], row: _Format | None, where: object) -> CheckpointError:
    """Return the error of a way to quantize that is none of those that are read. row: its format, if that is one."""
    found = {"quant_method": config.get("quant_method"), "bits": config.get("bits", row and _bits(config))}
    keys = ("format", "quant_algo", "packing_format") if row is None else row.layout_keys
    found |= {key: config.get(key) for key in keys}
    told = ", ".join(f"{key} {value!r}" for key, value in found.items() if value is not None)
    return CheckpointError(
        f"{where}: the weights are quantized ({told or 'quantization_config'}), in a way that is not supported. "
        "Supported: gptq in 2, 4 and 8 bits, awq in 4, auto-round in the packing of either, compressed-tensors "
        "pack-quantized in 4 and 8, its float-quantized and int-quantized in 8, its nvfp4-pack-quantized, "
        "mxfp4-pack-quantized, mxfp8-quantized and mixed-precision, modelopt's NVFP4, MXFP4, FP8, MXFP8, W4A16_AWQ and "
        "MIXED_PRECISION, quark's fp8_e4m3 and fp4, fp8, fbgemm_fp8, bitsandbytes in 4 and 8, mxfp4, bitnet, hqq, "
        "torchao's int8, intx and float8, and mlx-lm's modes. Take the model's unquantized folder, or a GGUF file."
    )


# packing_format of AutoRound -> the method and the layout whose packing that is.
_AUTO_ROUND = {
    **dict.fromkeys(("auto", "auto_round:gptq", "auto_round:auto_gptq"), ("gptq", "gptq")),
    **dict.fromkeys(("auto_round", "auto_round:exllamav2", "auto_round:tritonv2"), ("gptq", "gptq_v2")),
    **dict.fromkeys(("auto_round:awq", "auto_round:auto_awq"), ("awq", "gemm")),
}


def _as_packed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return AutoRound's settings as those of the format whose packing it has; all others as they are."""
    if config.get("quant_method") not in ("auto-round", "intel/auto-round") or config.get("data_type", "int") != "int":
        return config
    method, layout = _AUTO_ROUND.get(str(config.get("packing_format", config.get("backend", "auto"))), ("", ""))
    return {**config, "quant_method": method, "checkpoint_format": layout} if method else config


def _integers(
    format_name: str, config: Mapping[str, Any], present: Mapping[str, tuple[int, ...]], read: Read, where: object
) -> dict[str, PackedMatrix]:
    """Find the matrices of one format of integers."""
    row, matrices = FORMATS[format_name], {}
    for name, shape in present.items():
        stem = name.removesuffix(f".{row.main}")
        if stem == name or len(shape) != 2:
            continue
        bits = _bits_of(stem, shape, config, present, read) or _bits(config) or row.bits[0]
        if bits not in row.bits:
            raise CheckpointError(
                f"{where}: quantization_config says that the integers of {stem} have {bits!r:.40} bits; supported of "
                f"{format_name}: {', '.join(map(str, row.bits))}. Take the model's unquantized folder, or a GGUF file."
            )
        matrices[f"{stem}.weight"] = PackedMatrix(
            format=format_name, stem=stem, bits=bits, shape=row.shape(shape, 32 // bits), settings=config
        )
        _check(matrices[f"{stem}.weight"], present, where)
    return matrices


def _bits_of(
    stem: str, shape: tuple[int, ...], config: Mapping[str, Any], present: Mapping[str, tuple[int, ...]], read: Read
) -> int | None:
    """Return the bits of a matrix by its own parts, where those of a folder may differ."""
    zeros = present.get(f"{stem}.qzeros")
    if config["quant_method"] == "gptq" and zeros is not None:
        of_all = _bits(config)
        fitting = [bits for bits in FORMATS["gptq"].bits if zeros[1:] == (-(-shape[1] * bits // 32),)]
        return of_all if of_all in fitting else next(iter(fitting), None)
    if len({str(weights.get("num_bits")) for weights in compressed_weights(config)}) < 2:
        return None
    if present.get(f"{stem}.weight_shape") != (2,):  # which the comparison of its parts says
        return None
    columns = read(f"{stem}.weight_shape").tolist()[1]
    if type(columns) is not int:  # which the comparison of types says
        return None
    return next((bits for bits in (4, 8) if -(-columns * bits // 32) == shape[1]), None)


def _check(matrix: PackedMatrix, present: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Compare the shapes of a matrix's tensors with each other."""
    row, (N, K) = FORMATS[matrix.format], matrix.shape
    found = {part: present.get(f"{matrix.stem}.{part}") for part in row.parts}
    # An order of activations says nothing without the groups.
    optional = row.optional - ({"g_idx"} if matrix.settings.get("desc_act") else set())
    found = {part: shape for part, shape in found.items() if shape is not None or part not in optional}
    part, dimension = row.groups
    of_groups = found[part] or ()
    G = of_groups[dimension] if len(of_groups) == 2 else 0
    wanted = row.beside(N, K, G, 32 // matrix.bits)
    fits = all(part == row.main or shape == wanted[part] for part, shape in found.items())
    if not 0 < G <= K or not fits or not (K % G == 0 or _says_groups(matrix, found, G)):
        told = ", ".join(f"{part} is {shown(shape)}" for part, shape in found.items())
        raise CheckpointError(
            f"{where}: the tensors of {matrix.stem} do not fit each other as {matrix.format} in {matrix.bits} bits: "
            f"{told}. Download the model again."
        )


def _says_groups(matrix: PackedMatrix, parts: Iterable[str], groups: int) -> bool:
    """Tell whether it is known which inputs are in which group, where they are not all of one size."""
    return any(part.endswith("g_idx") for part in parts) or (
        matrix.format != "awq" and _group_size(matrix, groups) is not None
    )


def _group_size(matrix: PackedMatrix, groups: int) -> int | None:
    """Return how many inputs are in each group but the last, by the settings; None where they say of other groups."""
    K, size = matrix.shape[1], matrix.settings.get("group_size")
    return size if type(size) is int and size > 0 and -(-K // size) == groups else None


def without_parts(present: Mapping[str, tuple[int, ...]], matrices: Mapping[str, Packed]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a folder's tensors with each packed matrix, or stack of them, in place of its parts."""
    parts = {part for matrix in matrices.values() for part in matrix.parts}
    plain = {name: shape for name, shape in present.items() if name not in parts}
    return plain | {name: matrix.shape for name, matrix in matrices.items()}


def _layout(row: _Format, config: Mapping[str, Any]) -> str:
    return next((str(config[key]).lower() for key in row.layout_keys if config.get(key)), row.layouts[0])


def _bits(config: Mapping[str, Any]) -> int | None:
    if config.get("quant_method") == "compressed-tensors":
        bits = next(
            (each.get("num_bits") for each in compressed_weights(config) if each.get("type", "int") == "int"), None
        )
    else:
        bits = config.get("bits", config.get("w_bit"))
    return bits if isinstance(bits, int) else None


def _unpack(packed: NDArray[Any], bits: int, axis: int) -> NDArray[np.int32]:
    """Take the integers out of int32 along one axis, the lowest bits first."""
    words = np.moveaxis(packed.astype(np.int32).view(np.uint32), axis, -1)
    values = np.stack([(words >> shift) & ((1 << bits) - 1) for shift in range(0, 32, bits)], axis=-1)
    joined = values.reshape(*words.shape[:-1], -1)
    return np.ascontiguousarray(np.moveaxis(joined, -1, axis)).astype(np.int32)


def _groups(matrix: PackedMatrix, part: str, count: int, read: Read) -> NDArray[np.int64]:
    """Return the group of each input: as a part of the matrix says, or one behind the other where it is not there."""
    try:
        groups = read(f"{matrix.stem}.{part}").astype(np.int64)
    except KeyError:
        groups = None
    if groups is None or (groups == -1).all():  # compressed-tensors' word for no order
        K = matrix.shape[1]
        groups = np.arange(K) // (_group_size(matrix, count) or K // count)
    if groups.min() < 0 or groups.max() >= count:
        raise CheckpointError(
            f"{matrix.stem}.{part} has groups from {groups.min()} to {groups.max()}; there are {count}. "
            "Download the model again."
        )
    return groups


def _gptq(matrix: PackedMatrix, read: Read) -> Grid:
    scales_GN = read(f"{matrix.stem}.scales").astype(np.float32)
    groups = _groups(matrix, "g_idx", len(scales_GN), read)
    zeros_GN = _unpack(read(f"{matrix.stem}.qzeros"), matrix.bits, 1)[:, : matrix.shape[0]]
    if _layout(FORMATS[matrix.format], matrix.settings) == "gptq":
        zeros_GN = (zeros_GN + 1) & ((1 << matrix.bits) - 1)  # the first version of the format stores one less
    return Grid(
        bits=matrix.bits,
        values=np.ascontiguousarray(_unpack(read(f"{matrix.stem}.qweight"), matrix.bits, 0).T),
        zeros=zeros_GN.T,
        scales=np.ascontiguousarray(scales_GN.T),
        groups=groups,
    )


def _awq(matrix: PackedMatrix, read: Read) -> Grid:
    def in_order(name: str) -> NDArray[np.int32]:
        values = _unpack(read(f"{matrix.stem}.{name}"), matrix.bits, 1)
        return np.ascontiguousarray(values.reshape(len(values), -1, 8)[..., np.argsort(_AWQ_ORDER)]).reshape(
            values.shape
        )

    scales_GN = read(f"{matrix.stem}.scales").astype(np.float32)
    K = matrix.shape[1]
    return Grid(
        bits=matrix.bits,
        values=np.ascontiguousarray(in_order("qweight").T),
        zeros=np.ascontiguousarray(in_order("qzeros").T),
        scales=np.ascontiguousarray(scales_GN.T),
        groups=np.arange(K) // (K // len(scales_GN)),
    )


def _compressed(matrix: PackedMatrix, read: Read) -> Grid:
    (N, K), shape = matrix.shape, read(f"{matrix.stem}.weight_shape").tolist()
    if shape != [N, K]:
        raise CheckpointError(
            f"{matrix.stem}.weight_shape is {shape}, and weight_packed holds [{N}, {K}]. Download the model again."
        )
    scales_NG = read(f"{matrix.stem}.weight_scale").astype(np.float32)
    try:
        zeros_NG = _unpack(read(f"{matrix.stem}.weight_zero_point"), matrix.bits, 0)[:N]
    except KeyError:  # symmetric
        zeros_NG = np.full(scales_NG.shape, 1 << (matrix.bits - 1), np.int32)
    return Grid(
        bits=matrix.bits,
        values=_unpack(read(f"{matrix.stem}.weight_packed"), matrix.bits, 1)[:, :K],
        zeros=zeros_NG,
        scales=scales_NG,
        groups=_groups(matrix, "weight_g_idx", scales_NG.shape[1], read),
    )


_WORDS, _INTEGERS = ("I32",), ("I32", "I64")

# One row a quant_method.
FORMATS: dict[str, _Format] = {
    "gptq": _Format(
        main="qweight", bits=(2, 4, 8), layout_keys=("checkpoint_format", "format"), layouts=("gptq", "gptq_v2"),
        optional=frozenset({"g_idx"}),
        parts={"qweight": _WORDS, "qzeros": _WORDS, "scales": FLOATS, "g_idx": _INTEGERS},
        shape=lambda packed, per_word: (packed[1], packed[0] * per_word), groups=("scales", 0),
        beside=lambda N, K, G, per_word: {"qzeros": (G, -(-N // per_word)), "scales": (G, N), "g_idx": (K,)},
        unpack=_gptq,
    ),
    "awq": _Format(
        main="qweight", bits=(4,), layout_keys=("version", "checkpoint_format", "format"), layouts=("gemm",),
        parts={"qweight": _WORDS, "qzeros": _WORDS, "scales": FLOATS},
        shape=lambda packed, per_word: (packed[1] * per_word, packed[0]), groups=("scales", 0),
        beside=lambda N, K, G, per_word: {"qzeros": (G, N // per_word), "scales": (G, N)},
        unpack=_awq,
    ),
    "compressed-tensors": _Format(
        main="weight_packed", bits=(4, 8), layout_keys=("format",), layouts=("pack-quantized",),
        optional=frozenset({"weight_zero_point", "weight_g_idx"}),
        parts={
            "weight_packed": _WORDS, "weight_scale": FLOATS, "weight_shape": _INTEGERS, "weight_zero_point": _WORDS,
            "weight_g_idx": _INTEGERS,
        },
        shape=lambda packed, per_word: (packed[0], packed[1] * per_word), groups=("weight_scale", 1),
        beside=lambda N, K, G, per_word: {
            "weight_scale": (N, G), "weight_shape": (2,), "weight_zero_point": (-(-N // per_word), G),
            "weight_g_idx": (K,),
        },
        unpack=_compressed,
    ),
}  # fmt: skip
