"""The graph of a package, model.onnx: read once, checked, and only then given to ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

from edgelm.manifest import FileEntry, read_checked
from edgelm.onnx_walk import MAX_BYTES, walk_onnx
from edgelm.regular_file import read_regular

GRAPH_FILE = "model.onnx"


def read_graph(folder: Path, entry: FileEntry | None = None) -> bytes:
    """Read model.onnx and walk it; its tensors may lie in the folder's own regular files alone.

    entry: what the manifest says of the file; None for a folder without a manifest.

    Raises:
        PackageError: it differs from the manifest, or the walk refuses it.
    """
    graph = read_regular(folder / GRAPH_FILE, MAX_BYTES) if entry is None else read_checked(folder, entry)
    with os.scandir(folder) as files:
        sizes = {
            file.name: file.stat(follow_symlinks=False).st_size for file in files if file.is_file(follow_symlinks=False)
        }
    walk_onnx(graph, folder / GRAPH_FILE, sizes)
    return graph
