"""PackageCheckpoint: the weights of a model package, read back as those of a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edgelm.architecture.planes import LOWER_BITS, PLANES, UPPER_BITS, from_planes
from edgelm.architecture.quantization_recipe import STANDARD
from edgelm.architecture.quantization_scheme import SHORTLIST, grid_name
from edgelm.config import SECTION, ModelConfig
from edgelm.errors import CheckpointError
from edgelm.package.graph_file import GRAPH_FILE, read_graph
from edgelm.package.manifest import Manifest
from edgelm.package.signature import check_required_signature
from edgelm.runtime.adapter_graph import FUSED_PROJECTIONS
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, QuantizedBlocks
from edgelm_export.checkpoints.folded import UnfoldedCheckpoint
from edgelm_export.checkpoints.tensor_map import (
    GATHERED,
    HEAD_FACTORS,
    PER_LAYER_EMBEDDING,
    REMAINDER,
    check_layers,
    head_name,
)
from edgelm_export.quantize.keep import as_blocks
from edgelm_export.quantize.offsets import taken_apart
from edgelm_export.quantize.packed import PackedWeight, rows_of, unpack
from edgelm_export.quantize.qdq import BITS, from_qdq
from edgelm_export.sources.checkpoint_folder import notes_on_template, read_json_object, read_text_files

PACKAGE_FORMAT = "package"  # of `source`
# Matrices that are looked up by rows, and so stand in the graph as they are.
_GATHERED = (*GATHERED, "model.embed_positions.weight")
_OLDER_PLANES = ("high", "low")
# The experts of a layer are one tensor a product, [E, ...], with gates and ups in turn (layers/experts.py).
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<part>gate|up|down)_proj\.(?P<kind>weight|bias)")
_STACKS = {
    "gate": ("gate_up_proj", slice(0, None, 2)),
    "up": ("gate_up_proj", slice(1, None, 2)),
    "down": ("down_proj", slice(None)),
}
# Of each operator by packed weights, the attribute that has their bits, and their places among its inputs.
_WEIGHT_INPUTS = {
    "MatMulNBits": ("bits", (1,)), "GatherBlockQuantized": ("bits", (0,)), "QMoE": ("expert_weight_bits", (2, 5)),
}  # fmt: skip
Place = slice | tuple[int, slice]
_FLOAT_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class PackageCheckpoint(UnfoldedCheckpoint):
    """Read a package that edgelm exported, as what it was exported from.

    Of fp32 packages the tensors come back as they were. Others come back as the package has them, on its grid:
    quantizing those again loses more than quantizing their source.

    Raises:
        PackageError: a file is not what the manifest says, or the package is not signed as required.
        CheckpointError: the graph does not hold the weights under edgelm's names.
    """

    def __init__(self, folder: Path) -> None:
        stored = _StoredTensors(folder)
        super().__init__(stored)
        self._config = stored.model
        self.fewest_bits = stored.fewest_bits  # of the matrices on a grid; None: all are floats
        self.grid = stored.grid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: no file stays open. It is here so that every checkpoint closes alike."""


class _StoredTensors:
    """The tensors as the graph has them: with factors inside (folded.py), but apart and by their canonical names."""

    head_hessian = None  # no text was run

    def __init__(self, folder: Path) -> None:
        check_required_signature(folder)
        self.path = folder
        self._manifest = Manifest.load(folder)
        self._manifest.check_files(folder)
        # An expert's own factor is in its weights.
        self.model = dataclasses.replace(ModelConfig.load(folder), kv_cache="fp32", expert_scales=False)
        self.config = dataclasses.replace(self.model, attention_k_eq_v=False)  # as a graph has them (folded.py)
        is_a_model_with = {
            "an encoder": self.config.encoder is not None,
            "relative positions": self.config.position == "relative",
        }
        for what, is_so in is_a_model_with.items():
            if is_so:
                raise CheckpointError(
                    f"{folder} is a model with {what}, whose weights are not read back from a package. Take its source."
                )
        content, _ = read_graph(folder / GRAPH_FILE, self._manifest.entry(GRAPH_FILE))
        with self._laid_out("a graph"):  # whose parts that the walk passes over may be no protobuf
            graph = onnx.load_model_from_string(content).graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        check_layers(self.config, len(self._initializers), folder)
        self._shapes = self.config.tensor_shapes()
        self._is_qdq = {"operators": STANDARD} in self._manifest.recipe
        with self._laid_out("matrices"):
            self._grids = self._qdq_grids() if self._is_qdq else self._nbits_grids(graph)
        self.fewest_bits = min((self._bits(stored) for stored in self._grids), default=None)
        for name in self._shapes:  # what is missing shows now, not after the work
            self._place(name)

    @contextlib.contextmanager
    def _laid_out(self, what: str) -> Iterator[None]:
        """Name what lies otherwise than the exporter writes it, whatever numpy says of that."""
        try:
            yield
        except (ArithmeticError, DecodeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} has {what} laid out as this edgelm does not write it ({error}). Export its "
                "source instead."
            ) from error

    @cached_property
    def hf_config(self) -> Mapping[str, Any]:
        """The config.json that transformers reads."""
        values = read_json_object(self.path, "config.json")
        values.pop(SECTION, None)
        return values

    @cached_property
    def text_files(self) -> Mapping[str, str]:
        """The tokenizer and its companions."""
        return read_text_files(self.path)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which chat templates are not used, where none is."""
        return notes_on_template(self.path, self.text_files)

    @cached_property
    def source(self) -> Mapping[str, Any]:
        """The package's weight files with their hashes, and what the package itself was exported from."""
        package = self._manifest
        weights = [entry for entry in package.files if entry.path.startswith(GRAPH_FILE)]
        described: dict[str, Any] = {
            "format": PACKAGE_FORMAT,
            "files": [dataclasses.asdict(entry) for entry in weights],
            "package": package.name,
            "precision": package.precision,
            "exported_from": dict(package.source),
        }
        if transforms := package.recipe_values("transform"):  # the weights that are read have them inside
            described["transforms"] = transforms
        if package.license is not None:
            described["license"] = package.license
        return described

    @property
    def head_divisors(self) -> NDArray[np.float32] | None:
        """By what the graph divides what its head reads."""
        if HEAD_FACTORS not in self._initializers:
            return None
        with self._laid_out(HEAD_FACTORS), np.errstate(divide="raise", over="raise", invalid="raise"):
            return np.float32(1) / self._head_factors()

    def stored_type(self, name: str) -> str:
        """Name the type that the graph has a tensor in."""
        stored, _ = self._place(name)
        if stored in self._grids:
            return f"INT{self._bits(stored)}"
        with self._laid_out(name):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self._initializers[stored].data_type)
        return _FLOAT_TYPES.get(str(dtype), str(dtype))

    def grid(self, name: str) -> str | None:
        """Name the grid that a matrix is on, as recipes name it; None: it is of floats."""
        stored, _ = self._place(name)
        if stored not in self._grids:
            return None
        bits, block_size = self._bits(stored), self._grids[stored][1]
        if self._has_remainder(stored):
            return f"{grid_name(bits, block_size, symmetric=True)}-{SHORTLIST}"
        named = grid_name(bits, block_size, symmetric=f"{stored}.zero_points" not in self._initializers)
        return named if self._packed(name).offsets is None else f"{named} with offsets"

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, widened or dequantized to float32."""
        stored, _ = self._place(name)
        if stored in self._grids:
            packed = self._packed(name)
            # Scales that float32 just holds make weights that it does not.
            with self._laid_out(name), np.errstate(over="raise", invalid="raise"):
                weight = unpack(packed)
                is_divided = name == head_name(self.config) and HEAD_FACTORS in self._initializers
                return weight * self._head_factors() if is_divided else weight
        return np.ascontiguousarray(self._floats(name), np.float32)

    def rows(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Read some rows of a matrix, widened or dequantized to float32."""
        stored, _ = self._place(name)
        if stored not in self._grids:
            return np.ascontiguousarray(self._floats(name)[first:end], np.float32)
        if name != PER_LAYER_EMBEDDING:
            return self.tensor(name)[first:end]
        with self._laid_out(name), np.errstate(over="raise", invalid="raise"):
            return unpack(self._packed(name, slice(first, end)))

    def _floats(self, name: str) -> NDArray[Any]:
        """Map a tensor that is on no grid into memory, as it is stored."""
        stored, rows = self._place(name)
        with self._laid_out(name):
            array = self._array(stored)
            is_matrix = array.ndim == 2 and name.endswith(".weight")
            if is_matrix and isinstance(rows, slice) and name not in _GATHERED:
                array = array.T
            found: NDArray[Any] = array[rows]
        if found.shape != self._shapes[name]:
            raise CheckpointError(
                f"{self.path} has {name} in the shape {found.shape}; by its config.json it is {self._shapes[name]}."
            )
        return found

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return a matrix, or some of its rows, on its grid, where it is on one; two planes together are none."""
        stored, _ = self._place(name)
        if stored not in self._grids or self._has_remainder(stored):
            return None
        return as_blocks(self._packed(name, rows))

    def _head_factors(self) -> NDArray[np.float32]:
        factors = self._array(HEAD_FACTORS)
        if factors.shape != (self.config.hidden_size,) or factors.dtype != np.float32:
            raise ValueError(f"{HEAD_FACTORS} are {factors.dtype} {list(factors.shape)}")
        return factors

    def _packed(self, name: str, rows: slice = ALL_ROWS) -> PackedWeight:
        stored, place = self._place(name)
        with self._laid_out(name):
            N, K = self._shapes[name]
            if place == ALL_ROWS:
                weight = self._stored_weight(name, stored, rows)
            else:
                weight = rows_of(self._stored_weight(name, stored, place), rows)
            weight.check((len(range(N)[rows]), K))
        return weight

    def _bits(self, stored: str) -> int:
        """Return the bits of a weight on a grid, of both its planes where it has two."""
        bits, _ = self._grids[stored]
        has_two = any(self._has_remainder(name) for name in (stored, stored.replace(f".{REMAINDER}.", ".")))
        return 2 * bits if has_two else bits

    def _has_remainder(self, stored: str) -> bool:
        return _remainder_of(stored) in self._grids

    def _stored_weight(self, name: str, stored: str, rows: Place) -> PackedWeight:
        bits, block_size = self._grids[stored]
        has_zero_points = f"{stored}.zero_points" in self._initializers
        if self._is_qdq and isinstance(rows, slice):  # rows of the weight are columns there
            parts = (stored, f"{stored}.scales", *([f"{stored}.zero_points"] if has_zero_points else []))
            values, scales, *zeros = (self._array(part)[:, rows] for part in parts)
            return from_qdq(values, scales, zeros[0] if zeros else None)
        if bits in LOWER_BITS:
            high, low = (self._array(f"{stored}.{plane}")[rows] for plane in PLANES)
            packed = from_planes(high, low, bits)
        else:
            packed = self._array(stored)[rows]
        columns = self._shapes[name][1]
        blocks = -(-columns // block_size)
        if isinstance(rows, tuple):  # the blocks of a row stand behind each other there
            packed = packed.reshape(len(packed), blocks, -1)
        weight = PackedWeight(
            bits=bits,
            block_size=block_size,
            columns=columns if packed.shape[1] == blocks else columns + blocks,
            packed=packed,
            scales=self._array(f"{stored}.scales")[rows].astype(np.float32),
            zero_points=self._array(f"{stored}.zero_points")[rows] if has_zero_points else None,
        )
        if self._has_remainder(stored):
            return dataclasses.replace(weight, remainder=self._stored_weight(name, _remainder_of(stored), rows))
        return taken_apart(weight, columns)

    def _nbits_grids(self, graph: onnx.GraphProto) -> dict[str, tuple[int, int]]:
        """Return the weights that are on a grid, each with its bits and block size, as the operators read them.

        Those of 5 and 6 bits are made of planes when the graph is loaded.
        """
        found: dict[str, tuple[int, int]] = {}
        for node in graph.node:
            if node.op_type in _WEIGHT_INPUTS:
                bits, places = _WEIGHT_INPUTS[node.op_type]
                numbers = {attribute.name: attribute.i for attribute in node.attribute}
                found |= {node.input[place]: (numbers[bits], numbers["block_size"]) for place in places}
        for stored, (_, block_size) in found.items():
            if any(f"{stored}.{plane}" in self._initializers for plane in _OLDER_PLANES):
                raise CheckpointError(
                    f"{self.path} has {stored} in the planes of an older edgelm, whose zero points count otherwise. "
                    "The package runs as it did; to read its weights, export its source once more with this edgelm."
                )
            low = self._initializers.get(f"{stored}.{PLANES[1]}")
            if low is not None:
                found[stored] = (UPPER_BITS + 8 * low.dims[-1] // block_size, block_size)
        return found

    def _qdq_grids(self) -> dict[str, tuple[int, int]]:
        """Return the bits and block sizes of the initializers that have scales beside them."""
        scales = {name: self._initializers.get(f"{name}.scales") for name in self._initializers}
        return {name: (BITS, self._initializers[name].dims[0] // each.dims[0]) for name, each in scales.items() if each}

    def _place(self, name: str) -> tuple[str, Place]:
        """Find a tensor in the graph: the initializer's name, and which of its rows, or of an expert's among others."""
        if name in self._initializers or name in self._grids:
            return name, slice(None)
        module, _, kind = name.rpartition(".")
        parent = module.rpartition(".")[0]
        for fused, parts in FUSED_PROJECTIONS.items():
            stored = f"{parent}.{fused}.{kind}"
            names = [f"{parent}.{part}.{kind}" for part in parts]
            # By its config a package may have but one of the parts.
            is_whole = all(one in self._shapes for one in names)
            if name in names and is_whole and (stored in self._initializers or stored in self._grids):
                counts = [self._shapes[one][0] for one in names]
                first = sum(counts[: names.index(name)])
                return stored, slice(first, first + counts[names.index(name)])
        if expert := _EXPERT.fullmatch(name):
            part, alternating = _STACKS[expert["part"]]
            stored = f"{expert['experts']}.{part}.{expert['kind']}"
            if stored in self._initializers:
                return stored, (int(expert["number"]), alternating)
        raise CheckpointError(
            f"The graph of {self.path} has no weight {name}: it was not written by this edgelm's exporter. Export "
            "its source instead."
        )

    def _array(self, stored: str) -> NDArray[Any]:
        """Map an initializer into memory; the manifest's check has found the files whole."""
        tensor = self._initializers[stored]
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
        place = {entry.key: entry.value for entry in tensor.external_data}
        array: NDArray[Any] = np.memmap(
            self.path / place["location"],
            dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type),
            mode="r",
            offset=int(place.get("offset", 0)),
            shape=tuple(tensor.dims),
        )
        return array


def _remainder_of(stored: str) -> str:
    """Name the lower plane of a weight."""
    return f"{stored.removesuffix('.weight')}.{REMAINDER}.weight"
