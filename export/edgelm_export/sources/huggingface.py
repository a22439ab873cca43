"""HuggingFaceCheckpoint: a folder with config.json and safetensors, from the hub or written by edgelm."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edgelm.architecture.config_section import config_of_section
from edgelm.architecture.hf_config import hf_config
from edgelm.config import SECTION, ModelConfig
from edgelm.counted import counted
from edgelm.errors import CheckpointError, ConfigError
from edgelm.files.safetensors_bytes import tensor_bytes
from edgelm.files.safetensors_header import check_header
from edgelm.files.safetensors_index import INDEX_FILE, WEIGHTS_FILE, missing_files, read_weight_map
from edgelm.library.sources import fetched_facts
from edgelm.package.manifest import describe_file
from edgelm.runtime.cpu import usable_cores
from edgelm_export.architectures import architecture_of
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.hf_values import token_ids
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, FLOATS, QuantizedBlocks, Read
from edgelm_export.checkpoints.safetensors_writer import SOURCE_KEY
from edgelm_export.checkpoints.tensor_map import CANONICAL, EMBEDDING, HEAD, Part, map_tensors
from edgelm_export.checkpoints.text_part import text_part
from edgelm_export.packed.bitnet_format import TernaryMatrix
from edgelm_export.packed.float8_format import FLOAT8
from edgelm_export.packed.mlx_format import MLXMatrix
from edgelm_export.packed.mxfp4 import MXFP4Stack
from edgelm_export.packed.packed_formats import Packed, packed_matrices, without_parts
from edgelm_export.sources.answer_settings import notes_on_answers
from edgelm_export.sources.assembled import assembled_names, with_assembled
from edgelm_export.sources.checkpoint_folder import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    check_file_name,
    file_inside,
    notes_on_template,
    processor_template,
    read_json_object,
    read_text_files,
    tokenizer_ends,
)

MODELOPT_FILE = "hf_quant_config.json"

_TYPES: Mapping[str, Any] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, FLOAT8: ml_dtypes.float8_e4m3fn,
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip
_ANSWER_KEYS = ("decoder_start_token_id", "forced_bos_token_id", "bad_words_ids")
# Rows are widened in portions, those of large tensors in all cores: few enough values for the allocator to use their
# memory again, where each larger array would be new memory, which the system fills with zeros first.
_PORTION_VALUES = 1 << 18
_PORTIONS_ALONE = 16  # so many are widened sooner than threads start: 78,000 experts have five each


class _StoredTensor(NamedTuple):  # a dataclass takes three times as long to make, and a folder may have 78,000
    file: Path
    name: str  # in the file
    dtype: str
    shape: tuple[int, ...]

    def rows(self, which: slice) -> NDArray[Any]:
        """Read some rows, or all of what has none, as they are stored."""
        if self.dtype not in _TYPES:
            raise CheckpointError(f"{self.file} cannot be read: numpy has no type for {self.name}, {self.dtype}.")
        dtype, (count, *row) = np.dtype(_TYPES[self.dtype]), self.shape or (1,)
        size = dtype.itemsize * math.prod(row)
        start, stop, _ = which.indices(count)
        content = tensor_bytes(self.file, self.name, start * size, stop * size)
        values: NDArray[Any] = content.view(dtype).reshape((stop - start, *row) if self.shape else ())
        return values


class HuggingFaceCheckpoint:
    """Read a folder with config.json and safetensors, in one file or several.

    No file stays open or mapped, whose pages would count as memory of the process.

    Raises:
        CheckpointError: a file is missing or broken, the model has a feature that is not supported, or its tensors do
            not fit its config.
    """

    head_divisors = head_hessian = None  # nothing is divided, and no text was run

    def __init__(self, folder: Path) -> None:
        self.path = folder
        values = read_json_object(folder, "config.json")
        section = values.get(SECTION)
        if section is not None and not isinstance(section, dict):
            raise CheckpointError(f"{folder / 'config.json'}: {SECTION!r} is {section!r}; it must be an object.")
        self._stored, self._metadata = _stored_tensors(folder)
        quantization = _quantization(folder, values)
        self._text_part = text_part(values, self._stored) if section is None else None
        if self._text_part is not None:
            values = dict(self._text_part.values)
            self._stored = {name: self._stored[source] for name, source in self._text_part.sources.items()}
            quantization = None if quantization is None else self._text_part.renamed(quantization)
        self._last: tuple[tuple[str, int | None], NDArray[np.float32]] | None = None
        shapes = {name: tensor.shape for name, tensor in self._stored.items()}
        self._packed: Mapping[str, Packed] = {}
        if quantization is not None:
            self._packed = packed_matrices(quantization, shapes, self._read_whole, folder)
        shapes = without_parts(shapes, self._packed)
        try:
            layout, is_known = CANONICAL, self._text_part is None
            if section is not None:
                self.config = config_of_section(values, folder)
            else:
                architecture = architecture_of(values, folder)
                config = self._config_of(architecture, values)
                # transformers 5 says of each T5 that its head is tied, and writes the heads that are not.
                is_tied = values.get("tie_word_embeddings") is True and HEAD not in shapes
                self.config = dataclasses.replace(config, tie_word_embeddings=config.tie_word_embeddings or is_tied)
                layout = architecture.layout_for(self.config, shapes)
                is_known = is_known and architecture.is_in_transformers
            self._assembled = assembled_names(
                layout, {name: shape for name, shape in shapes.items() if name in self._stored}
            )
            shapes = with_assembled(shapes, self._assembled)
            self._stored |= {name: self._whole(name, shapes[name]) for name in self._assembled}
            self._parts = map_tensors(self.config, layout, shapes, folder)
        except ConfigError as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
        values.pop(SECTION, None)
        # What is written under our names is another family's in transformers, or none.
        self.hf_config: Mapping[str, Any] = values if layout.is_canonical and is_known else hf_config(self.config)
        self._refuse_other_types()
        self._refuse_untied_head(layout.source_name(HEAD))
        self._refuse_other_embeddings(layout.copies)

    def _config_of(self, architecture: Architecture, values: Mapping[str, Any]) -> ModelConfig:
        """Read config.json's values, and what generation_config.json says of how an answer begins and ends.

        transformers reads the beginning there too. A chat model often has the end of a turn there alone, or only as its
        tokenizer's end token, at which llama.cpp, vLLM and mlx-lm end, too.
        """
        path = self.path / GENERATION_CONFIG
        answer = read_json_object(self.path, path.name) if path.exists() else {}
        beginning = {key: answer[key] for key in _ANSWER_KEYS if answer.get(key) is not None}
        try:
            config = architecture.to_model_config({**values, **beginning})
        except CheckpointError as error:  # whose message begins with the file's name, without its folder
            raise CheckpointError(f"{self.path}{os.sep}{error}") from error
        more = token_ids(answer, "eos_token_id", str(path))
        more += tuple(id_ for id_ in tokenizer_ends(self.path) if id_ < config.vocab_size)
        return dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + more)))

    @cached_property
    def text_files(self) -> Mapping[str, str]:
        """The tokenizer and its companions.

        Raises:
            CheckpointError: tokenizer.json is missing, or one of them cannot be read.
        """
        files = read_text_files(self.path)
        template = None if self._text_part is None else processor_template(self.path)
        return files if template is None else {CHAT_TEMPLATE: template, **files}

    @property
    def notes(self) -> tuple[str, ...]:
        """Which chat templates are not used, where none is; which settings of answers are not taken; and whether parts
        beside the text's were left out.
        """
        answers = json.loads(self.text_files.get(GENERATION_CONFIG, "{}"))
        notes = notes_on_template(self.path, self.text_files)
        notes += notes_on_answers(answers, encodes=self.config.encoder is not None)
        if self._text_part is None or not self._text_part.left_out:
            return notes
        left_out = self._text_part.left_out
        return (
            f"What reads images or sound, or guesses further tokens, was left out: {counted(left_out, 'tensor')}.",
            *notes,
        )

    @cached_property
    def source(self) -> Mapping[str, Any]:
        """The weight files with their hashes, where they were fetched or imported from, and how they are quantized."""
        files = sorted({tensor.file for tensor in self._stored.values()})
        described: dict[str, Any] = {
            "format": "safetensors",
            "files": [dataclasses.asdict(describe_file(path)) for path in files],
            **fetched_facts(self.path),
        }
        if self._packed:
            described["tensor_types"] = sorted({self.stored_type(name) for name in self._parts})
        try:
            imported_from = json.loads(self._metadata.get(SOURCE_KEY, "null"))
        except (ValueError, RecursionError):
            imported_from = None
        if isinstance(imported_from, dict):
            described["imported_from"] = imported_from
            if isinstance(imported_from.get("license"), str):
                described["license"] = imported_from["license"]
        return described

    def stored_type(self, name: str) -> str:
        """Name the type a tensor has on disk: F32, F16, BF16, or a packed one such as GPTQ-4bit."""
        source = self._parts[name].source
        return self._packed[source].type if source in self._packed else self._stored[source].dtype

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, widened exactly to float32."""
        part = self._parts[name]
        if self._last is not None and self._last[0] != (part.source, part.index):
            self._last = None  # it would be memory beside the next one
        if part.source in self._packed:
            return self._read(part.source) if part.is_whole else part.taken_from(self._unpacked(part)).copy()
        if part.index is not None:
            return part.taken_from(self._read_entry(part.source, part.index).astype(np.float32))
        if isinstance(part.rows, slice) and not part.transposed:
            return dataclasses.replace(part, rows=None).taken_from(self._read(part.source, part.rows))
        if isinstance(part.columns, slice) and part.transposed and part.rows is None:
            return dataclasses.replace(part, columns=None).taken_from(self._read(part.source, part.columns))
        return part.taken_from(self._read(part.source))

    def rows(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Read some rows of a matrix, widened exactly to float32."""
        part, before = self._parts[name], 0
        if isinstance(part.rows, slice):
            before = part.rows.start or 0
            part = dataclasses.replace(part, rows=None)
        if not part.is_whole:
            return self.tensor(name)[first:end]
        return self._read(part.source, slice(before + first, before + end))

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return a packed matrix, or some of its rows, on its own grid, where its groups are MatMulNBits' blocks."""
        part = self._parts[name]
        packed = self._packed.get(part.source)
        if part.is_whole and isinstance(packed, MLXMatrix):
            return packed.blocks(functools.partial(self._read_rows, which=rows))
        # What is packed as MXFP4 lies the other way round than the tensor in whose place it is.
        if packed is None or part.transposed != isinstance(packed, MXFP4Stack):
            return None
        blocks = packed.blocks(self._reader(part))
        return None if blocks is None else blocks.rows(ALL_ROWS if part.rows is None else part.rows).rows(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: no file stays open. It is here so that every checkpoint closes alike."""

    def _read(self, source: str, which: slice | None = None) -> NDArray[np.float32]:
        """Read a tensor of the folder, or a range of its rows."""
        if which is not None and not self._has_rows_apart(source):
            return self._read(source)[which]
        if source in self._packed:
            read = self._read_whole if which is None else functools.partial(self._read_rows, which=which)
            return self._packed[source].weight(read)
        if source in self._assembled:
            return np.concatenate([self._read(part) for part in self._assembled[source]])
        stored = self._stored[source]
        if not stored.shape:  # one number, where a vector of one may be (TensorLayout.ones_elsewhere)
            return self._read_whole(source).astype(np.float32)
        first, end = (which.start, which.stop) if which is not None else (0, stored.shape[0])
        tensor = np.empty((end - first, *stored.shape[1:]), np.float32)
        rows = max(1, _PORTION_VALUES // max(1, math.prod(stored.shape[1:])))

        def widen(start: int) -> None:
            portion = slice(start, min(start + rows, end))
            tensor[start - first : portion.stop - first] = self._read_rows(source, portion)

        starts = range(first, end, rows)
        if len(starts) <= _PORTIONS_ALONE:
            for start in starts:
                widen(start)
            return tensor
        with ThreadPoolExecutor(usable_cores()) as threads:  # numpy reads and widens without the interpreter
            for _ in threads.map(widen, starts):  # raises what a thread raised
                pass
        return tensor

    def _unpacked(self, part: Part) -> NDArray[np.float32]:
        """Return a packed matrix that others are parts of; the last one stays, since they are read one by one."""
        if self._last is None:
            self._last = (part.source, part.index), self._packed[part.source].weight(self._reader(part))
        return self._last[1]

    def _has_rows_apart(self, source: str) -> bool:
        """Tell whether rows of a tensor are read without the others: what mlx packs has them in all of its parts."""
        return source not in self._assembled and isinstance(self._packed.get(source), MLXMatrix | None)

    def _reader(self, part: Part) -> Read:
        """Return what reads the tensors of a packed matrix, or of a stack those of one expert."""
        return self._read_whole if part.index is None else functools.partial(self._read_entry, index=part.index)

    def _read_entry(self, source: str, index: int) -> NDArray[Any]:
        """Read one entry of a stack of experts, as it is stored."""
        entry: NDArray[Any] = self._read_rows(source, slice(index, index + 1))[0]
        return entry

    def _read_rows(self, source: str, which: slice) -> NDArray[Any]:
        """Read some rows of a tensor, as they are stored."""
        return self._stored[source].rows(which)

    def _read_whole(self, source: str) -> NDArray[Any]:
        """Read a tensor as it is stored; a KeyError says that there is none."""
        return self._stored[source].rows(ALL_ROWS)

    def _whole(self, name: str, shape: tuple[int, ...]) -> _StoredTensor:
        """Describe a tensor that the folder has in parts: by their type, or one that holds those of all."""
        parts = [self._stored[part] for part in self._assembled[name]]
        types = dict.fromkeys(part.dtype for part in parts)
        if len(types) == 1:
            (dtype,) = types
        else:  # float32 holds all floats, and what is none is refused
            dtype = next((each for each in types if each not in FLOATS), "F32")
        return _StoredTensor(parts[0].file, name, dtype, shape)

    def _refuse_other_types(self) -> None:
        others = [
            f"{source} ({self._stored[source].dtype})"
            for source in dict.fromkeys(part.source for part in self._parts.values())
            if source not in self._packed and self._stored[source].dtype not in FLOATS
        ]
        others += [
            f"{name} ({self._stored[name].dtype} instead of {' or '.join(types)})"
            for matrix in self._packed.values()
            if not isinstance(matrix, (MLXMatrix, TernaryMatrix))
            for name, types in matrix.stored_types.items()
            if name in self._stored and self._stored[name].dtype not in types
        ]
        if others:
            raise CheckpointError(
                f"{self.path}: tensors of a type that is not supported: {', '.join(others)}. "
                f"Supported: {', '.join(FLOATS)}."
            )

    def _refuse_untied_head(self, head: str) -> None:
        if not self.config.tie_word_embeddings or head not in self._stored:
            return
        if not self._is_embedding(head):
            raise CheckpointError(
                f"{self.path}: config.json ties the head to the embedding (tie_word_embeddings), but {head} is "
                f"another tensor than {self._parts[EMBEDDING].source}. Set tie_word_embeddings to false, or remove "
                f"{head}."
            )

    def _refuse_other_embeddings(self, copies: frozenset[str]) -> None:
        for name in sorted(copies & self._stored.keys()):
            if not self._is_embedding(name):
                raise CheckpointError(
                    f"{self.path}: {name} is another tensor than {self._parts[EMBEDDING].source}; supported is one "
                    "embedding for both stacks."
                )

    def _is_embedding(self, name: str) -> bool:
        embedding, shape = self._parts[EMBEDDING].source, self._stored[name].shape
        if shape != self._stored[embedding].shape:
            return False
        if not (self._has_rows_apart(name) and self._has_rows_apart(embedding)):
            return np.array_equal(self._read(name), self._read(embedding))
        step = max(1, _PORTION_VALUES // shape[1])
        portions = (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))
        return all(np.array_equal(self._read(name, rows), self._read(embedding, rows)) for rows in portions)


def _quantization(folder: Path, values: dict[str, Any]) -> dict[str, Any] | None:
    """Take out of config.json's values how weights are quantized, which older folders of ModelOpt have beside it."""
    # mlx-lm writes its settings under the first two names, and reads the first; compressed-tensors once had the third.
    found = [values.pop(key, None) for key in ("quantization", "quantization_config", "compression_config")]
    quantization = next((settings for settings in found if settings), None)
    if quantization is None and (folder / MODELOPT_FILE).exists():
        settings = read_json_object(folder, MODELOPT_FILE).get("quantization")
        return {**(settings if isinstance(settings, dict) else {}), "quant_method": "modelopt"}
    return quantization if quantization is None or isinstance(quantization, dict) else {}


def _stored_tensors(folder: Path) -> tuple[dict[str, _StoredTensor], dict[str, str]]:
    """List the tensors of all weight files, and the first file's metadata."""
    if (folder / WEIGHTS_FILE).exists():
        return _tensors_of_file(file_inside(folder, WEIGHTS_FILE))
    try:
        weight_map = read_weight_map(file_inside(folder, INDEX_FILE))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX_FILE} cannot be read: {error}. Download it again.") from error
    names: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        names.setdefault(file_name, set()).add(name)
    for file_name in names:
        check_file_name(folder, file_name)
    if (missing := missing_files(folder / INDEX_FILE, names)) is not None:
        raise CheckpointError(f"{missing}. Download them again.")
    stored: dict[str, _StoredTensor] = {}
    for file_name, listed in sorted(names.items()):
        tensors, _ = _tensors_of_file(file_inside(folder, file_name))
        if listed != tensors.keys():
            differing = ", ".join(sorted(listed ^ tensors.keys()))
            raise CheckpointError(f"{folder / file_name} and {INDEX_FILE} disagree about the tensors {differing}.")
        stored |= tensors
    return stored, {}


def _tensors_of_file(path: Path) -> tuple[dict[str, _StoredTensor], dict[str, str]]:
    tensors = {}
    try:
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                portions = file.get_slice(name)
                tensors[name] = _StoredTensor(path, name, portions.get_dtype(), tuple(portions.get_shape()))
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}. Download it again.") from error
