"""The length of a safetensors file's header, checked before the library parses it."""

from __future__ import annotations

from pathlib import Path

from edgelm.errors import CheckpointError

# The library takes 100 MB, and up to 15 times that of memory (docs/results/trust.md). A tensor of a model takes about
# 120 bytes, and the 37,000 tensors of the largest models lie in dozens of files.
MAX_HEADER_BYTES = 3 << 20


def check_header_length(path: Path) -> None:
    """Check that a safetensors file's header has no more than `MAX_HEADER_BYTES`; what it says is not looked at.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: the header is longer.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read. It is damaged, or has more "
            "tensors than belong into one file."
        )
