"""The head's channels: what it reads is divided by scales, and the weights that it stores are multiplied by them.

SmoothQuant (arXiv:2211.10438) chooses the scales. Where the head is the embedding too, rows that are looked up are
divided again, so that channels with small scales come out coarser there. So both ways are tried on some tokens, with
weights and inputs rounded as the package has them, and what diverges less is taken.
Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgelm.architecture.quantization_recipe import Rule, integer_scheme_for
from edgelm.architecture.quantization_scheme import Scheme
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.tensor_map import EMBEDDING, PER_LAYER_EMBEDDING, head_name
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import unpack
from edgelm_export.quantize.sensitivity import mean_divergence
from edgelm_export.reference import model as reference
from edgelm_export.reference.weights import Array

Product = Callable[[Array], Array]  # of what the head reads [T, D] and its weights: [T, V]

_TOKENS = 128
_CLEARLY_LESS = 0.85  # on so few tokens, a tenth less may be nothing on others (docs/results/quantization.md)
_ROWS_AT_ONCE = 4096
_LARGEST = np.float32(127)  # of an input in 8 bits


def better_divisors(
    checkpoint: Checkpoint,
    recipe: tuple[Rule, ...],
    divisors_D: Array,
    ids: Sequence[int],
    hidden_TD: Array,
) -> Array | None:
    """Return divisors for what the head reads, where the package diverges clearly less with them; else None.

    ids: tokens of a text. hidden_TD: what leaves the last layer for them.
    """
    scheme = integer_scheme_for(recipe, head_name(checkpoint.config))
    assert scheme is not None  # a head in floats has nothing to gain
    scheme = dataclasses.replace(scheme, method="rounded")
    ids, hidden_TD = ids[:_TOKENS], hidden_TD[:_TOKENS]
    ways = [np.ones_like(divisors_D), divisors_D]
    hidden = [hidden_TD] * len(ways)
    if checkpoint.config.tie_word_embeddings:
        hidden = _run(checkpoint, [_looked_up(checkpoint, scheme, way, ids) for way in ways])
    (source_TV,) = reference.head_logits(checkpoint, [hidden_TD])
    head_VD = checkpoint.tensor(head_name(checkpoint.config))
    losses = []
    for way_D, way_TD in zip(ways, hidden, strict=True):
        (logits_TV,) = reference.head_logits(checkpoint, [way_TD], _rounded_product(head_VD, way_D, scheme))
        losses.append(mean_divergence(source_TV, logits_TV))
    return divisors_D if losses[1] < _CLEARLY_LESS * losses[0] else None


def _looked_up(checkpoint: Checkpoint, scheme: Scheme, divisors_D: Array, ids: Sequence[int]) -> Array:
    """Return what enters the first layer for some tokens, [T, D], with the embedding on its grid."""
    rows_TD = checkpoint.tensor(EMBEDDING)[np.asarray(ids, np.int64)]
    rows = {EMBEDDING: unpack(quantize_alone(rows_TD * divisors_D, scheme)) / divisors_D}
    if checkpoint.config.hidden_size_per_layer_input:
        rows[PER_LAYER_EMBEDDING] = reference.looked_up(checkpoint, PER_LAYER_EMBEDDING, [ids])[0]
    (hidden_TD,) = reference.embed(_Rows(checkpoint, rows), [range(len(ids))])
    return hidden_TD


def _run(checkpoint: Checkpoint, hidden: list[Array]) -> list[Array]:
    """Run the source's layers on several versions of one text; each layer is read once."""
    config = checkpoint.config
    tables = reference.position_tables(config, [range(len(hidden[0]))])
    for layer in range(config.num_hidden_layers):
        weights = dict(reference.layer_weights(checkpoint, layer))
        hidden = [reference.run_layer(config, layer, weights, hidden_TD, tables) for hidden_TD in hidden]
    return hidden


def _rounded_product(head_VD: Array, divisors_D: Array, scheme: Scheme) -> Product:
    """Return the product as MatMulNBits computes it: a part of the rows at a time, as they take several copies."""

    def product(read_TD: Array) -> Array:
        inputs_TD = _rounded_inputs(read_TD / divisors_D, scheme.block_size)
        parts = (head_VD[start : start + _ROWS_AT_ONCE] for start in range(0, len(head_VD), _ROWS_AT_ONCE))
        stored = (unpack(quantize_alone(part * divisors_D, scheme)) for part in parts)
        return np.concatenate([inputs_TD @ part.T for part in stored], axis=1)

    return product


def _rounded_inputs(inputs_TD: Array, block_size: int) -> Array:
    """Round inputs as MatMulNBits does: 8 bits, and a scale for each block."""
    T, D = inputs_TD.shape
    blocks = np.pad(inputs_TD, ((0, 0), (0, -D % block_size))).reshape(T, -1, block_size)
    steps = np.maximum(np.abs(blocks).max(-1, keepdims=True) / _LARGEST, np.finfo(np.float32).tiny)
    return np.asarray((np.rint(blocks / steps) * steps).reshape(T, -1)[:, :D])


class _Rows(CheckpointView):
    """Show a checkpoint with some rows of its embeddings alone."""

    def __init__(self, checkpoint: Checkpoint, rows: Mapping[str, Array]) -> None:
        super().__init__(checkpoint)
        self._rows = rows

    def tensor(self, name: str) -> Array:
        """Read one tensor."""
        rows = self._rows.get(name)
        return self._checkpoint.tensor(name) if rows is None else rows
