"""Adapters: what was learned beside a package, in a folder of its own that `edgelm export-adapter` wrote.

The folder holds adapter.json, and the pairs of thin matrices that training saved, by PEFT's names. Shapes: R rank, D
and N what a projection takes and gives. It gives W x + B A x, with A [R, D] and B [N, R] (arXiv:2106.09685).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import PackageError
from edgelm.files import atomic
from edgelm.files.presence import is_there
from edgelm.files.regular_file import parse_json, read_regular
from edgelm.files.run_checkpoint import checkpoint_of_run
from edgelm.files.safetensors_header import MAX_HEADER_BYTES
from edgelm.files.safetensors_reader import parse_matrices
from edgelm.files.schema_version import other_version
from edgelm.number_bounds import is_count
from edgelm.package.manifest import FileEntry, Manifest, read_checked, require
from edgelm.package.peft_format import CONFIG_FILE, MatrixPairs, in_pairs
from edgelm.shell_word import shell_word

MANIFEST_FILE, WEIGHTS_FILE = "adapter.json", "adapter_model.safetensors"
SCHEMA_VERSION = 1
MAX_RANK = 512
_MAX_MANIFEST_BYTES = 1 << 16

Matrix = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AdapterManifest:
    """What a loader checks of an adapter, and a person wants to know.

    base: name of the package that it was exported for, and base_fingerprint its `Manifest.fingerprint`. rank: the
    largest of its layers. alpha: as in training; the matrices B have it inside. file: the weights.
    """

    name: str
    base: str
    base_fingerprint: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    file: FileEntry
    created_by: Mapping[str, str]
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require(self, str, "name", "base", "base_fingerprint")
        require(self, (int, float), "alpha")
        if not is_count(self.rank, 1, MAX_RANK):
            raise TypeError(f"rank is {self.rank!r}; it must be a number from 1 to {MAX_RANK}")
        if self.file.path != WEIGHTS_FILE:
            raise TypeError(f"the file is {self.file.path!r}")
        if not all(isinstance(text, str) for text in (*self.target_modules, *self.notes)):
            raise TypeError(f"target_modules are {self.target_modules!r}, notes {self.notes!r}")

    def save(self, folder: Path) -> None:
        """Write adapter.json."""
        atomic.write_text(folder / MANIFEST_FILE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> AdapterManifest:
        """Read adapter.json.

        Raises:
            PackageError: it is missing or broken, or has another schema version.
        """
        path = folder / MANIFEST_FILE
        try:
            is_folder_there, is_manifest_there = is_there(folder), is_there(path)
        except (OSError, ValueError) as error:
            raise PackageError(f"The adapter at {folder} cannot be read: {error}. Check the path.") from error
        if not is_folder_there:
            raise PackageError(f"There is no adapter at {folder}. Check the path.")
        if not is_manifest_there:
            raise PackageError(
                f"{folder} has no {MANIFEST_FILE}, so it is no exported adapter. Make one of what training wrote: "
                f"edgelm export-adapter {shell_word(folder)} --base PACKAGE -o adapter/"
            )
        try:
            values = parse_json(read_regular(path, _MAX_MANIFEST_BYTES))
        except ValueError as error:
            raise PackageError(f"{path} describes no adapter: {error}. Export or copy the adapter again.") from error
        if other := other_version(values, SCHEMA_VERSION, "Export the adapter again"):
            raise PackageError(f"{path} {other}")
        try:
            lists = {name: tuple(values[name]) for name in ("target_modules", "notes")}
            return cls(**values | lists | {"file": FileEntry(**values["file"])})
        except (TypeError, KeyError) as error:
            raise PackageError(
                f"{path} describes no adapter: {error}. If a newer edgelm wrote it, update this one; if not, export or "
                "copy the adapter again."
            ) from error


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder is an exported adapter, by its manifest's being there."""
    return os.path.isfile(folder / MANIFEST_FILE)  # Path's own raises where a folder may not be entered


def is_trained_adapter(folder: Path) -> bool:
    """Tell whether a folder is an adapter in PEFT's format, or a run whose checkpoints are."""
    return any((place / CONFIG_FILE).is_file() for place in (folder, checkpoint_of_run(folder)) if place is not None)


def why_not_trained(folder: Path) -> str:
    """Say why a folder is neither an adapter in PEFT's format nor a run that has some, and the way on."""
    if not folder.exists():
        return f"There is no adapter at {folder}. Check the path."
    if is_adapter(folder):
        return (
            f"{folder} is an adapter that was exported, for one package. Name what it was made of: the run of `edgelm "
            f"finetune`, or the folder with {CONFIG_FILE}."
        )
    checkpoint = checkpoint_of_run(folder)
    if checkpoint is not None:
        return (
            f"The checkpoints of the run {folder} are whole models, and no adapters. Export one as it is: edgelm "
            f"export {shell_word(checkpoint)}"
        )
    if folder.suffix == ".gguf":
        return (
            f"{folder} is a GGUF file. An adapter in one stands beside a package (edgelm export-adapter), or is merged "
            "into its base with llama-export-lora of llama.cpp; export the model that comes of it."
        )
    return f"{folder} is neither an adapter ({CONFIG_FILE}) nor a run with checkpoints."


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """An adapter, read: its matrices A [R, D] and B [N, R], float32, by the layer's canonical name."""

    manifest: AdapterManifest
    matrices: MatrixPairs[Matrix]


def read_adapter(folder: Path, package: Manifest, config: ModelConfig) -> Adapter:
    """Read an exported adapter for a package.

    Raises:
        PackageError: it belongs to another package, its files are broken or were changed, or a matrix does not fit.
    """
    manifest = AdapterManifest.load(folder)
    if manifest.base_fingerprint != package.fingerprint:
        raise PackageError(
            f"The adapter in {folder} belongs to the package {manifest.base} ({manifest.base_fingerprint[:12]}), not "
            f"to {package.name} ({package.fingerprint[:12]}). Export it for this one: edgelm export-adapter FOLDER "
            "--base PACKAGE -o adapter/"
        )
    shapes = {name: shape for name, shape in config.tensor_shapes().items() if len(shape) == 2}
    path = folder / WEIGHTS_FILE
    most = 8 + MAX_HEADER_BYTES + sum(4 * manifest.rank * sum(shape) for shape in shapes.values())
    if manifest.file.size > most:
        raise PackageError(f"{path} has {manifest.file.size} bytes; an adapter of this model has at most {most}.")
    matrices = in_pairs(parse_matrices(read_checked(folder, manifest.file), path), path)
    for layer, (a, b) in matrices.items():
        N, D = shapes.get(f"{layer}.weight", (0, 0))
        rank = len(a)
        if a.shape != (rank, D) or b.shape != (N, rank) or not 1 <= rank <= manifest.rank:
            raise PackageError(
                f"{path} has matrices {list(a.shape)} and {list(b.shape)} for {layer[:200]}, which is {[N, D]} in this "
                "model. Export the adapter again."
            )
    return Adapter(manifest=manifest, matrices=matrices)
