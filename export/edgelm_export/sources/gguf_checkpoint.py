"""GGUFCheckpoint: a GGUF model as a checkpoint, with the names, layout and config of the model in transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.hf_config import hf_config
from edgelm.errors import CheckpointError, ConfigError
from edgelm.library.sources import fetched_facts
from edgelm.package.manifest import describe_file
from edgelm.package.spdx import stated_license
from edgelm_export.architectures import ARCHITECTURES, gguf_architecture_of
from edgelm_export.architectures.architecture import ROPE_FACTORS, GGUFHeader
from edgelm_export.architectures.gguf_header import layout_of, under_own_name, without_guessing_layers
from edgelm_export.architectures.gguf_values import sampling_values
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, QuantizedBlocks
from edgelm_export.checkpoints.tensor_map import Part, map_tensors
from edgelm_export.gguf.model import GGUFModel
from edgelm_export.gguf.tokenizer import tokenizer_files
from edgelm_export.packed.gguf_types import dequantize, integer_blocks
from edgelm_export.sources.answer_settings import notes_on_answers
from edgelm_export.sources.checkpoint_folder import CHAT_TEMPLATE, GENERATION_CONFIG, notes_on_names, read_json_object
from edgelm_export.tokenizers.tokenizer_json import json_text

_TOKEN_IDS = ("bos_token_id", "eos_token_id")


class GGUFCheckpoint:
    """Read a GGUF file, mapped into memory, with the other parts of its model where it is one of several.

    Use as a context manager, or `close` it; either drops the maps.

    Raises:
        CheckpointError: a file is broken, the model has a feature that is not supported, or its tensors do not fit
            its metadata.
    """

    head_divisors = head_hessian = None  # nothing is divided, and no text was run

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = GGUFModel.open(path)
        metadata = self._model.metadata
        architecture, family = gguf_architecture_of(metadata, path, self._model.tensors)
        shapes = {name: tensor.shape for name, tensor in self._model.tensors.items()}
        self._factors = self._take_factors(shapes)
        factors = {name: self._dequantized(name) for name in ROPE_FACTORS if name in shapes}
        header = GGUFHeader(metadata=under_own_name(metadata, family.architecture), shapes=shapes, rope_factors=factors)
        try:
            header = without_guessing_layers(header)
            self._computed = family.computed(header)
            values = {"model_type": architecture.model_type, **family.to_hf_config(header)}  # it may name a sibling's
            self.config = ARCHITECTURES[values["model_type"]].to_model_config(values)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        # Quantized weights become float32, and to 16-bit ones float32 is wide enough.
        self._token_ids = {key: values[key] for key in _TOKEN_IDS if values[key] is not None}
        self.hf_config: Mapping[str, Any] = {
            **hf_config(self.config),
            "pad_token_id": values["pad_token_id"],
            "dtype": "float32",
        }
        shapes = {**header.shapes, **{name: array.shape for name, array in self._computed.items()}}
        self._parts = map_tensors(self.config, layout_of(family, header), shapes, path)

    @cached_property
    def text_files(self) -> Mapping[str, str]:
        """The tokenizer and its companions, rebuilt from the metadata.

        Raises:
            CheckpointError: the tokenizer cannot be rebuilt.
        """
        generation_config = json_text({**self._sampling(), **self._token_ids})
        return {**tokenizer_files(self._model.metadata), GENERATION_CONFIG: generation_config}

    @property
    def notes(self) -> tuple[str, ...]:
        """Which chat templates are not used, where none is; and which settings of answers are not taken."""
        way_out = f"Import it (edgelm import), and put the one you mean into {CHAT_TEMPLATE} of that folder."
        answers = notes_on_answers(self._sampling(), encodes=self.config.encoder is not None)
        return (*notes_on_names(self.text_files, way_out), *answers)

    def _sampling(self) -> dict[str, Any]:
        """Read how the author samples: from the file of that name beside it, which older files leave it to."""
        folder = self.path.parent
        if (folder / GENERATION_CONFIG).is_file():
            return read_json_object(folder, GENERATION_CONFIG)
        return sampling_values(self._model.metadata)

    @cached_property
    def source(self) -> Mapping[str, Any]:
        """The files with their hashes, where they came from, and what they say of the model's name and licence."""
        metadata = self._model.metadata
        described: dict[str, Any] = {
            "format": "gguf",
            "files": [dataclasses.asdict(describe_file(path)) for path in self._model.paths],
            "tensor_types": sorted({self.stored_type(name) for name in self._parts}),
            **fetched_facts(self.path.parent),
        }
        if isinstance(metadata.get("general.name"), str):
            described["name"] = metadata["general.name"]
        license_ = stated_license(metadata.get("general.license"), metadata.get("general.license.name"))
        if license_ is not None:
            described["license"] = license_
        return described

    def stored_type(self, name: str) -> str:
        """Name the type a tensor has in the file, such as "F32" or "Q4_1"."""
        source = self._parts[name].source
        return "F32" if source in self._computed else self._model.tensors[source].type

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, dequantized exactly to float32."""
        part = self._parts[name]
        if part.source in self._computed:
            return part.taken_from(self._computed[part.source])
        data, type_, shape = self._stored(part)
        return part.taken_from(self._times(part, dequantize(data, type_, shape)))

    def rows(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Read some rows of a matrix, dequantized exactly to float32."""
        part = self._parts[name]
        if not part.is_whole:
            return self.tensor(name)[first:end]
        return self._times(part, dequantize(*self._stored_rows(part, slice(first, end))))

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return a matrix on its own grid where that is one that `integer_blocks` knows, else None."""
        part = self._parts[name]
        if part.source in self._computed or part.transposed:
            return None
        if part.is_whole:
            blocks = integer_blocks(*self._stored_rows(part, rows))
            return None if blocks is None else blocks.times(self._factor(part))
        blocks = integer_blocks(*self._stored(part))
        if blocks is not None and part.columns is not None and not isinstance(part.columns, slice):
            blocks = blocks.columns(part.columns)
        if blocks is None:
            return None
        return blocks.times(self._factor(part)).rows(ALL_ROWS if part.rows is None else part.rows).rows(rows)

    def close(self) -> None:
        """Drop the maps; tensors that were read stay valid."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_factors(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
        """Take out of the shapes what stands beside matrices in NVFP4, and return what each is multiplied by.

        That is one number (`.scale`), or one of each expert; what activations are rounded to (`.input_scale`) is passed
        over.
        """
        found = {}
        for name, tensor in self._model.tensors.items():
            stem = name.removesuffix(".weight")
            if tensor.type != "NVFP4" or stem == name:
                continue
            shapes.pop(f"{stem}.input_scale", None)
            shape = shapes.pop(f"{stem}.scale", None)
            if shape is not None:
                if shape != (tensor.shape[0] if len(tensor.shape) == 3 else 1,):
                    raise CheckpointError(
                        f"{self.path}: {stem}.scale is {list(shape)} for {list(tensor.shape)} weights."
                    )
                found[name] = self._dequantized(f"{stem}.scale")
        return found

    def _factor(self, part: Part) -> np.float32:
        factors = self._factors.get(part.source)
        return np.float32(1) if factors is None else np.float32(factors[part.index or 0])

    def _times(self, part: Part, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        if part.source in self._factors:
            with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
                weight *= self._factor(part)
        return weight

    def _stored(self, part: Part) -> tuple[NDArray[np.uint8], str, tuple[int, ...]]:
        """Return the bytes, the type and the shape of what a part is in: a tensor, or one entry of a stack."""
        stored = self._model.tensors[part.source]
        data = self._model.data(stored.name)
        if part.index is None:
            return data, stored.type, stored.shape
        return data.reshape(stored.shape[0], -1)[part.index], stored.type, stored.shape[1:]

    def _stored_rows(self, part: Part, rows: slice) -> tuple[NDArray[np.uint8], str, tuple[int, ...]]:
        data, type_, shape = self._stored(part)
        found = data.reshape(shape[0], -1)[rows]
        return found.reshape(-1), type_, (len(found), *shape[1:])

    def _dequantized(self, gguf_name: str) -> NDArray[np.float32]:
        stored = self._model.tensors[gguf_name]
        return dequantize(self._model.data(gguf_name), stored.type, stored.shape)
