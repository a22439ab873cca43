"""llama.cpp's quantized files with an importance matrix: how large the inputs of each projection are on a text.

The matrix is what llama.cpp's own tool computes: the mean square of each input channel of each projection. Here the
numpy forward pass of the source reads the text, the one that edgelm calibrates on, so that both have seen the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.quantize.calibration_text import CalibrationOptions, calibration_sequences
from edgelm_export.reference import model as reference
from edgelm_export.reference.weights import ObservedWeights
from edgelm_export.sources.text_tools import text_tools

Importance = Mapping[str, NDArray[np.float32]]


def importance_matrix(checkpoint: Checkpoint) -> Importance:
    """Return the mean squares [K] of each projection's inputs, by llama.cpp's names of the weights."""
    config = checkpoint.config
    family = ARCHITECTURES[config.model_type].gguf
    if family is None:
        raise click.ClickException(f"llama.cpp has no architecture for {config.model_type}.")
    sequences = calibration_sequences(CalibrationOptions(), *text_tools(checkpoint), config)
    tokens = sum(len(ids) for ids in sequences)
    tables, hidden = reference.position_tables(config, sequences), reference.embed(checkpoint, sequences)
    means: dict[str, NDArray[np.float32]] = {}
    for layer in range(config.num_hidden_layers):
        weights = reference.layer_weights(checkpoint, layer)
        sums: dict[str, NDArray[np.float64]] = {}

        def observe(module: str, inputs_TK: NDArray[np.float32], sums: dict[str, NDArray[np.float64]] = sums) -> None:
            sums[module] = sums.get(module, 0) + np.square(inputs_TK.astype(np.float64)).sum(0)

        observed = ObservedWeights(weights, observe)
        hidden = [reference.run_layer(config, layer, observed, hidden_TD, tables) for hidden_TD in hidden]
        for module, sum_K in sums.items():
            name = family.layout.source_name(f"model.layers.{layer}.{module}.weight")
            means[name] = (sum_K / tokens).astype(np.float32)
    return means


@cache
def _no_log() -> object:
    """Return a callback that outlives this module's calls: llama.cpp goes on to call what it was given last."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def quantize_gguf(source: Path, target: Path, kind: str, importance: Importance | None = None) -> None:
    """Let llama.cpp quantize a GGUF file to a type such as Q4_K_M, by an importance matrix where one is given."""
    import llama_cpp

    llama_cpp.llama_log_set(_no_log(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.allow_requantize = True
    if importance is not None:
        rows = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()  # the last one has no name: the end
        for row, (name, mean_K) in zip(rows, importance.items(), strict=False):
            row.name, row.size = name.encode(), mean_K.size
            row.data = mean_K.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = rows
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise click.ClickException(f"llama.cpp cannot quantize {source.name} to {kind}.")
