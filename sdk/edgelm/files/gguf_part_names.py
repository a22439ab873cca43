"""The names of GGUF files that hold one model together, as llama.cpp's gguf-split writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# llama.cpp counts them in 16 bits. 470 GB (Qwen3 235B in bfloat16) are 235 parts of the 2 GB that some authors choose.
MOST_PARTS = 512
_PART = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL)


def names_of_parts(name: str) -> list[str]:
    """Name all files of the model that a file belongs to, in their order; a file that is no part is all of them.

    name: `model-00002-of-00003.gguf`, with folders before it or without.
    """
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= MOST_PARTS:
        return [name]
    return [f"{match['prefix']}-{number:05}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


def name_of_whole(name: str) -> str:
    """Name the one file that a part's model would be in; a file that is no part keeps its name."""
    return name if len(names_of_parts(name)) == 1 else _PART.sub(r"\g<prefix>.gguf", name)


def one_of_each_model(names: Iterable[str]) -> list[str]:
    """Leave out of a list of GGUF files all parts of a model but the first that is there, and what lies beside a model
    to read images: it has "mmproj" in its name.
    """
    models: dict[str, str] = {}
    for name in sorted(names):
        models.setdefault(names_of_parts(name)[0], name)
    found = list(models.values())
    return [name for name in found if "mmproj" not in name.lower().rpartition("/")[2]] or found
