"""Calibration: run the source on a text layer by layer, and quantize each layer for the inputs that it meets there.

The source runs beside the layers as they are after quantization: each projection is quantized for the inputs that it
will really meet, at the moment when they come to it, and its weights lean towards what makes up for the error in those
(as GPTAQ does, arXiv:2504.02692) and in the residual stream that it writes to. One layer of the source, and the
activations of the text, are in memory at a time; each layer's results go to disk, and a calibration that was stopped
goes on behind the last whole layer.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgelm.architecture.quantization_recipe import Precision, integer_scheme_for, scheme_for
from edgelm.architecture.quantization_scheme import Scheme
from edgelm_export.checkpoints.checked import Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.tensor_map import GATHERED
from edgelm_export.quantize.in_passing import LayerInPassing
from edgelm_export.quantize.packed import PackedWeight, rows_of, unpack
from edgelm_export.quantize.portions import Stored
from edgelm_export.quantize.prepared import PreparedCheckpoint, layer_path, save_layer
from edgelm_export.quantize.stored import quantize
from edgelm_export.reference import model as reference
from edgelm_export.reference.weights import Array, ObservedWeights, Weights

_STATE = "entering.npz"
_FORMAT = 3  # of the results on the disk; those of another are not taken


def calibrate(
    checkpoint: Checkpoint,
    precision: Precision,
    sequences: Sequence[Sequence[int]],
    folder: Path,
    progress: Progress,
) -> PreparedCheckpoint:
    """Quantize the layers of a checkpoint for the inputs that `sequences` of token ids give them.

    folder: where each layer's results are kept; those of a run of the same `calibration_name` that was stopped are
    taken. What the precision folds into the weights is in those of `checkpoint` already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config
    layers, done = config.num_hidden_layers, 0
    while _is_whole(layer_path(folder, done)):
        done += 1
    if done < layers:
        resumed = _resumed(folder, done)
        hidden, done = resumed or (_entering(checkpoint, precision, sequences), 0)
        run = _Calibration(checkpoint, precision, sequences)
        for layer in range(done, layers):
            progress("calibrate", layer, layers)
            tensors, hidden = run.layer(layer, hidden)
            save_layer(folder, layer, tensors)
            _save_state(folder, layer + 1, hidden)
    progress("calibrate", layers, layers)
    return PreparedCheckpoint(checkpoint, folder)


@dataclass(frozen=True, kw_only=True)
class _Hidden:
    """What enters a layer, [T, W] of all sequences (wide_stream.py): in the source, and behind what is quantized."""

    source_TW: Array
    package_TW: Array


def _entering(checkpoint: Checkpoint, precision: Precision, sequences: Sequence[Sequence[int]]) -> _Hidden:
    """Return what enters the first layer, in the package by the embedding as it is stored there."""
    recipe = precision.recipe(checkpoint.config)
    here = [name for name in GATHERED if name in checkpoint.config.tensor_shapes()]
    stored = _WithEmbeddings(checkpoint, {name: quantize(checkpoint, name, scheme_for(recipe, name)) for name in here})
    source, package = (np.concatenate(reference.embed(each, sequences)) for each in (checkpoint, stored))
    return _Hidden(source_TW=source, package_TW=package)


class _WithEmbeddings(CheckpointView):
    def __init__(self, checkpoint: Checkpoint, embeddings: Mapping[str, Stored]) -> None:
        super().__init__(checkpoint)
        self._embeddings = embeddings

    def tensor(self, name: str) -> Array:
        """Read one tensor, an embedding as the package has it."""
        embedding = self._embeddings.get(name)
        if embedding is None:
            return self._checkpoint.tensor(name)
        return unpack(embedding) if isinstance(embedding, PackedWeight) else embedding.astype(np.float32)

    def rows(self, name: str, first: int, end: int) -> Array:
        """Read some rows of a matrix, of an embedding as the package has them."""
        embedding = self._embeddings.get(name)
        if embedding is None:
            return self._checkpoint.rows(name, first, end)
        if isinstance(embedding, PackedWeight):
            return unpack(rows_of(embedding, slice(first, end)))
        return embedding[first:end].astype(np.float32)


class _Calibration:
    def __init__(self, checkpoint: Checkpoint, precision: Precision, sequences: Sequence[Sequence[int]]) -> None:
        self._checkpoint, self._config = checkpoint, checkpoint.config
        self._tables = reference.position_tables(checkpoint.config, sequences)
        self._lengths = [len(ids) for ids in sequences]
        self._recipe = precision.recipe(checkpoint.config)

    def layer(self, layer: int, hidden: _Hidden) -> tuple[dict[str, PackedWeight], _Hidden]:
        """Return a layer's tensors as the package will have them, and what leaves it then."""
        prefix = f"model.layers.{layer}."

        def scheme_of(module: str) -> Scheme | None:
            return integer_scheme_for(self._recipe, f"{prefix}{module}.weight")

        source = dict(reference.layer_weights(self._checkpoint, layer))
        following_TW, met = self._observed(layer, source, hidden.source_TW)
        lacking_TW = hidden.source_TW - hidden.package_TW
        lacking_TD = lacking_TW[:, : self._config.hidden_size] if self._writes_plainly else None
        passing = LayerInPassing(source, met, scheme_of, lacking_TD)
        package_TW = self._output(layer, passing.weights, hidden.package_TW)
        following = _Hidden(source_TW=following_TW, package_TW=package_TW)
        return {f"{prefix}{name}": packed for name, packed in passing.packed.items()}, following

    @property
    def _writes_plainly(self) -> bool:
        """Whether attention and feed-forward are added to the one residual stream, one after the other, as they are."""
        config = self._config
        one_by_one = not config.parallel_residual and config.altup_num_inputs == 1
        return config.norm_placement == "pre" and one_by_one and config.residual_multiplier == 1

    def _observed(self, layer: int, weights: Weights, hidden_TW: Array) -> tuple[Array, dict[str, Array]]:
        """Return what leaves the layer, and what each projection meets."""
        met: dict[str, Array] = {}
        return self._output(layer, ObservedWeights(weights, met.__setitem__), hidden_TW), met

    def _output(self, layer: int, weights: Weights, hidden_TW: Array) -> Array:
        return reference.run_layer(self._config, layer, weights, hidden_TW, self._tables, lengths=self._lengths)


def calibration_name(checkpoint: Checkpoint, precision: Precision, sequences: Sequence[Sequence[int]]) -> str:
    """Name a calibration for all that decides its result."""
    rows = precision.rows(checkpoint.config)
    source = [checkpoint.source.get("files"), checkpoint.config.to_dict()]
    described = json.dumps([_FORMAT, source, rows, [list(ids) for ids in sequences]], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _save_state(folder: Path, layer: int, hidden: _Hidden) -> None:
    """Write what enters `layer`, after the results of the one before it: killed in between, that is done again."""
    unfinished = folder / f"{_STATE}.unfinished"
    with unfinished.open("wb") as file:
        np.savez(file, layer=np.array(layer), source_TW=hidden.source_TW, package_TW=hidden.package_TW)
    unfinished.replace(folder / _STATE)


def _is_whole(path: Path) -> bool:
    """Tell whether a file of arrays is there and undamaged: a machine that lost its power may leave another."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile raises a dozen classes on a broken file
        return False


def _resumed(folder: Path, done: int) -> tuple[_Hidden, int] | None:
    """Read what enters the first layer that is to be done; None where nothing is there to go on from."""
    path = folder / _STATE
    if not _is_whole(path):
        return None
    with np.load(path) as stored:
        layer = int(stored["layer"])
        if layer > done:
            return None
        return _Hidden(source_TW=stored["source_TW"], package_TW=stored["package_TW"]), layer
