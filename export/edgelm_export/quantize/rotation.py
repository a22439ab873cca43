"""Rotation: an orthogonal turn of the residual stream, folded into every weight that reads or writes it.

A few channels with massive activations are what 8-bit activations cannot hold; turned, their size is spread over all
channels. The turn is a random one (QuaRot, arXiv:2404.00456, with a random orthogonal matrix in place of a Hadamard
one, so that any width will do), and what the norms scale by moves into the projections behind them. The model stays
what it was. A tied head becomes a matrix of its own, since the last norm's scale is in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, Checkpoint, QuantizedBlocks
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.tensor_map import EMBEDDING, HEAD, head_name, pattern_of
from edgelm_export.reference.weights import Array

_FINAL_NORM = "model.norm.weight"
# Readers of the residual stream, by the norm before them; writers turn their rows.
_READERS = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    "self_attn.v_proj": "input_layernorm",
    "conv.in_proj": "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.up_proj": "post_attention_layernorm",
}
_WRITERS = ("self_attn.o_proj", "conv.out_proj", "mlp.down_proj")
_LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")
_KNOWN = {*_READERS, *_WRITERS, *_LAYER_NORMS, "self_attn.q_norm", "self_attn.k_norm", "conv.conv"}
_SEED = 20_260


class RotatedCheckpoint(CheckpointView):
    """Show a checkpoint with its residual stream turned.

    Raises:
        ExportError: the model has a part that does not allow for it: layer norms (their mean is no turn's business),
            positions that are added, or tensors beyond the plain decoder's.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        config = checkpoint.config
        stems = {
            pattern_of(name)[0].rpartition(".")[0].removeprefix("model.layers.{i}.") for name in config.tensor_shapes()
        }
        unknown = sorted(stems - _KNOWN - {"model.embed_tokens", "model.norm", "lm_head"})
        plain = config.norm == "rms" and config.norm_placement == "pre" and config.position in ("rope", "none")
        if not plain or unknown:
            norms = f"{config.norm} norms, placed {config.norm_placement}"
            parts = ", ".join([norms, f"{config.position} positions", *unknown])
            raise ExportError(
                f"A {config.model_type} model cannot be rotated: it has {parts}. Rotation is for models with "
                "RMS norms, rope, and plain attention and feed-forward. Take a recipe without it."
            )
        self._config = dataclasses.replace(config, tie_word_embeddings=False)
        random = np.random.Generator(np.random.PCG64(_SEED))
        q, r = np.linalg.qr(random.standard_normal((config.hidden_size, config.hidden_size)))
        self._turn_DD: Array = (q * np.sign(np.diag(r))).astype(np.float32)

    @property
    def config(self) -> ModelConfig:
        """The model's features; its head is a matrix of its own."""
        return self._config

    @cached_property
    def hf_config(self) -> Mapping[str, Any]:
        """The config.json that transformers reads, with an untied head."""
        return {**self._checkpoint.hf_config, "tie_word_embeddings": False}

    @property
    def head_divisors(self) -> None:
        """Nothing is divided: the head reads other channels."""

    def stored_type(self, name: str) -> str:
        """Return F32: no tensor is as it was on disk."""
        return "F32"

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return None: a turned weight is on no grid."""
        return None

    def tensor(self, name: str) -> Array:
        """Read one tensor, turned."""
        if name == HEAD:
            head_VD = self._checkpoint.tensor(head_name(self._checkpoint.config))
            return np.asarray((head_VD * self._norm(_FINAL_NORM)) @ self._turn_DD, np.float32)
        tensor = self._checkpoint.tensor(name)
        if name == EMBEDDING:
            return tensor @ self._turn_DD
        if name == _FINAL_NORM:
            return np.ones_like(tensor)
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        module, _, kind = rest.rpartition(".")
        if module in _LAYER_NORMS:
            return np.ones_like(tensor)
        if module in _READERS and kind == "weight":
            norm = self._norm(f"model.layers.{layer}.{_READERS[module]}.weight")
            return np.asarray((tensor * norm) @ self._turn_DD, np.float32)
        if module in _WRITERS:
            return self._turn_DD.T @ tensor
        return tensor  # a bias behind a reader, a norm of the heads

    def _norm(self, name: str) -> Array | np.float32:
        """Read what a norm scales by; one, where the model has none there."""
        return self._checkpoint.tensor(name) if name in self._checkpoint.config.tensor_shapes() else np.float32(1)
