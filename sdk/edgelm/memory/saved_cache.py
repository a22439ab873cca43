"""SavedCache: the file of a KV cache, an archive of numpy arrays that nobody vouches for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import PackageError
from edgelm.memory.cache_layout import alike

WITHOUT = "Without this file, what it holds is computed once more."  # the way out where it is broken


@dataclass(frozen=True, kw_only=True)
class SavedCache:
    """What a file holds: token ids, how many of them have left all windows, and the arrays that `parts_of` names."""

    token_ids: list[int]
    released: int
    parts: Mapping[str, NDArray[Any]]

    def write(self, file: IO[bytes], fingerprint: str) -> None:
        """Write the file of the model that `fingerprint` identifies."""
        np.savez(
            file,
            allow_pickle=False,
            fingerprint=np.array(fingerprint),
            token_ids=np.array(self.token_ids, np.int64),
            released=np.array(self.released),
            **self.parts,
        )

    @classmethod
    def read(cls, path: Path, config: ModelConfig, fingerprint: str) -> SavedCache:
        """Read a file; whether so many tokens can have left the windows is for the cache to say.

        Raises:
            PackageError: the file is broken, or belongs to another model.
        """
        try:
            if path.exists() and not path.is_file():  # opening a pipe waits for ever
                raise ValueError("it is not a regular file")
            # Not by np.load, which takes what is no archive for a pickle, and advises to trust it.
            with path.open("rb") as file, NpzFile(file, allow_pickle=False) as saved:
                owner, ids = str(_read_part(saved, "fingerprint")), _read_part(saved, "token_ids")
                parts = {name: _read_part(saved, name) for name in parts_of(config, 0) if name in saved}
                # A file without it is of a cache that kept all.
                released = _read_part(saved, "released").tolist() if "released" in saved else 0
        except Exception as error:  # numpy and zipfile raise a dozen classes on a broken file
            raise PackageError(
                f"Cannot read the saved cache {path}: {type(error).__name__}: {error}. {WITHOUT}"
            ) from error
        if ids.ndim != 1 or ids.dtype != np.int64:
            raise PackageError(f"The saved cache {path} has token ids of shape {ids.shape}, {ids.dtype}. {WITHOUT}")
        token_ids = ids.tolist()
        if owner != fingerprint:
            raise PackageError(f"The saved cache {path} belongs to another model ({owner}), not to {fingerprint}.")
        if len(token_ids) > config.max_position_embeddings:
            raise PackageError(
                f"The saved cache {path} has {len(token_ids)} tokens, and the model a context of "
                f"{config.max_position_embeddings}: it was changed or damaged. {WITHOUT}"
            )
        found = {name: (part.shape, part.dtype) for name, part in parts.items()}
        expected = parts_of(config, len(token_ids))
        if found != expected:
            raise PackageError(f"The saved cache {path} has {_listed(found)}; expected {_listed(expected)}. {WITHOUT}")
        return cls(token_ids=token_ids, released=released, parts=parts)


def parts_of(config: ModelConfig, length: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Describe what a file holds of so many tokens, by name: shape and type of n buffers alike, [n, 1, K, T, H]."""
    runs = alike(config)
    others = [*(["conv"] if config.conv_channels else []), *(["conv_state", "state"] if config.state_layers else [])]
    names = [f"filled{number or ''}" for number in range(len(runs) - len(others))] + others
    return {
        name: ((count, *buffer.shape(1, length)), np.dtype(buffer.type))
        for name, (buffer, count) in zip(names, runs, strict=True)
    }


def _listed(parts: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    return ", ".join(f"{name} of shape {shape}, {dtype}" for name, (shape, dtype) in parts.items()) or "nothing"


def _read_part(saved: Any, name: str) -> NDArray[Any]:
    """Read one array; none is as large as it says before the file is found to hold so much."""
    with saved.zip.open(f"{name}.npy") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is stored in another way than edgelm does")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        here = saved.zip.getinfo(f"{name}.npy").compress_size
        if math.prod(shape) * dtype.itemsize > here:
            raise ValueError(f"{name} has the shape {shape}, and {here} bytes are there")
    part: NDArray[Any] = saved[name]
    return part
