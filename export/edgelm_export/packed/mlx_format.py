"""Matrices as mlx-lm's converter packs them: 2 to 8 bits in groups along the inputs, or MXFP4, NVFP4 and MXFP8.

A module's integers lie in uint32, one stream of bits along a row, the lowest first. In the mode "affine" each group has
a scale and a bias, the weight of the integer zero: weight = scale * integer + bias. The other modes have floats in the
place of integers (E2M1, or E4M3 in 8 bits), and a byte for each group's scale: a power of two (E8M0), or E4M3 in NVFP4.
config.json's "quantization" has the settings of all modules, and of some under their names. A module that has scales is
packed.
Sources: mlx.core.quantize of mlx 0.32.4, load_model and save of mlx-lm 0.32.2.
Shapes: N outputs, K inputs, G groups of inputs, W words; a stack of experts has E before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks, Read, shown
from edgelm_export.packed.levels import on_levels
from edgelm_export.packed.microscaling import E2M1_DOUBLED, half_of_power

_FLOATS = tuple(np.dtype(name) for name in ("float16", ml_dtypes.bfloat16, "float32"))
_WORDS, _BYTES = (np.dtype(np.uint32),), (np.dtype(np.uint8),)


@dataclass(frozen=True, kw_only=True)
class _Mode:
    parts: Mapping[str, tuple[np.dtype[Any], ...]]  # the tensors of a module, and their types
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    defaults: Mapping[str, int]  # what mlx takes where a module's settings lack one


def _of_floats(bits: int, group_size: int) -> _Mode:
    return _Mode(
        parts={"weight": _WORDS, "scales": _BYTES},
        bits=(bits,),
        group_sizes=(group_size,),
        defaults={"bits": bits, "group_size": group_size},
    )


_AFFINE, _MXFP4, _NVFP4, _MXFP8 = "affine", "mxfp4", "nvfp4", "mxfp8"
_MODES = {
    _AFFINE: _Mode(
        parts={"weight": _WORDS, "scales": _FLOATS, "biases": _FLOATS},
        bits=(2, 3, 4, 5, 6, 8),
        group_sizes=(32, 64, 128),
        defaults={"bits": 4, "group_size": 64},
    ),
    _MXFP4: _of_floats(4, 32),
    _NVFP4: _of_floats(4, 16),
    _MXFP8: _of_floats(8, 32),
}


@dataclass(frozen=True, kw_only=True)
class MLXMatrix:
    """One packed module, or a stack of them for a layer's experts."""

    stem: str
    mode: str
    bits: int
    group_size: int
    shape: tuple[int, ...]  # [N, K] or [E, N, K]

    @property
    def type(self) -> str:
        """What the matrix is stored as, such as "MLX-4bit"."""
        return f"MLX-{self.bits}bit" if self.mode == _AFFINE else self.mode.upper()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return tuple(f"{self.stem}.{part}" for part in _MODES[self.mode].parts)

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix [N, K] in float32, of a stack that of one expert.

        Raises:
            CheckpointError: a part is of another type.
        """
        integers, *floats = self._read(read)
        # A damaged file has numbers that are none; whoever reads the matrix refuses it.
        with np.errstate(invalid="ignore", over="ignore"):
            if self.mode == _MXFP8:
                weight: NDArray[np.float32] = integers.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
                weight *= 2 * half_of_power(floats[0])[..., None]
                return weight.reshape(len(weight), -1)
            if self.mode != _AFFINE:
                blocks = _float4_blocks(self.mode, integers, *floats)
                return (blocks.values * blocks.scales[..., None]).reshape(len(integers), -1)
            scales, biases = (part.astype(np.float32)[..., None] for part in floats)
            weight = integers * scales
            weight += biases
        return weight.reshape(len(weight), -1)

    def blocks(self, read: Read) -> QuantizedBlocks | None:
        """Return the same in MatMulNBits' blocks; None where it is of floats in 8 bits."""
        if self.mode == _MXFP8:
            return None
        integers, *floats = self._read(read)
        if self.mode != _AFFINE:
            return _float4_blocks(self.mode, integers, *floats)
        return on_levels(integers, *(part.astype(np.float32) for part in floats), bits=self.bits)

    def _read(self, read: Read) -> list[NDArray[Any]]:
        """Return integers [N, G, group_size], and what stands beside them [N, G]."""
        parts = []
        for name, types in zip(self.parts, _MODES[self.mode].parts.values(), strict=True):
            parts.append(read(name))
            if parts[-1].dtype not in types:
                raise CheckpointError(
                    f"{name} is of type {parts[-1].dtype}; mlx has {' or '.join(map(str, types))} there. Download the "
                    "model again."
                )
        parts[0] = unpacked(parts[0], self.bits).reshape(len(parts[0]), -1, self.group_size)
        return parts


def _float4_blocks(mode: str, numbers: NDArray[np.uint8], scales: NDArray[np.uint8]) -> QuantizedBlocks:
    if mode == _MXFP4:
        halves = half_of_power(scales)
    else:
        with np.errstate(invalid="ignore"):
            halves = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32) / np.float32(2)
    return QuantizedBlocks(bits=8, block_size=numbers.shape[2], values=E2M1_DOUBLED[numbers], scales=halves)


def unpacked(words_NW: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """Take the integers [N, K] out of each row's stream of bits, in which every eighth begins with a byte."""
    stream = np.zeros((words_NW.nbytes // bits, 8), np.uint8)
    stream[:, :bits] = np.ascontiguousarray(words_NW).view(np.uint8).reshape(-1, bits)
    eights = stream.view("<u8")[:, 0]
    integers = np.empty_like(stream)
    for place in range(8):
        integers[:, place] = (eights >> np.uint64(place * bits)) & np.uint64((1 << bits) - 1)
    return integers.reshape(len(words_NW), -1)


def mlx_matrices(
    settings: Mapping[str, Any], present: Mapping[str, tuple[int, ...]], where: object
) -> dict[str, MLXMatrix]:
    """Find the packed matrices of a folder by its config.json's "quantization", under the names of plain ones.

    Raises:
        CheckpointError: the settings are none, or do not fit the tensors.
    """
    found = {}
    for name, shape in present.items():
        stem = name.removesuffix(".scales")
        if stem == name or f"{stem}.weight" not in present or len(shape) < 2:
            continue
        mode, bits, group_size = _settings_of(stem, settings, where)
        matrix = MLXMatrix(
            stem=stem, mode=mode, bits=bits, group_size=group_size, shape=(*shape[:-1], shape[-1] * group_size)
        )
        shapes = ((*shape[:-1], shape[-1] * group_size * bits // 32), shape, shape)
        for part, wanted in zip(matrix.parts, shapes, strict=False):
            if present.get(part) != wanted:
                raise CheckpointError(
                    f"{where}: {part} is {shown(present.get(part))}, not {list(wanted)}, as {name} {list(shape)} asks "
                    f"for with {bits} bits in groups of {group_size} (quantization in config.json)."
                )
        found[f"{stem}.weight"] = matrix
    return found


def _settings_of(stem: str, settings: Mapping[str, Any], where: object) -> tuple[str, int, int]:
    """Return mode, bits and group size of one module: its own settings, or those of all."""
    field, own = "quantization", settings.get(stem, True)
    if own is not True:
        field, settings = f"quantization[{stem!r}]", own
    if not isinstance(settings, Mapping):
        raise CheckpointError(
            f"{where}: config.json: {field} is {settings!r:.80}, and {stem} has scales; it must be an object with bits "
            "and group_size."
        )
    name = settings.get("mode", _AFFINE)
    mode = _MODES.get(name) if isinstance(name, str) else None
    if mode is None:
        raise CheckpointError(
            f"{where}: config.json: {field}.mode is {name!r:.80}; supported: {', '.join(_MODES)}. Take the model's "
            "unquantized folder, or a GGUF file."
        )
    supported = {"bits": mode.bits, "group_size": mode.group_sizes}
    found = {key: settings.get(key, mode.defaults[key]) for key in supported}
    for key, value in found.items():
        if type(value) is not int or value not in supported[key]:
            raise CheckpointError(
                f"{where}: config.json: {field}.{key} is {value!r:.80}; supported in mode {name}: "
                f"{', '.join(map(str, supported[key]))}. Take the model's unquantized folder, or a GGUF file."
            )
    return name, found["bits"], found["group_size"]
