"""The graphs of a model: each read once, checked, and only then given to ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

from edgelm.errors import PackageError
from edgelm.files.folder_entries import is_left_by_looking
from edgelm.files.regular_file import read_regular
from edgelm.package.manifest import FILE_NAME, SIGNATURE_NAME, FileEntry, Manifest, read_checked
from edgelm.package.onnx_walk import MAX_BYTES, GraphFacts, walk_onnx

GRAPH_FILE = "model.onnx"
ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"  # in its place, of a model with an encoder
DATA_FILE = "model.onnx.data"  # the weights of either, each once
PREFILL_FILE = "prefill.onnx"  # beside model.onnx, where prompts are read by a graph of their own
PREFILL_DATA_FILE = "prefill.onnx.data"  # its weights but those that it has in common with model.onnx


def graph_files(manifest: Manifest) -> tuple[str, ...]:
    """Name the graphs of a package; the decoder's is the last."""
    listed = {entry.path for entry in manifest.files}
    if ENCODER_FILE in listed:
        return ENCODER_FILE, DECODER_FILE
    return (PREFILL_FILE, GRAPH_FILE) if PREFILL_FILE in listed else (GRAPH_FILE,)


def read_graph(path: Path, entry: FileEntry | None = None) -> tuple[bytes, GraphFacts]:
    """Read a graph and walk it; its tensors may lie in its folder's own regular files alone.

    entry: what the manifest says of the file; None without a manifest.

    Raises:
        PackageError: it differs from the manifest, or the walk refuses it.
    """
    graph = read_regular(path, MAX_BYTES) if entry is None else read_checked(path.parent, entry)
    return graph, walk_onnx(graph, path, files_of_tensors(path.parent))


def files_of_tensors(folder: Path) -> dict[str, int]:
    """Return the files beside a graph that its tensors may lie in, by name, with their sizes in bytes.

    Where a manifest was checked they are those that it lists: itself and the signature have no hash in it, nor has what
    a file manager leaves.

    Raises:
        PackageError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as files:
            return {
                file.name: file.stat(follow_symlinks=False).st_size
                for file in files
                if file.is_file(follow_symlinks=False)
                and file.name not in (FILE_NAME, SIGNATURE_NAME)
                and not is_left_by_looking(file.name)
            }
    except OSError as error:
        raise PackageError(f"{folder} cannot be read: {error}. Was it removed, or may you not list it?") from error
