"""Matrices that a folder stores in 8 bits with scales beside them: floats (FP8, E4M3), or integers.

A scale is for all of a matrix, for a row, or for a block of rows and columns; in MXFP8 it is a power of two (E8M0) for
32 inputs. What activations were rounded to where the model was made (activation_scale, input_scale) is passed over:
here they have float32, or a block's own 8 bits.
Sources: transformers' integrations of FP8 (DeepSeek-V3's, Mistral's, FBGEMM's), compressed-tensors' float-quantized,
int-quantized and mxfp8-quantized, nvidia-modelopt 0.47, amd-quark 0.13, bitsandbytes' LLM.int8 (SCB).
Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import FLOATS, QuantizedBlocks, Read
from edgelm_export.packed.grid_of_groups import Grid
from edgelm_export.packed.microscaling import half_of_power

FLOAT8 = "F8_E4M3"  # as safetensors calls it
_STORED = {"FP8": FLOAT8, "INT8": "I8"}
_OF_MXFP8 = (1, 32)  # rows and columns of a scale
_PASSED_OVER = ("activation_scale", "input_scale", "input_scale_ub", "weight_format")


@dataclass(frozen=True, kw_only=True)
class ScaledMatrix:
    """One matrix of 8 bits, and the scales by which it is multiplied.

    type: a row of `_STORED`. scale: the name of its scales' tensor. block: of how many rows and columns a scale is,
    where there is one for each block; else None. divisor: of the stored scales.
    """

    stem: str
    shape: tuple[int, int]
    type: str
    scale: str
    block: tuple[int, int] | None
    divisor: int = 1

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that its tensors may have."""
        return (f"{self.stem}.weight", self.scale, *(f"{self.stem}.{part}" for part in _PASSED_OVER))

    @property
    def stored_types(self) -> dict[str, tuple[str, ...]]:
        """The types that its tensors must have on disk."""
        return {
            f"{self.stem}.weight": (_STORED[self.type],),
            self.scale: (*FLOATS, *(("U8",) if self.block == _OF_MXFP8 else ())),
        }

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix in float32; `read` gives its tensors."""
        weight: NDArray[np.float32] = read(f"{self.stem}.weight").astype(np.float32)
        with np.errstate(all="ignore"):
            weight *= self._scales(read)
        return weight

    def blocks(self, read: Read) -> QuantizedBlocks | None:
        """Return the matrix in MatMulNBits' blocks; None where it is of floats, or its scales are not of rows."""
        scales = self._scales(read)
        if self.type != "INT8" or scales.shape != (self.shape[0], 1):
            return None
        values = read(f"{self.stem}.weight").astype(np.int32) + 128
        zeros, groups = np.full(scales.shape, 128, np.int32), np.zeros(self.shape[1], np.int64)
        return Grid(bits=8, values=values, zeros=zeros, scales=scales, groups=groups).blocks()

    def _scales(self, read: Read) -> NDArray[np.float32]:
        """Return the scales so that they can be multiplied with: [1, 1], [N, 1] or [N, K]."""
        with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
            stored = read(self.scale)
            scales: NDArray[np.float32] = stored.astype(np.float32) / np.float32(self.divisor)
            if stored.dtype == np.uint8:
                scales = 2 * half_of_power(stored)
        if scales.size == 1:
            return scales.reshape(1, 1)
        if self.block is None:
            return scales.reshape(-1, 1)
        (N, K), (rows, columns) = self.shape, self.block
        return np.ascontiguousarray(scales.repeat(rows, 0)[:N].repeat(columns, 1)[:, :K])


def scaled_matrices(
    config: Mapping[str, Any], present: Mapping[str, tuple[int, ...]], where: object
) -> Mapping[str, ScaledMatrix] | None:
    """Find such matrices of a folder, under the names of plain ones; None where its settings are of another kind.

    Raises:
        CheckpointError: the scales of one do not fit it.
    """
    kind = _kind(config)
    if kind is None:
        return None
    block = kind.block
    if block is not None and not _is_block(block):
        raise CheckpointError(f"{where}: quantization_config's block is {block!r:.60}; it must be two numbers above 0.")
    found = {}
    for name, shape in present.items():
        stem = name.removesuffix(".weight")
        part = next((part for part in kind.parts if f"{stem}.{part}" in present), "")
        if stem == name or len(shape) != 2 or not part:
            continue
        scale = present[f"{stem}.{part}"]
        of_blocks = None if block is None else tuple(-(-size // of) for size, of in zip(shape, block, strict=True))
        if scale not in ((), (1,), (1, 1)) and scale != of_blocks and scale not in ((shape[0],), (shape[0], 1)):
            raise CheckpointError(f"{where}: {stem}.{part} is {list(scale)}, which fits no matrix of {list(shape)}.")
        found[name] = ScaledMatrix(
            stem=stem,
            shape=(shape[0], shape[1]),
            type=kind.type,
            scale=f"{stem}.{part}",
            # The settings may say any number, and each row of a block takes memory.
            block=(min(block[0], shape[0]), min(block[1], shape[1])) if block and scale == of_blocks else None,
            divisor=kind.divisor,
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What a folder's settings say of all its matrices. parts: the names that the scales of one may have."""

    type: str
    parts: tuple[str, ...] = ("weight_scale",)
    block: Any = None
    divisor: int = 1


def _kind(config: Mapping[str, Any]) -> _Kind | None:
    """Tell what the settings say; None where they are of another kind."""
    method, form = config.get("quant_method"), config.get("format")
    groups = compressed_weights(config)
    weights = groups[0] if groups else {}
    if method == "fp8":  # AutoFP8 has the second name, for what is multiplied by too
        parts = ("weight_scale_inv", "weight_scale")
        return _Kind(type="FP8", parts=parts, block=config.get("weight_block_size"))
    if method == "fbgemm_fp8":
        return _Kind(type="FP8")
    if method == "bitsandbytes" and config.get("load_in_8bit"):
        return _Kind(type="INT8", parts=("SCB",), divisor=127)  # the largest size of each row
    if mixes_kinds(config):
        structures = [each["block_structure"] for each in groups if each.get("block_structure")]
        return _Kind(type="FP8", block=structures[0] if structures else list(_OF_MXFP8))
    if method == "compressed-tensors" and weights.get("num_bits") == 8 and weights.get("symmetric", True):
        name = "FP8" if weights.get("type") == "float" else "INT8"
        if form == ("float-quantized" if name == "FP8" else "int-quantized"):
            return _Kind(type=name, block=weights.get("block_structure"))
    return None


# Formats of compressed-tensors, algorithms of ModelOpt and types of Quark that may have matrices of several kinds, or,
# where it is the cache alone that is rounded ("dense", and no algorithm), none.
_MIXING = {
    "compressed-tensors": (
        ("format",),
        ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision", "dense"),
    ),
    "modelopt": (
        ("quant_algo",),
        (
            *("NVFP4", "W4A16_NVFP4", "W4A8_NVFP4_FP8", "MXFP4", "W4A8_MXFP4_FP8"),
            *("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MXFP8", "MIXED_PRECISION", None),
        ),
    ),
    "quark": (("global_quant_config", "weight", "dtype"), ("fp4", "fp8_e4m3")),
}


def mixes_kinds(config: Mapping[str, Any]) -> bool:
    """Tell whether the names of its parts say of what kind each matrix of a folder is."""
    keys, names = _MIXING.get(str(config.get("quant_method")), ((), ()))
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return bool(keys) and value in names


def compressed_weights(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what compressed-tensors says of the weights of each group."""
    groups = config.get("config_groups")
    listed = groups.values() if isinstance(groups, dict) else ()
    found = [group.get("weights") for group in listed if isinstance(group, dict)]
    return [weights for weights in found if isinstance(weights, dict)]


def _is_block(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)
