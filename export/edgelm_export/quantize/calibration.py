"""Calibration: run the source on a text layer by layer, and quantize each layer for the inputs that it meets there.

The source runs beside the layers as they are after quantization: each layer is quantized for the inputs that it will
really meet, and its weights lean towards what makes up for the error in those (as GPTAQ does, arXiv:2504.02692). One
layer of the source, and the activations of the text, are in memory at a time; each layer's results go to disk, and a
calibration that was stopped goes on behind the last whole layer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_recipe import TRANSFORMS, Precision, scheme_for
from edgelm.architecture.quantization_scheme import Scheme, parse_scheme
from edgelm.errors import ExportError
from edgelm_export import reference
from edgelm_export.checked import Progress
from edgelm_export.checkpoint import Checkpoint
from edgelm_export.quantize.folding import fold
from edgelm_export.quantize.gptq import quantize_gptq
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import unpack
from edgelm_export.quantize.prepared import Prepared, PreparedCheckpoint, layer_path, save_layer
from edgelm_export.quantize.statistics import LayerStatistics

Array = NDArray[np.float32]
Weights = dict[str, Array]
Tables = Mapping[str, tuple[Array, Array]]  # what reference.position_tables returns

# Folding changes nothing but the order of float32's sums; the largest seen is 3e-6 of the largest activation.
_FOLDING_TOLERANCE = 1e-3
_STATE = "hidden.npz"
_EXPERT = re.compile(r"\.experts\.\d+\.\w+\.weight$")


def calibrate(
    checkpoint: Checkpoint,
    precision: Precision,
    sequences: Sequence[Sequence[int]],
    folder: Path,
    progress: Progress,
) -> PreparedCheckpoint:
    """Quantize the layers of a checkpoint for the inputs that `sequences` of token ids give them.

    folder: where each layer's results are kept; what another run has left there is taken where it fits.

    Raises:
        ExportError: the model has a part that the precision's transforms cannot be folded into.
    """
    folder = folder / _digest(checkpoint, precision, sequences)
    folder.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config
    layers, done = config.num_hidden_layers, 0
    while layer_path(folder, done).exists():
        done += 1
    if done < layers:
        resumed = _resumed(folder, done)
        hidden, done = resumed or (_Hidden.start(reference.embed(checkpoint, sequences)), 0)
        run = _Calibration(checkpoint, precision, reference.position_tables(config, sequences))
        for layer in range(done, layers):
            progress("calibrate", layer, layers)
            tensors, hidden = run.layer(layer, hidden)
            save_layer(folder, layer, tensors)
            _save_state(folder, layer + 1, hidden)
    progress("calibrate", layers, layers)
    return PreparedCheckpoint(checkpoint, folder)


@dataclass(frozen=True, kw_only=True)
class _Hidden:
    """What enters a layer, [T, D] for each sequence: in the source, and behind quantized layers."""

    source: list[Array]
    package: list[Array]

    @classmethod
    def start(cls, embedded: list[Array]) -> _Hidden:
        return cls(source=embedded, package=[hidden_TD.copy() for hidden_TD in embedded])


class _Calibration:
    def __init__(self, checkpoint: Checkpoint, precision: Precision, tables: Tables) -> None:
        self._checkpoint, self._config, self._tables = checkpoint, checkpoint.config, tables
        self._recipe = precision.recipe(checkpoint.config)
        self._transforms = [name for name in TRANSFORMS if name in precision.transforms and name != "rotate"]

    def layer(self, layer: int, hidden: _Hidden) -> tuple[dict[str, Prepared], _Hidden]:
        """Return a layer's tensors as the package will have them, and what leaves it then."""
        prefix = f"model.layers.{layer}."

        def scheme_of(module: str) -> Scheme | None:
            scheme = parse_scheme(scheme_for(self._recipe, f"{prefix}{module}.weight"))
            return scheme if isinstance(scheme, Scheme) else None

        source = dict(reference.layer_weights(self._checkpoint, layer))
        weights = dict(source)
        statistics, following = self._observed(layer, source, hidden)
        for transform in self._transforms:
            weights, statistics = fold(transform, self._config, weights, statistics, scheme_of)
        if self._transforms:
            self._refuse_other_outputs(layer, source, weights, hidden.source[0])
        changed = {name: weights[name] for name in weights if weights[name] is not source[name]}
        tensors: dict[str, Prepared] = {f"{prefix}{name}": tensor for name, tensor in changed.items()}
        for module, inputs in statistics.of_module.items():
            name, scheme = f"{module}.weight", scheme_of(module)
            if scheme is None or weights[name].ndim != 2:
                continue
            packed = (
                quantize_gptq(weights[name], inputs, scheme)
                if scheme.method == "gptq"
                else quantize_alone(weights[name], scheme)
            )
            tensors[f"{prefix}{name}"], weights[name] = packed, unpack(packed)
        for name in [name for name in weights if _EXPERT.search(name) and f"{prefix}{name}" not in tensors]:
            # Too few tokens of the text came to this expert, or others did behind quantized layers.
            scheme = scheme_of(name.removesuffix(".weight"))
            if scheme is not None:
                method = "rounded" if scheme.bits == 8 else "searched"
                alone = dataclasses.replace(scheme, method=method if scheme.method == "gptq" else scheme.method)
                packed = quantize_alone(weights[name], alone)
                tensors[f"{prefix}{name}"], weights[name] = packed, unpack(packed)
        return tensors, _Hidden(source=following, package=self._outputs(layer, weights, hidden.package))

    def _observed(self, layer: int, weights: Weights, hidden: _Hidden) -> tuple[LayerStatistics, list[Array]]:
        """Return what the projections meet, and what leaves the layer in the source."""
        statistics, following = LayerStatistics(), []
        for source_TD, package_TD in zip(hidden.source, hidden.package, strict=True):
            met: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
            for inputs, hidden_TD in zip(met, (source_TD, package_TD), strict=True):
                observed = reference.ObservedWeights(weights, inputs.__setitem__)
                (output_TD,) = self._outputs(layer, observed, [hidden_TD])
                if hidden_TD is source_TD:
                    following.append(output_TD)
            statistics.add(*met)
        return statistics, following

    def _outputs(self, layer: int, weights: Mapping[str, Array], hidden: list[Array]) -> list[Array]:
        return [reference.run_layer(self._config, layer, weights, hidden_TD, self._tables) for hidden_TD in hidden]

    def _refuse_other_outputs(self, layer: int, source: Weights, folded: Weights, hidden_TD: Array) -> None:
        (wanted,), (got,) = self._outputs(layer, source, [hidden_TD]), self._outputs(layer, folded, [hidden_TD])
        difference = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        if not difference < _FOLDING_TOLERANCE:
            raise ExportError(
                f"{' and '.join(self._transforms)} would change what layer {layer} computes, by {difference:.2g} of "
                f"its largest output: a {self._config.model_type} model has a part that scales cannot be folded into. "
                "Take a recipe without transforms."
            )


def _digest(checkpoint: Checkpoint, precision: Precision, sequences: Sequence[Sequence[int]]) -> str:
    """Name a calibration for all that decides its result."""
    rows = precision.rows(checkpoint.config)
    described = json.dumps([checkpoint.source.get("files"), rows, [list(ids) for ids in sequences]], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _save_state(folder: Path, layer: int, hidden: _Hidden) -> None:
    """Write what enters `layer`, after the results of the one before it: killed in between, that is done again."""
    unfinished = folder / f"{_STATE}.unfinished"
    with unfinished.open("wb") as file:
        arrays: dict[str, Any] = {f"source{i}": hidden_TD for i, hidden_TD in enumerate(hidden.source)}
        arrays |= {f"package{i}": hidden_TD for i, hidden_TD in enumerate(hidden.package)}
        np.savez(file, layer=np.array(layer), **arrays)
    unfinished.replace(folder / _STATE)


def _resumed(folder: Path, done: int) -> tuple[_Hidden, int] | None:
    """Read what enters the first layer that is to be done; None where nothing is there to go on from."""
    path = folder / _STATE
    if not path.exists():
        return None
    with np.load(path) as stored:
        layer = int(stored["layer"])
        if layer > done:
            return None
        count = len(stored.files) // 2
        source, package = ([stored[f"{kind}{i}"] for i in range(count)] for kind in ("source", "package"))
    return _Hidden(source=source, package=package), layer
