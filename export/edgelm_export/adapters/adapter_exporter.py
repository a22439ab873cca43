"""The export of an adapter: what training saved beside a checkpoint, written for the package of that checkpoint.

Shapes: R rank, D and N what a projection takes and gives: A is [R, D], B is [N, R].
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16, by which safetensors asks for it)
import numpy as np
from safetensors import SafetensorError, safe_open

import edgelm
from edgelm.architecture.quantization_recipe import STANDARD
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ExportError
from edgelm.files import atomic
from edgelm.files.run_checkpoint import checkpoint_of_run
from edgelm.files.safetensors_header import check_header
from edgelm.files.safetensors_index import WEIGHTS_FILE as BASE_WEIGHTS_FILE
from edgelm.package.adapter import WEIGHTS_FILE, AdapterManifest, why_not_trained
from edgelm.package.manifest import Manifest, describe_file, sha256_of
from edgelm.package.peft_format import (
    BASE_GRID,
    BASE_NAME,
    BASE_SHA256,
    CONFIG_FILE,
    check_matrices,
    in_pairs,
    read_peft_config,
    scale_of,
    tensor_names,
    weights_path,
)
from edgelm.package.replaceable import refuse_to_replace, why_not_an_adapter
from edgelm_export.adapters.adapter_layers import (
    Matrices,
    as_in_folders,
    layers_of_package,
    layers_of_text,
    layout_of_adapter,
)
from edgelm_export.adapters.gguf_adapter import GGUFAdapter, layout_of_gguf, read_gguf_adapter
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.folded import FoldedCheckpoint
from edgelm_export.checkpoints.safetensors_writer import SOURCE_KEY, TensorSpec, write_safetensors
from edgelm_export.checkpoints.tensor_map import CANONICAL
from edgelm_export.gguf.file import is_gguf
from edgelm_export.quantize.channel_scales import CHANNEL_SCALES_FILE, ChannelScales
from edgelm_export.reference.weights import Array
from edgelm_export.sources.package_checkpoint import PACKAGE_FORMAT, PackageCheckpoint

_STREAM = re.compile(r"\.\d+$")  # behind the name of what is there for each residual stream


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """An adapter as training saved it.

    folder: its own, or its GGUF file. base_name: of its base, as PEFT wrote it. metadata: of the weights file, where
    edgelm wrote it. matrices: A and B of each layer; B has the scale inside. gguf: what the file says, where it is one.
    """

    folder: Path
    alpha: float
    base_name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    matrices: Matrices
    gguf: GGUFAdapter | None = None


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """What a package was made of, as its manifest says.

    inherited: what was folded into the packages before it. files: the hashes of the checkpoint's weights. sha256: of
    all of them, as training writes it into adapters; None where nothing tells.
    """

    inherited: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str | None


def export_adapter(source: Path, base: Path, target: Path) -> AdapterManifest:
    """Write an adapter for a package, whole or not at all. The package is only read.

    source: an adapter of `edgelm finetune`, PEFT or mlx-lm, or the folder of a run, whose best adapter is taken (the
    newest where nothing was validated); or the GGUF file of one for llama.cpp. Layers have the names of the package's
    projections: where training, or the file, has the family's own, they are renamed, split and put in order as the
    exporter did it with the weights. B has the scale inside, and both have what the exporter folded into the rows and
    columns of their projection.

    Raises:
        CheckpointError: there is no adapter, it is no plain LoRA, was trained on other weights, or does not fit.
        ExportError: the package is of a kind that takes none, what is folded in makes values that float32 does not
            hold, or `target` holds something else or cannot be written.
        PackageError: the package is broken.
    """
    refuse_to_replace(target, why_not_an_adapter, ExportError)
    package, origin = _package_for_adapters(base)
    trained = _read_gguf(source) if is_gguf(source) else _read(_adapter_folder(source))
    notes = _notes_on_source(trained, package, origin)
    with PackageCheckpoint(base) as checkpoint:
        trained, on_layers = _with_layers_of(checkpoint.config, trained)
        notes += on_layers
        notes += _notes_on_grid(trained, checkpoint)
        tensors = _folded(trained, checkpoint, _channel_scales(base, package, checkpoint.config))
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ExportError(
                f"{name} of {trained.folder}, with lora_alpha {trained.alpha:g} and what {base} has "
                "folded into its weights inside, has values that float32 does not hold. Merge the adapter, and export "
                "the result: edgelm merge"
            )
    ranks = [len(a) for a, _ in trained.matrices.values()]
    specs = {name: TensorSpec(dtype="F32", shape=tensor.shape) for name, tensor in tensors.items()}
    try:
        with atomic.replace_folder(target) as staging:
            write_safetensors(staging / WEIGHTS_FILE, specs, lambda name: [tensors[name]], {})
            manifest = AdapterManifest(
                name=target.resolve().name,
                base=package.name,
                base_fingerprint=package.fingerprint,
                rank=max(ranks),
                alpha=trained.alpha,
                target_modules=tuple(sorted({_STREAM.sub("", layer).rpartition(".")[2] for layer in trained.matrices})),
                file=describe_file(staging / WEIGHTS_FILE),
                created_by={"edgelm": edgelm.__version__, "numpy": np.__version__},
                notes=notes,
            )
            manifest.save(staging)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error}. What was there before is as it was.") from error
    return manifest


def _package_for_adapters(base: Path) -> tuple[Manifest, _Origin]:
    package = Manifest.load(base)
    config = ModelConfig.load(base)
    kinds = {
        "a model with an encoder": config.encoder is not None,
        "a model whose keys are values too": config.attention_k_eq_v,
        "in operators of the ONNX standard": {"operators": STANDARD} in package.recipe,
    }
    for kind, is_it in kinds.items():
        if is_it:
            raise ExportError(
                f"{base} is {kind}, which takes no adapters beside it. Merge the adapter, and export the result: "
                "edgelm merge"
            )
    if "rotate" in package.recipe_values("transform"):
        raise ExportError(
            f"{base} has rotated weights, so what its layers read is not what the adapter learned from. Export the "
            "base with a recipe without rotate, or merge the adapter: edgelm merge"
        )
    origin = _origin(package, base)
    if origin.inherited:
        raise ExportError(
            f"{base} was made of a package that has {' and '.join(origin.inherited)} folded into its weights, and not "
            "of the weights that the adapter learned on. Export it from its source, or merge the adapter: edgelm merge"
        )
    return package, origin


def _origin(package: Manifest, base: Path) -> _Origin:
    inherited: list[str] = []
    source: Mapping[str, Any] = package.source
    try:
        while source.get("format") == PACKAGE_FORMAT:
            inherited += map(str, source.get("transforms", ()))
            source = source["exported_from"]
        hashes = _hashes(source)
        joined = "".join(hashes).encode()
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{base} says of its source what no edgelm writes ({error!r}). Export or copy the package again."
        ) from error
    sha256 = hashlib.sha256(joined).hexdigest() if len(hashes) > 1 else next(iter(hashes), None)
    is_gguf = source.get("format") != "safetensors"  # which training does not read
    return _Origin(inherited=tuple(inherited), files=hashes, sha256=None if is_gguf else sha256)


def _hashes(source: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(file["sha256"] for file in source["files"])


def _channel_scales(base: Path, package: Manifest, config: ModelConfig) -> ChannelScales:
    """Return the scales that were folded into a package; none at all where nothing was."""
    transforms = package.recipe_values("transform")
    if not transforms:
        return ChannelScales(config, {})
    if CHANNEL_SCALES_FILE not in {entry.path for entry in package.files}:
        raise ExportError(
            f"{base} has {' and '.join(transforms)} folded into its weights, and no {CHANNEL_SCALES_FILE} that says "
            "by which scales: an older edgelm wrote it. Export it again, or merge the adapter: edgelm merge"
        )
    return ChannelScales.load(base, package, config)


def _adapter_folder(folder: Path) -> Path:
    """Return the adapter's own folder: of a run, that of its best checkpoint, else of its newest."""
    for path in (folder, checkpoint_of_run(folder)):
        if path is not None and (path / CONFIG_FILE).is_file():
            return path
    raise CheckpointError(why_not_trained(folder))


def _read(folder: Path) -> _Trained:
    config = read_peft_config(folder)
    path = weights_path(folder)
    try:
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            check_matrices({name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}, path)
            with np.errstate(over="ignore"):  # what is not finite is refused below
                tensors = {name: file.get_tensor(name).astype(np.float32) for name in parts}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy it again.") from error
    pairs = in_pairs(tensors, path)
    matrices = _scaled(pairs, lambda layer, rank: scale_of(config, layer, rank, folder), path)
    name = config.get("base_model_name_or_path")
    return _Trained(folder=folder, alpha=config["lora_alpha"], base_name=name, metadata=metadata, matrices=matrices)


def _read_gguf(path: Path) -> _Trained:
    adapter = read_gguf_adapter(path)
    matrices = _scaled(adapter.matrices, lambda _, rank: adapter.alpha / rank, path)
    return _Trained(folder=path, alpha=adapter.alpha, matrices=matrices, gguf=adapter)


def _scaled(matrices: Matrices, scale: Callable[[str, int], float], path: Path) -> Matrices:
    """Return matrices of finite numbers, with the scale of each layer, which has a rank, in its B."""
    scaled = {}
    for layer, (a, b) in matrices.items():
        for part, matrix in zip("AB", (a, b), strict=True):
            if not np.isfinite(matrix).all():
                raise CheckpointError(f"{path}: {part} of {layer} has NaN or infinite values; the adapter is damaged.")
        with np.errstate(over="ignore"):  # export_adapter looks for what is not finite
            scaled[layer] = a, b * np.float32(scale(layer, len(a)))
    return scaled


def _with_layers_of(config: ModelConfig, trained: _Trained) -> tuple[_Trained, tuple[str, ...]]:
    """Return an adapter with the layers of a package, and notes for the manifest."""
    matrices = trained.matrices
    notes: tuple[str, ...] = ()
    if trained.gguf is not None:
        layout = layout_of_gguf(trained.gguf, config)
    elif BASE_SHA256 in trained.metadata:
        layout = CANONICAL
    else:
        matrices, of_parts = layers_of_text(as_in_folders(matrices, config), config)
        layout, of_rows = layout_of_adapter(matrices, config, trained.base_name, trained.folder)
        notes = of_parts + of_rows
    return replace(trained, matrices=layers_of_package(matrices, config, layout, trained.folder)), notes


def _notes_on_source(trained: _Trained, package: Manifest, origin: _Origin) -> tuple[str, ...]:
    """Compare the weights that an adapter was trained on with those that the package was exported from."""
    wanted, found = trained.metadata.get(BASE_SHA256), origin.sha256
    if wanted is not None and origin.files and _imported_from(trained, wanted) == origin.files:
        return ()
    if wanted is None or found is None:
        return ("Nothing tells whether the package was exported from the weights that the adapter learned on.",)
    if wanted != found:
        raise CheckpointError(
            f"The adapter in {trained.folder} was trained on {trained.metadata.get(BASE_NAME)} (weights "
            f"{wanted[:12]}…); the package {package.name} was exported from others ({found[:12]}…). Export one from "
            "that checkpoint."
        )
    return ()


def _imported_from(trained: _Trained, sha256: str) -> tuple[str, ...]:
    """Return the hashes of what `edgelm import` made an adapter's base of; none where the base is gone, or another."""
    path = Path(trained.metadata.get(BASE_NAME, "")) / BASE_WEIGHTS_FILE
    try:
        if not path.is_file() or sha256_of(path) != sha256:
            return ()
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            return _hashes(json.loads((file.metadata() or {})[SOURCE_KEY]))
    # No file has such a name, or another program wrote it.
    except (AttributeError, LookupError, OSError, RecursionError, SafetensorError, TypeError, ValueError):
        return ()


def _notes_on_grid(trained: _Trained, checkpoint: PackageCheckpoint) -> tuple[str, ...]:
    """Compare the grid that an adapter's base lay on with those that the package's weights lie on."""
    grid = trained.metadata.get(BASE_GRID)
    others = [layer for layer in trained.matrices if grid not in (None, checkpoint.grid(f"{layer}.weight"))]
    if not others:
        return ()
    return (
        f"The adapter learned on weights on the grid {grid}; {len(others)} of its {len(trained.matrices)} layers are "
        "stored otherwise in this package.",
    )


def _folded(trained: _Trained, checkpoint: Checkpoint, scales: ChannelScales) -> dict[str, Array]:
    """Return the tensors to write: A as its projection's columns are in the graph, and B as the rows are."""
    rows = FoldedCheckpoint(_OutputSides(checkpoint, trained))
    tensors = {}
    for layer, (a, _) in trained.matrices.items():
        name_a, name_b = tensor_names(layer)
        with np.errstate(over="ignore", invalid="ignore"):  # export_adapter looks for what is not finite
            b = rows.tensor(f"{layer}.weight")
            tensors[name_a] = a * scales.multipliers.get(layer, np.float32(1))
            tensors[name_b] = b / scales.divisors[layer][:, None] if layer in scales.divisors else b
    return tensors


class _OutputSides(CheckpointView):
    """Show an adapter's B in the place of each weight: the exporter folds into rows, and both have the same."""

    def __init__(self, checkpoint: Checkpoint, trained: _Trained) -> None:
        super().__init__(checkpoint)
        self._trained = trained

    def tensor(self, name: str) -> Array:
        """Return the matrix B [N, R] of a layer."""
        return self._trained.matrices[name.removesuffix(".weight")][1]
