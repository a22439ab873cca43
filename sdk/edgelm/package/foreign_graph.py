"""Graphs that other programs exported: which file of a folder is meant. Reads the names and the configs alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.config import SECTION
from edgelm.errors import PackageError
from edgelm.files.regular_file import read_json_object
from edgelm.package.manifest import FILE_NAME

GENAI_CONFIG, HF_CONFIG = "genai_config.json", "config.json"
# Where Optimum and onnx-community put a graph, and its names there; the first that exists is taken.
_SUBFOLDER = "onnx"
_NAMES = (
    "model.onnx", "decoder_model_merged.onnx", "model_quantized.onnx", "model_int8.onnx", "model_uint8.onnx",
    "model_q4.onnx", "model_bnb4.onnx", "model_fp16.onnx", "model_q4f16.onnx", "decoder_model_merged_quantized.onnx",
    "decoder_with_past_model.onnx",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ForeignGraph:
    """A graph without a manifest. folder: where its configs and its tokenizer are; graph: its path below that."""

    folder: Path
    graph: Path


def find_foreign_graph(path: Path) -> ForeignGraph | None:
    """Return the graph that a path means: a file that ends with .onnx, or a folder with one.

    Of several in a folder, genai_config.json says which; without it, those in its folder `onnx` come first, and of
    their names the one that is the most exact on a CPU. None: there is no graph, or edgelm wrote it.

    Raises:
        PackageError: there are several, and none has a known name.
    """
    if path.suffix == ".onnx" and path.is_file():
        return _beside(path)
    if not path.is_dir():
        return None
    file = _named_by_genai(path)
    if file is not None:
        return _beside(file)
    for folder in (path / _SUBFOLDER, path):
        try:
            found = sorted(folder.glob("*.onnx"))
        except OSError:  # up to Python 3.12: the folder was removed just now
            return None
        known = [folder / name for name in _NAMES if folder / name in found]
        if known or len(found) == 1:
            return _beside((known or found)[0])
        if found and _beside(found[0]) is not None:
            names = ", ".join(file.name for file in found)
            raise PackageError(f"{folder} has several graphs: {names}. Name one of them: {found[0]}")
    return None


def read_config(path: Path) -> dict[str, Any]:
    """Read a config in JSON; empty where there is none.

    Raises:
        PackageError: it is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise PackageError(f"Cannot read {path}: {error}.") from error


def _beside(file: Path) -> ForeignGraph | None:
    """Return a graph with the folder of its configs: its own, or the one above."""
    folder = file.parent.absolute()  # also where a link leads to another disk: the configs lie beside the link
    if ".." in folder.parts:  # else its parents would be those of the path, not of the folder that is meant
        folder = folder.resolve()
    file = folder / file.name
    for candidate in (folder, folder.parent):
        if (candidate / GENAI_CONFIG).is_file() or (candidate / HF_CONFIG).is_file():
            folder = candidate
            break
    # A package of edgelm, or what is left of one, loads with its manifest or not at all. Other programs leave our
    # section in the config of a checkpoint that they export, but do not write the other config beside it.
    is_ours = (folder / GENAI_CONFIG).exists() and SECTION in read_config(folder / HF_CONFIG)
    if (folder / FILE_NAME).exists() or is_ours:
        return None
    return ForeignGraph(folder=folder, graph=file.relative_to(folder))


def _named_by_genai(folder: Path) -> Path | None:
    model = read_config(folder / GENAI_CONFIG).get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(decoder, dict):
        return None
    name = decoder.get("filename")
    if name is None and decoder.get("pipeline"):
        raise PackageError(
            f"{folder / GENAI_CONFIG} names a pipeline of several graphs, made for one chip; edgelm runs a model "
            "that is one graph. Make a package of its checkpoint: edgelm export CHECKPOINT -o package/"
        )
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise PackageError(f"{folder / GENAI_CONFIG} names the graph {name!r}, which is not a file in {folder}.")
    return folder / name
