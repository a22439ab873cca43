"""GGUFCheckpoint: a GGUF file as a checkpoint, with the names, layout and config of the model in transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError, ConfigError
from edgelm.manifest import sha256_of
from edgelm_export.architectures import gguf_architecture_of
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.checkpoint import QuantizedBlocks
from edgelm_export.checkpoint_folder import GENERATION_CONFIG
from edgelm_export.gguf import GGUFFile
from edgelm_export.gguf_tokenizer import tokenizer_files
from edgelm_export.gguf_types import dequantize, symmetric_blocks
from edgelm_export.tensor_map import map_tensors, pattern_of

_ROPE_FACTORS = "rope_freqs.weight"


class GGUFCheckpoint:
    """Read a GGUF file, mapped into memory.

    Use as a context manager, or `close` it; either drops the map.

    Raises:
        CheckpointError: the file is broken, the model has a feature that is not supported, or its tensors do not fit
            its metadata.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = GGUFFile.open(path)
        metadata = self._file.metadata
        self._architecture = gguf_architecture_of(metadata.get("general.architecture"), path)
        shapes = {name: tensor.shape for name, tensor in self._file.tensors.items()}
        factors = self._dequantized(_ROPE_FACTORS) if _ROPE_FACTORS in shapes else None
        header = GGUFHeader(metadata=metadata, shapes=shapes, rope_factors=factors)
        try:
            # Quantized weights become float32, and to 16-bit ones float32 is wide enough.
            self.hf_config: Mapping[str, Any] = {**self._architecture.gguf_to_hf_config(header), "dtype": "float32"}
            self.config = self._architecture.to_model_config(self.hf_config)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        self._names = map_tensors(
            self.config, self._architecture.gguf_tensor_names, shapes, self._architecture.gguf_ignored_tensors, path
        )

    @cached_property
    def text_files(self) -> Mapping[str, str]:
        """The tokenizer and its companions, rebuilt from the metadata.

        Raises:
            CheckpointError: the tokenizer cannot be rebuilt.
        """
        ids = {key: self.hf_config[key] for key in ("bos_token_id", "eos_token_id") if self.hf_config[key] is not None}
        return {**tokenizer_files(self._file.metadata), GENERATION_CONFIG: json.dumps(ids, indent=2) + "\n"}

    @cached_property
    def source(self) -> Mapping[str, Any]:
        """The file with its hash, and what it says of the model's name and licence."""
        path, metadata = self._path, self._file.metadata
        described: dict[str, Any] = {
            "format": "gguf",
            "files": [{"path": path.name, "size": path.stat().st_size, "sha256": sha256_of(path)}],
            "tensor_types": sorted({self.stored_type(name) for name in self._names}),
        }
        for key in ("name", "license"):
            if isinstance(metadata.get(f"general.{key}"), str):
                described[key] = metadata[f"general.{key}"]
        return described

    def stored_type(self, name: str) -> str:
        """Name the type a tensor has in the file, such as "F32" or "Q4_1"."""
        return self._file.tensors[self._names[name]].type

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, dequantized exactly to float32."""
        tensor = self._dequantized(self._names[name])
        return tensor[self._row_order(len(tensor))] if self._is_interleaved(name) else tensor

    def quantized_blocks(self, name: str) -> QuantizedBlocks | None:
        """Return a matrix on its own grid where that is symmetric (Q4_0, Q8_0), else None."""
        stored = self._file.tensors[self._names[name]]
        blocks = symmetric_blocks(self._file.data(stored.name), stored.type, stored.shape)
        if blocks is None or not self._is_interleaved(name):
            return blocks
        # Whole rows move, and a row's blocks with it, so every weight stays on its grid.
        order = self._row_order(len(blocks.values))
        return QuantizedBlocks(
            bits=blocks.bits,
            block_size=blocks.block_size,
            values=blocks.values[order],
            scales=blocks.scales[order],
        )

    def close(self) -> None:
        """Drop the map; tensors that were read stay valid."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _dequantized(self, gguf_name: str) -> NDArray[np.float32]:
        stored = self._file.tensors[gguf_name]
        return dequantize(self._file.data(gguf_name), stored.type, stored.shape)

    def _is_interleaved(self, name: str) -> bool:
        return pattern_of(name)[0].rpartition(".")[0] in self._architecture.gguf_interleaved

    def _row_order(self, rows: int) -> NDArray[np.int64]:
        """Order the rows of each head as ours: the first halves of all rotated pairs, then the second ones.

        llama.cpp rotates neighbours, so its converter puts row i + H/2 of a head behind row i.
        """
        half = self.config.head_dim // 2
        order: NDArray[np.int64] = np.arange(rows).reshape(-1, half, 2).swapaxes(1, 2).reshape(-1)
        return order
