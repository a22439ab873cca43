"""GGUFModel: the GGUF file of a model, or the several that llama.cpp's gguf-split made of it, read as one.

Each part is a GGUF file by itself, with some of the tensors, its number, the number of parts and that of all tensors;
the first has the metadata too. Source: tools/gguf-split in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm.files.gguf_part_names import MOST_PARTS, names_of_parts
from edgelm_export.gguf.file import MAX_HEADER_BYTES, MAX_TENSORS, GGUFFile

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
# Of a part behind the first, which has no metadata but these three: the tensors that a model may have take 0.49 MB.
_LATER_HEADER_BYTES = 1 << 19
_DOWNLOAD_AGAIN = "It is another part than its name says, or one of another model: download the model again."


class GGUFModel:
    """The metadata of a model's first file, and the tensors of all.

    Closing it drops the maps; views and strings that were handed out stay valid and keep them alive.
    """

    def __init__(self, files: Sequence[GGUFFile]) -> None:
        self.paths = [file.path for file in files]
        self.metadata = files[0].metadata
        self.tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
        self._files = files
        self._file_of = {name: file for file in files for name in file.tensors}

    @classmethod
    def open(cls, path: Path) -> GGUFModel:
        """Map a GGUF file, and where it is one part of a model the others, which lie beside it.

        Raises:
            CheckpointError: a file cannot be read, is no GGUF file of version 2 or 3, or its header is broken; or a
                part is missing or does not belong to the others.
        """
        named = _part(path)
        count = named.metadata.get(_COUNT, 0)
        return cls([named] if count in (0, 1) else _parts(named, count))

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes: uint8 [nbytes], a read-only view on the map.

        Raises:
            CheckpointError: there is no such tensor, or the model is closed.
        """
        return self._file_of.get(name, self._files[0]).data(name)

    def close(self) -> None:
        """Drop the maps."""
        for file in self._files:
            file.close()


def _part(path: Path) -> GGUFFile:
    names = names_of_parts(path.name)
    return GGUFFile.open(path, _LATER_HEADER_BYTES if path.name in names[1:] else MAX_HEADER_BYTES)


def _parts(named: GGUFFile, count: object) -> list[GGUFFile]:
    """Open all parts of the model that a file is one of, in their order."""
    paths = _paths(named.path, count)
    parts: list[GGUFFile] = []
    file_of: dict[str, str] = {}
    total = 0
    for number, path in enumerate(paths):
        part = named if path == named.path else _part(path)
        total = total if parts else _total(part)
        _check_place(part, {_NUMBER: number, _COUNT: len(paths), _TENSORS: total})
        for tensor in part.tensors:
            if tensor in file_of:
                raise CheckpointError(f"{path}: tensor {tensor!r} is in {file_of[tensor]} too. {_DOWNLOAD_AGAIN}")
            file_of[tensor] = path.name
        # Before the next part is read: each may describe as many tensors as a whole model.
        if len(file_of) > total or (path == paths[-1] and len(file_of) != total):
            raise CheckpointError(
                f"{path}: with it the model has {len(file_of)} tensors, and {_TENSORS} is {total}. {_DOWNLOAD_AGAIN}"
            )
        if parts:
            part.metadata = {}  # only the first's is asked for, and that of all together has no bound
        parts.append(part)
    return parts


def _paths(named: Path, count: object) -> list[Path]:
    """Return where the parts of a model lie, which are all there."""
    if type(count) is not int or not 1 < count <= MOST_PARTS:
        raise CheckpointError(f"{named}: {_COUNT} is {count!r:.80}; at most {MOST_PARTS} files are read as one model.")
    paths = [named.with_name(name) for name in names_of_parts(named.name)]
    if len(paths) != count:
        raise CheckpointError(
            f"{named}: {_COUNT} is {count}, and the file's name does not say where the others are. Give each the name "
            f"that it was published under, NAME-00001-of-{count:05}.gguf and so on, in one folder."
        )
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{named} is one of the {count} files of a model, and these are not beside it: {', '.join(missing)}. "
            "Download them into the same folder."
        )
    return paths


def _total(first: GGUFFile) -> int:
    total = first.metadata.get(_TENSORS)
    if type(total) is not int or not 0 < total <= MAX_TENSORS:
        raise CheckpointError(f"{first.path}: {_TENSORS} is {total!r:.80}; it must be from 1 to {MAX_TENSORS}.")
    return total


def _check_place(part: GGUFFile, expected: Mapping[str, int]) -> None:
    for key, value in expected.items():
        found = part.metadata.get(key)
        if found != value:
            raise CheckpointError(f"{part.path}: {key} is {found!r:.80}, where {value} belongs. {_DOWNLOAD_AGAIN}")
