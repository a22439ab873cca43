"""Pointers of git-lfs: what a clone without git-lfs has in the place of each large file.

Source: docs/spec.md of git-lfs, which also bounds their size.
"""

from __future__ import annotations

import os
from io import BufferedReader

BEGINNING = b"version https://git-lfs.github.com/spec/"
# Behind a file's name, in an error.
EXPLANATION = (
    "is not the file itself but a pointer of git-lfs to it: the model was cloned without git-lfs. In the clone: "
    "git lfs install, then git lfs pull."
)
_MAX_BYTES = 1024


def is_pointer(file: BufferedReader) -> bool:
    """Tell whether a file that was just opened is such a pointer; what reads it next begins where it would have."""
    try:
        return os.fstat(file.fileno()).st_size <= _MAX_BYTES and file.peek().startswith(BEGINNING)
    except OSError:  # whoever reads it meets that too
        return False
