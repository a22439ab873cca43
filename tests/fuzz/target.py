"""Target: one kind of file that is fuzzed; and what several kinds read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from edgelm.errors import EdgeLMError
from edgelm.testing import tiny_model_path


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of file. `prepare` makes seeds in a folder; `read` is given the folder with a mutant in `file`."""

    file: str
    prepare: Callable[[Path], Sequence[bytes]]
    mutate: Callable[[bytes, Random, Sequence[bytes]], bytes]
    read: Callable[[Path], None]
    count: int  # of mutants in the tests of each change; `make fuzz` has more
    long_count: int


def tiny_package(folder: Path, *names: str) -> list[bytes]:
    shutil.copytree(tiny_model_path(), folder, dirs_exist_ok=True)
    return [(folder / name).read_bytes() for name in names]


def all_of(*readings: Callable[[], object]) -> None:
    """Read a file in several ways; it is refused where none of them takes it."""
    refusals = []
    for read in readings:
        try:
            read()
        except EdgeLMError as error:
            refusals.append(error)
    if len(refusals) == len(readings):
        raise refusals[0]
