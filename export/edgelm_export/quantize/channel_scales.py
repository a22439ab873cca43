"""ChannelScales: by what the channels between two parts of a layer are divided, and the weights behind multiplied.

What makes the inputs of a projection (a norm, or another projection) is divided by the scales, and the projections that
read them are multiplied by the same: the model stays what it was, and nothing is added at run time. Their file stays in
the package, because an adapter beside it reads the same divided inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm.files.safetensors_reader import parse_matrices
from edgelm.package.manifest import Manifest, read_checked
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, Checkpoint, QuantizedBlocks
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.safetensors_writer import TensorSpec, write_safetensors
from edgelm_export.checkpoints.tensor_map import head_name
from edgelm_export.reference.weights import Array

CHANNEL_SCALES_FILE = "channel_scales.safetensors"


@dataclass(frozen=True, kw_only=True)
class ScaledChannels:
    """What can be divided and multiplied in one layer: the maker of an input, and the projections that read it.

    of_heads: they are the channels of value heads, each read by the query heads that share it.
    """

    maker: str
    readers: tuple[str, ...]
    of_heads: bool = False


def scaled_channels(config: ModelConfig, layer: int) -> list[ScaledChannels]:
    """List what can be scaled in a layer, such as "input_layernorm" for "self_attn.q_proj", k and v.

    A norm without weights makes nothing that could be divided, one that experts read is left alone, a feed-forward
    without a gate is not linear in what its first projection makes, nor what is in attention's place in its channels.
    Values that are normed, or are keys too, or are looked at by other layers, are left alone.
    """
    norms = {} if config.norm.endswith("_plain") else _readers_of_norms(config, layer)
    found = [ScaledChannels(maker=norm, readers=tuple(names)) for norm, names in norms.items() if norm is not None]
    if config.sub_norms:  # which stand between the two that are scaled else
        return found
    attends, is_latent = config.attends(layer), config.kv_lora_rank is not None
    if attends and not (config.v_norm or config.attention_k_eq_v or config.num_kv_shared_layers or is_latent):
        found.append(ScaledChannels(maker="self_attn.v_proj", readers=("self_attn.o_proj",), of_heads=True))
    if config.mlp_gated and config.has_feed_forward(layer) and not config.has_experts(layer):
        found.append(ScaledChannels(maker="mlp.up_proj", readers=("mlp.down_proj",)))
    return found


def _readers_of_norms(config: ModelConfig, layer: int) -> dict[str | None, list[str]]:
    """List the projections that read each norm of a layer, in the norms' order; None is no norm."""
    before_attention, _, before_feed_forward, _ = config.block_norms(layer)
    if config.is_conv(layer):
        attending = ["conv.in_proj"]
    elif config.kind(layer) == "linear_attention":
        attending = [f"linear_attn.in_proj_{part}" for part in ("qkv", "z", "b", "a")]
    elif config.kind(layer) == "mamba":
        attending = ["mamba.in_proj_x", "mamba.in_proj_z"]
    else:
        attending = _reading_attention(config, layer) if config.attends(layer) else []
        attending += [f"mamba.in_proj_{part}" for part in ("z", "xbc", "dt")] if config.has_mamba2(layer) else []
    # What goes beside attention reads its norm too, as it is.
    readers: dict[str | None, list[str]] = {} if config.laurel_rank else {before_attention: attending}
    if config.has_experts(layer):
        readers.pop(before_feed_forward, None)
    else:
        feed_forward = [f"mlp.{part}_proj" for part in (("gate", "up") if config.mlp_gated else ("up",))]
        readers.setdefault(before_feed_forward, []).extend(feed_forward)
    if config.sub_norms:
        readers["mlp.ffn_sub_norm"] = ["mlp.down_proj"]
        if config.attends(layer):
            readers["self_attn.attn_sub_norm"] = ["self_attn.o_proj"]
    elif config.q_lora_rank is not None and config.attends(layer):
        readers["self_attn.q_a_layernorm"] = ["self_attn.q_b_proj"]
    return readers


def _reading_attention(config: ModelConfig, layer: int) -> list[str]:
    """List the projections that attention reads its input with."""
    if config.kv_lora_rank is not None:
        queries = "q_proj" if config.q_lora_rank is None else "q_a_proj"
        return [f"self_attn.{queries}", "self_attn.kv_a_proj_with_mqa"]
    parts = ["q", "k", "v"] if config.keys_of(layer) == layer else ["q"]
    parts += ["gate"] if config.attention_output_gate else []
    return [f"self_attn.{part}_proj" for part in parts if part != "v" or not config.keys_are_values(layer)]


class ChannelScales:
    """The scales of a model, by what they divide, such as "model.layers.0.input_layernorm": float32 [channels].

    head_divisors: of what the head reads, [D]. They stay beside the weights, as those are often the embedding's too.
    head_hessian: the products X^T X [D, D] of what the head's stored weights meet on a text. Both are in no file of the
    package: nothing that is added to it reads them.
    """

    def __init__(
        self,
        config: ModelConfig,
        divisors: Mapping[str, Array],
        head_divisors: Array | None = None,
        head_hessian: Array | None = None,
    ) -> None:
        self._config = config
        self.head_divisors, self.head_hessian = head_divisors, head_hessian
        self.divisors = dict(divisors)  # of the rows of projections, and of norms
        self.multipliers: dict[str, Array] = {}  # of the columns of projections
        for layer in range(config.num_hidden_layers):
            for channels in scaled_channels(config, layer):
                scales = self.divisors.get(f"model.layers.{layer}.{channels.maker}")
                if scales is None:
                    continue
                if channels.of_heads:
                    scales = _for_query_heads(config, scales, layer)
                self.multipliers |= {f"model.layers.{layer}.{reader}": scales for reader in channels.readers}

    def times(self, other: ChannelScales) -> ChannelScales:
        """Return both, one after the other."""
        products = {name: scales * other.divisors.get(name, np.float32(1)) for name, scales in self.divisors.items()}
        head = self.head_divisors if other.head_divisors is None else other.head_divisors
        hessian = self.head_hessian if other.head_hessian is None else other.head_hessian
        return ChannelScales(self._config, other.divisors | products, head, hessian)

    def changes(self, name: str) -> bool:
        """Tell whether a tensor is scaled."""
        module, _, kind = name.rpartition(".")
        return module in self.divisors or (kind == "weight" and module in self.multipliers)

    def applied(self, name: str, tensor: Array) -> Array:
        """Return a tensor of the checkpoint with its scales inside."""
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module in self.multipliers:
            tensor = tensor * self.multipliers[module]
        if module not in self.divisors:
            return tensor
        divisors = self.divisors[module]
        if tensor.ndim == 2:
            return np.asarray(tensor / divisors[:, None])
        # A norm of such a kind multiplies by 1 + weight.
        offset = np.float32(kind == "weight" and self._config.norm.endswith("_offset"))
        return np.asarray((tensor + offset) / divisors - offset)

    def save(self, folder: Path) -> None:
        """Write the file, each row of scales as a matrix [1, channels]."""
        specs = {name: TensorSpec(dtype="F32", shape=(1, len(scales))) for name, scales in self.divisors.items()}
        write_safetensors(folder / CHANNEL_SCALES_FILE, specs, lambda name: [self.divisors[name]], {})

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, config: ModelConfig) -> ChannelScales:
        """Read the file of a package.

        Raises:
            PackageError: the package has none, or it is damaged.
            ExportError: it does not fit the model.
        """
        path = folder / CHANNEL_SCALES_FILE
        matrices = parse_matrices(read_checked(folder, manifest.entry(CHANNEL_SCALES_FILE)), path)
        shapes = config.tensor_shapes()
        for name, scales in matrices.items():
            shape = shapes.get(f"{name}.weight", ())[:1]
            if scales.shape != (1, *shape) or not (scales > 0).all():
                raise ExportError(
                    f"{path} has {name[:200]} of the shape {list(scales.shape)}, from {scales.min(initial=1):.3g} up; "
                    f"by config.json it is {[1, *shape]}, and scales are above zero. Export or copy the package again."
                )
        return cls(config, {name: scales[0] for name, scales in matrices.items()})


class ScaledCheckpoint(CheckpointView):
    """Show a checkpoint with channel scales inside its tensors."""

    def __init__(self, checkpoint: Checkpoint, scales: ChannelScales) -> None:
        super().__init__(checkpoint)
        self._scales = scales

    @property
    def head_divisors(self) -> Array | None:
        """By what the graph is to divide what the head reads."""
        return self._checkpoint.head_divisors if self._scales.head_divisors is None else self._scales.head_divisors

    @property
    def head_hessian(self) -> Array | None:
        """The products X^T X [D, D] of what the head's stored weights meet on a text."""
        return self._checkpoint.head_hessian if self._scales.head_hessian is None else self._scales.head_hessian

    def stored_type(self, name: str) -> str:
        """Name the type of a tensor; what is scaled counts as F32."""
        return "F32" if self._scales.changes(name) else self._checkpoint.stored_type(name)

    def tensor(self, name: str) -> Array:
        """Read one tensor, with its scales inside."""
        return self._scales.applied(name, self._checkpoint.tensor(name))

    def rows(self, name: str, first: int, end: int) -> Array:
        """Read some rows of a matrix, with its scales inside."""
        return self.tensor(name)[first:end] if self._scales.changes(name) else self._checkpoint.rows(name, first, end)

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return a matrix on its own grid; scaled columns have left it."""
        moves_head = self._scales.head_divisors is not None and name == head_name(self.config)
        return None if moves_head or self._scales.changes(name) else self._checkpoint.quantized_blocks(name, rows)


class ScaledHead(CheckpointView):
    """Show a checkpoint with its `head_divisors` inside the head's weights, as a graph stores them."""

    def tensor(self, name: str) -> Array:
        """Read one tensor; the head with its divisors inside."""
        tensor, divisors = self._checkpoint.tensor(name), self.head_divisors
        return tensor if divisors is None or name != head_name(self.config) else tensor * divisors

    def rows(self, name: str, first: int, end: int) -> Array:
        """Read some rows of a matrix; the head's with its divisors inside."""
        rows, divisors = self._checkpoint.rows(name, first, end), self.head_divisors
        return rows if divisors is None or name != head_name(self.config) else rows * divisors


class PlainHead(CheckpointView):
    """Show a checkpoint whose head nothing is divided for, as a head in floats has no use for that."""

    @property
    def head_divisors(self) -> None:
        """Nothing is divided."""

    def rows(self, name: str, first: int, end: int) -> Array:
        """Read some rows of a matrix."""
        return self._checkpoint.rows(name, first, end)

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return a matrix on its own grid; that of a divided head is none of the head's weights."""
        is_divided = self._checkpoint.head_divisors is not None and name == head_name(self.config)
        return None if is_divided else self._checkpoint.quantized_blocks(name, rows)


def _for_query_heads(config: ModelConfig, scales: Array, layer: int) -> Array:
    """Repeat the scales of each value head for the query heads that share it."""
    per_head_KH = scales.reshape(config.kv_heads(layer), config.head_size(layer))
    sharing = config.query_heads(layer) // config.kv_heads(layer)
    return per_head_KH.repeat(sharing, axis=0).reshape(-1)
