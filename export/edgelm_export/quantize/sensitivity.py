"""Sensitivity: what each group of tensors costs when it alone is quantized, as KL divergence of the logits.

One pass over the source serves all groups: where a group is quantized, a copy of the activations branches off and runs
on beside the others, so that each layer is read once, and none is computed twice for what lies before the branch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from edgelm.architecture.quantization_recipe import LATENT_HEADS, RATES, STREAMS
from edgelm.architecture.quantization_scheme import Scheme
from edgelm.config import ModelConfig
from edgelm_export.checkpoints.checked import Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.tensor_map import EMBEDDING, HEAD, PER_LAYER_EMBEDDING
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import unpack
from edgelm_export.reference import model as reference
from edgelm_export.reference.weights import Array

# Tensors that the graph stacks into one product have to be alike.
_STACKED = ((re.compile(r"\.[qkv]_proj\."), ".qkv_proj."), (re.compile(r"\.(?:gate|up)_proj\."), ".gate_up_proj."))
# What a graph holds in float32 whatever a recipe says, as it does all that is no matrix.
_PLAIN = re.compile(r"embed_positions|relative_attention_bias|\.A_log$|\.mlp\.(?:shared_expert_)?gate\.weight")
# What stays in floats, or in 8 bits, whatever a recipe says of the others.
_FIXED = re.compile(f"{RATES}|{STREAMS}|{LATENT_HEADS}")
_OF_EXPERT = re.compile(r"\.experts\.\d+\..*")
_ROWS_AT_ONCE = 32
# What all layers read, of which the embedding may be the head too; and what reads them all.
_EMBEDDINGS = (EMBEDDING, PER_LAYER_EMBEDDING, "model.per_layer_model_projection.weight", "model.altup_projections.")
_ENDS = (HEAD, "model.altup_unembed_projections.", "model.head_dense.")


def matrices(config: ModelConfig) -> list[str]:
    """Return the tensors that are stored as a recipe says."""
    return [name for name, shape in config.tensor_shapes().items() if len(shape) == 2 and not _PLAIN.search(name)]


def tensor_groups(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the matrices that take one scheme together: q, k and v; gate and up; a layer's experts; else alone.

    One operator computes a layer's experts, on one grid.
    """
    groups: dict[str, list[str]] = {}
    for name in matrices(checkpoint.config):
        if _FIXED.search(name) is None:
            key = _OF_EXPERT.sub(".experts", name)
            for pattern, stacked in _STACKED:
                key = pattern.sub(stacked, key)
            groups.setdefault(key.removesuffix(".weight"), []).append(name)
    return groups


def measure_sensitivity(
    checkpoint: Checkpoint,
    groups: dict[str, list[str]],
    schemes: dict[str, Scheme],
    sequences: Sequence[Sequence[int]],
    progress: Progress,
) -> dict[str, float]:
    """Return the mean KL(source || source with that group quantized) in nats a token, for each group.

    schemes: what each group is quantized by. Memory is one layer, and the activations of `sequences` once for each
    group.
    """
    config, layers = checkpoint.config, checkpoint.config.num_hidden_layers
    tables = reference.position_tables(config, sequences)
    plain = reference.embed(checkpoint, sequences)
    branches: dict[str, list[Array]] = {}
    rounded_ends: dict[str, Checkpoint] = {
        name: _Rounded(checkpoint, names, schemes[name])
        for name, names in groups.items()
        if names[0].startswith((*_EMBEDDINGS, *_ENDS))
    }
    for name, view in rounded_ends.items():
        branches[name] = reference.embed(view, sequences) if groups[name][0].startswith(_EMBEDDINGS) else plain
    # Each layer runs once for each branch, so that the last one takes longer than all of the first few.
    runs, done = _runs(groups, layers), 0
    for layer in range(layers):
        progress("sensitivity", done, sum(runs))
        done += runs[layer]
        weights = dict(reference.layer_weights(checkpoint, layer))
        for name, hidden in branches.items():
            if hidden is not plain:
                branches[name] = [reference.run_layer(config, layer, weights, h_TD, tables) for h_TD in hidden]
        prefix = f"model.layers.{layer}."
        for name, names in groups.items():
            if names[0].startswith(prefix):
                rounded = dict(weights)
                for tensor in names:
                    short = tensor.removeprefix(prefix)
                    rounded[short] = unpack(quantize_alone(weights[short], schemes[name]))
                branches[name] = [reference.run_layer(config, layer, rounded, h_TD, tables) for h_TD in plain]
        following = [reference.run_layer(config, layer, weights, h_TD, tables) for h_TD in plain]
        branches = {name: following if hidden is plain else hidden for name, hidden in branches.items()}
        plain = following
    progress("sensitivity", done, done)
    measured = dict.fromkeys(groups, 0.0)
    source = list(reference.head_logits(checkpoint, plain))
    for i, (name, hidden) in enumerate(branches.items()):
        progress("logits", i, len(branches))  # of a small model, as long as a third of its layers
        view = rounded_ends.get(name, checkpoint)
        pairs = zip(source, reference.head_logits(view, hidden), strict=True)
        measured[name] = float(np.mean([mean_divergence(wanted, got) for wanted, got in pairs]))
    progress("logits", len(branches), len(branches))
    return measured


def _runs(groups: dict[str, list[str]], layers: int) -> list[int]:
    """Return how often each layer runs: for the source, and for each group that lies before its end."""
    of_embedding = sum(names[0].startswith(_EMBEDDINGS) for names in groups.values())
    of_layers = [
        sum(names[0].startswith(f"model.layers.{layer}.") for names in groups.values()) for layer in range(layers)
    ]
    return [1 + of_embedding + sum(of_layers[: layer + 1]) for layer in range(layers)]


class _Rounded(CheckpointView):
    """A checkpoint with what stands before the layers, or behind them, quantized."""

    def __init__(self, checkpoint: Checkpoint, names: list[str], scheme: Scheme) -> None:
        super().__init__(checkpoint)
        self._rounded, self._scheme = names, scheme

    def tensor(self, name: str) -> Array:
        """Read one tensor, rounded if it is one of those."""
        tensor = self._checkpoint.tensor(name)
        return unpack(quantize_alone(tensor, self._scheme)) if name in self._rounded else tensor

    def rows(self, name: str, first: int, end: int) -> Array:
        """Read some rows of a matrix, rounded if it is one of those: they do not know of each other."""
        rows = self._checkpoint.rows(name, first, end)
        return unpack(quantize_alone(rows, self._scheme)) if name in self._rounded else rows


def mean_divergence(source_TV: Array, other_TV: Array) -> float:
    """Return the mean KL(source || other) of rows of logits, in nats."""
    total = 0.0
    for start in range(0, len(source_TV), _ROWS_AT_ONCE):
        source, other = (
            reference.log_softmax(logits[start : start + _ROWS_AT_ONCE]) for logits in (source_TV, other_TV)
        )
        total += float((np.exp(source) * (source - other)).sum())
    return total / len(source_TV)
