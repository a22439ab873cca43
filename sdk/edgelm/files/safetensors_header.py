"""The header of a safetensors file, checked before the library parses it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from edgelm.errors import CheckpointError
from edgelm.files.regular_file import with_keys_once

# The library takes 100 MB, and up to 15 times that of memory (docs/results/trust.md). A tensor of a model takes about
# 120 bytes, the 18,867 of Qwen3-30B-A3B can lie in one file, and the 37,000 of larger models lie in dozens.
MAX_HEADER_BYTES = 3 << 20
MAX_TENSORS = 20_000
MAX_COMMAS = 8 * MAX_TENSORS  # a tensor of two dimensions has six


def check_header(path: Path) -> None:
    """Check that a safetensors file's header has no more bytes, tensors and numbers than are read, and no name twice.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: it has, or is a pipe or the like, whose opening waits for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path} is not a regular file. Put the file itself in its place.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER_BYTES else b""
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read. It is damaged, or has more "
            "tensors than belong into one file."
        )
    tensors, commas = header.count(b"{"), header.count(b",")
    if tensors > MAX_TENSORS or commas > MAX_COMMAS:
        raise CheckpointError(
            f"{path} has a header with {tensors} objects and {commas} commas; at most {MAX_TENSORS} and {MAX_COMMAS} "
            "are read. It is damaged, or has more tensors than belong into one file."
        )
    try:
        # Numbers stay texts: Python refuses those of more than some thousand digits by the error of a name twice.
        json.loads(header.decode("utf-8"), object_pairs_hook=with_keys_once, parse_int=str)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return  # the library refuses it
    except ValueError as error:
        raise CheckpointError(f"{path} has a header with two meanings: {error}. Download it again.") from error
