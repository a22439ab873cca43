"""FoldedCheckpoint: a checkpoint with what never changes at run time inside its tensors."""

from __future__ import annotations

import dataclasses
import operator
import re
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.layer_features import NORM_PLACEMENTS
from edgelm.architecture.multipliers import Multipliers
from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, Checkpoint, QuantizedBlocks
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.checkpoints.tensor_map import GATHERED, HEAD, is_of_norm

# GroupQueryAttention turns heads by tables whose width is a multiple of 8, that is 16 dimensions.
ROTARY_MULTIPLE = 16
_QUERIES_OR_KEYS = re.compile(r"\.layers\.(\d+)\.self_attn\.[qk]_(proj|norm)\.(weight|bias)$")
_ROUTER = re.compile(r"\.mlp\.gate\.(weight|bias)$")
_LAST_OF_EXPERT = re.compile(r"\.experts\.(\d+)\.down_proj\.(weight|bias)$")
# The projections that a config's multipliers are of, but for the one that several are of.
_MULTIPLIED = {
    "attention_out": re.compile(r"\.self_attn\.o_proj\.(weight|bias)$"),
    "ssm_z": re.compile(r"\.mamba\.in_proj_z\.weight$"),
    "ssm_dt": re.compile(r"\.mamba\.in_proj_dt\.weight$"),
    "ssm_out": re.compile(r"\.mamba\.out_proj\.weight$"),
    "mlp_gate": re.compile(r"\.mlp\..*?gate_proj\.(weight|bias)$"),
    "mlp_down": re.compile(r"\.mlp\..*?down_proj\.(weight|bias)$"),
}
_PARTS_OF_MAMBA = ".mamba.in_proj_xbc.weight"
_VALUES = re.compile(r"\.layers\.(\d+)\.self_attn\.v_proj\.")

# Of a whole tensor, or of each of its rows, [N, 1].
Factor = np.float32 | NDArray[np.float32]


def padded_rotary_dim(config: ModelConfig, kind: str = "global") -> int:
    """Return how many dimensions of a head the graph turns in layers of a kind: those that turn by an angle, and some
    more up to a multiple of 16. Where a node of its own turns heads, as many as turn by an angle; with latent
    attention, all that may turn.
    """
    if config.kv_lora_rank is not None:
        return config.rotary_width(kind)
    if _head_size(config, kind) % ROTARY_MULTIPLE:
        return config.turning_dim(kind)
    return -(-config.turning_dim(kind) // ROTARY_MULTIPLE) * ROTARY_MULTIPLE


def _head_size(config: ModelConfig, kind: str) -> int:
    return config.head_dim if kind == "local" else config.global_head_dim or config.head_dim


class FoldedCheckpoint(CheckpointView):
    """The same function, for a graph of fewer features.

    1 + weight of a norm is its weight, no residual_multiplier, no multiplier of a projection and no factor of an expert
    or of a router's scores is left, and in each query and key head the halves of the part that turns stand where the
    padded tables of the graph turn them. It costs nothing at run time, and one rounding of each changed weight. Keys
    that are values too are projected twice, since those are not reordered.

    Raises:
        ExportError: there is no weight that could take the residual_multiplier.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        config = checkpoint.config
        self._offset = np.float32(config.norm.endswith("_offset"))
        self._multiplier: np.float32 = np.float32(config.residual_multiplier)
        _, after_attention, _, after_mlp = NORM_PLACEMENTS[config.norm_placement]
        if config.norm_placement == "residual":  # whose norms see more than what a part adds
            after_attention = after_mlp = None
        attention = after_attention or r"(?:self_attn\.o_proj|(?:conv|linear_attn|mamba)\.out_proj)"
        last = (attention, after_mlp or r"mlp\.(?:experts\.\d+\.|shared_experts\.)?down_proj")
        self._last_of_residual = re.compile(rf"layers\.\d+\.({'|'.join(last)})\.(weight|bias)$")
        if config.norm.endswith("_plain") and after_attention and self._multiplier != 1:
            raise ExportError(
                f"residual_multiplier is {config.residual_multiplier} behind norms without weights; supported is 1."
            )
        self._orders = {kind: _head_order(config, kind) for kind in _kinds(config)}
        norm = config.norm.removesuffix("_offset")
        encoder = config.encoder and dataclasses.replace(config.encoder, norm=norm)
        self._config = dataclasses.replace(
            config,
            norm=norm,
            residual_multiplier=1.0,
            multipliers=Multipliers(),
            encoder=encoder,
            attention_k_eq_v=False,
            expert_scales=False,
        )
        self._expert_scales: dict[str, NDArray[np.float32]] = {}  # of each layer

    @property
    def config(self) -> ModelConfig:
        """The model's features, without those that are folded in."""
        return self._config

    def stored_type(self, name: str) -> str:
        """Name the type of the source's tensor."""
        return self._checkpoint.stored_type(self._source_name(name))

    def _source_name(self, name: str) -> str:
        """Name the tensor of the source that one is made of: values may be keys there."""
        found = _VALUES.search(name)
        are_keys = found is not None and self._checkpoint.config.keys_are_values(int(found[1]))
        return name.replace("v_proj", "k_proj") if are_keys else name

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, with its factors inside."""
        tensor = self._checkpoint.tensor(self._source_name(name))
        if self._offset and is_of_norm(name):
            tensor = tensor + self._offset
        order = self._order(name)
        tensor = tensor if order is None else tensor[_of_heads(order, len(tensor))]
        factor = self._factor(name)
        return tensor if factor is None else tensor * factor

    def rows(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Read some rows of a matrix, with its factors inside."""
        if name in GATHERED or (name == HEAD and self._factor(name) is None):  # nothing is folded into tables
            return self._checkpoint.rows(name, first, end)
        return self.tensor(name)[first:end]

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return a matrix, or some of its rows, on its own grid, whose scales take the factor."""
        if name in GATHERED:  # nothing is folded into tables
            return self._checkpoint.quantized_blocks(name, rows)
        blocks = self._blocks(name)
        return blocks if blocks is None or rows == ALL_ROWS else blocks.rows(rows)

    def _blocks(self, name: str) -> QuantizedBlocks | None:
        blocks = self._checkpoint.quantized_blocks(self._source_name(name))
        factor = self._factor(name)
        if blocks is not None and factor is not None:
            blocks = blocks.times(factor)
        order = self._order(name)
        if blocks is not None and order is not None:
            blocks = blocks.rows(_of_heads(order, len(blocks.values)))
        return blocks

    def _factor(self, name: str) -> Factor | None:
        """Return what a tensor is multiplied by: the residual_multiplier, that of its projection, an expert's own, or
        that of a router's scores; None is by nothing.
        """
        if self._checkpoint.config.expert_norms and _ROUTER.search(name):
            return np.float32(self._checkpoint.config.hidden_size**-0.5)
        factors = self._multipliers_of(name)
        if self._multiplier != 1 and self._last_of_residual.search(name):
            factors.append(self._multiplier)
        expert = _LAST_OF_EXPERT.search(name) if self._checkpoint.config.expert_scales else None
        if expert is not None:
            scales = f"{name[: expert.start()]}.gate.per_expert_scale"
            if scales not in self._expert_scales:
                self._expert_scales[scales] = self._checkpoint.tensor(scales)
            factors.append(np.float32(self._expert_scales[scales][int(expert[1])]))
        return reduce(operator.mul, factors) if factors else None

    def _multipliers_of(self, name: str) -> list[Factor]:
        """Return the multiplier of a tensor's projection, or one for each of its rows [N, 1]; nothing where it is 1."""
        config, multipliers = self._checkpoint.config, self._checkpoint.config.multipliers
        if name.endswith(_PARTS_OF_MAMBA) and multipliers.ssm_xbc != (1, 1, 1):
            keys = (config.linear_num_key_heads or 0) * (config.linear_key_head_dim or 0)
            sizes = (config.linear_channels - 2 * keys, keys, keys)
            return [np.repeat(np.array(multipliers.ssm_xbc, np.float32), sizes)[:, None]]
        return [
            np.float32(factor)
            for field, projection in _MULTIPLIED.items()
            if (factor := getattr(multipliers, field)) != 1 and projection.search(name)
        ]

    def _order(self, name: str) -> NDArray[np.int64] | None:
        """Return the order that a head of a tensor is to have; None is as it is."""
        found = _QUERIES_OR_KEYS.search(name)
        if self._checkpoint.config.encoder is not None:
            return None  # whole heads turn in both stacks
        kind = None if found is None else self._checkpoint.config.rope_kind(int(found[1]))
        return None if kind is None else self._orders[kind]


class UnfoldedCheckpoint(FoldedCheckpoint):
    """The way back: the tensors of a checkpoint that is folded, without what FoldedCheckpoint puts inside them.

    A norm of 1 + weight comes out to the last bit where the weight is from -0.5 up, and all else within one rounding.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._config = checkpoint.config

    def stored_type(self, name: str) -> str:
        """Name the type of the source's tensor; of 16 bits that lose a factor, F32, since that takes more digits."""
        stored = super().stored_type(name)
        return "F32" if stored in ("F16", "BF16") and self._factor(name) is not None else stored

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, with its factors taken out."""
        tensor, factor = self._checkpoint.tensor(name), self._factor(name)
        if factor is not None:
            tensor = tensor / factor
        order = self._order(name)
        tensor = tensor if order is None else tensor[np.argsort(_of_heads(order, len(tensor)))]
        return tensor - self._offset if self._offset and is_of_norm(name) else tensor

    def _blocks(self, name: str) -> QuantizedBlocks | None:
        blocks, factor = self._checkpoint.quantized_blocks(name), self._factor(name)
        if blocks is not None and factor is not None:
            blocks = blocks.times(np.float32(1) / factor)
        order = self._order(name)
        if blocks is not None and order is not None:
            blocks = blocks.rows(np.argsort(_of_heads(order, len(blocks.values))))
        return blocks


def _kinds(config: ModelConfig) -> set[str]:
    """Return the kinds of layers that turn heads."""
    return {kind for layer in range(config.num_hidden_layers) if (kind := config.rope_kind(layer)) is not None}


def _of_heads(order: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Repeat the order of one head for every head that a tensor has."""
    every: NDArray[np.int64] = (np.arange(0, rows, len(order))[:, None] + order).reshape(-1)
    return every


def _head_order(config: ModelConfig, kind: str) -> NDArray[np.int64] | None:
    """Order a head's dimensions: what turns of its first half, filling, of its second half, filling, the rest.

    The graph turns dimension i with i + padded/2; the filling is what does not turn, by an angle of zero. None: as they
    are, as with latent attention, where the graph puts heads together of parts that are projected apart.
    """
    H = _head_size(config, kind)
    width, turning, padded = config.rotary_width(kind), config.turning_dim(kind), padded_rotary_dim(config, kind)
    if config.kv_lora_rank is not None or width == turning == padded:
        return None
    first, second = np.arange(turning // 2), np.arange(width // 2, (width + turning) // 2)
    rest = np.setdiff1d(np.arange(H), [*first, *second])
    filling = (padded - turning) // 2
    return np.concatenate((first, rest[:filling], second, rest[filling:]))
