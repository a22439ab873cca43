"""LoRA: beside each frozen matrix, a product of two thin ones that learns (arXiv:2106.09685)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from edgelm_training.adaptation.quantized_linear import QuantizedLinear
from edgelm_training.model import Transformer
from edgelm_training.runs.distributed import blocks
from edgelm_training.settings.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The shape of an adapter: y = W x + alpha / rank · B A x, with A [rank, in] and B [out, rank].

    target_modules: last parts of the names of the linear layers that get one, such as q_proj.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What the product of both matrices is multiplied by."""
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """Add a learned product of low rank to a frozen linear layer.

    It begins as zero, since B does; A is as in PEFT. `enabled` is off where the base alone is asked for.
    """

    def __init__(self, base: nn.Linear | QuantizedLinear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Return what the base gives, and what was learned on top, [..., out_features]."""
        y = self.base(x)
        return y + self.lora_B(self.lora_A(self.dropout(x))) * self.scale if self.enabled else y


def linear_names(model: Transformer) -> list[str]:
    """Return the names of the linear layers in the blocks, in 4 bits or not: what an adapter can be put on.

    A router is none: the exporter never quantizes it, and a small change of it sends tokens to other experts. Nor is
    what predicts and corrects several residual streams.
    """
    inside = {id(module) for block in blocks(model) for module in block.modules()}
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, QuantizedLinear)) and id(module) in inside
    ]
    return [name for name in linears if not name.endswith(".mlp.gate") and ".altup." not in name]


def quantize_linear(model: Transformer, name: str) -> None:
    """Put the weight of one of the blocks' linear layers into 4 bits."""
    model.set_submodule(name, QuantizedLinear(model.get_submodule(name)))  # type: ignore[arg-type]


def target_names(model: Transformer, target_modules: Sequence[str]) -> list[str]:
    """Return the names of the linear layers whose last part is among `target_modules`.

    Raises:
        ConfigError: one of these is no linear layer of the model's blocks.
    """
    names = linear_names(model)
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    for kind in target_modules:
        if kind not in kinds:
            raise SettingError(f"target_modules has {kind!r}; the layers of this model have {', '.join(kinds)}.")
    return [name for name in names if name.rpartition(".")[2] in target_modules]


def add_adapters(model: Transformer, names: Sequence[str], config: LoraConfig) -> None:
    """Freeze the model, and put a fresh adapter on each of the named linear layers.

    Raises:
        SettingError: the rank is larger than that of any of their matrices.
    """
    _check_rank(model, names, config.rank)
    model.requires_grad_(False)
    for name in names:
        linear = model.get_submodule(name)
        model.set_submodule(name, LoraLinear(linear, config.rank, config.scale, config.dropout))  # type: ignore[arg-type]


def _check_rank(model: Transformer, names: Sequence[str], rank: int) -> None:
    layers = dict(model.named_modules())
    sizes = {
        name: (layer.out_features, layer.in_features)
        for name in names
        if isinstance(layer := layers[name], (nn.Linear, QuantizedLinear))
    }
    name, (rows, columns) = max(sizes.items(), key=lambda size: min(size[1]))
    most = min(rows, columns)
    if rank > most:
        raise SettingError(
            f"rank is {rank}; of the layers that get an adapter, none has a matrix of a higher rank than {most}, which "
            f"{name} has with its {rows} x {columns} weights. Use {most} at the most."
        )


def adapter_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapters' matrices among a model's weights, by names such as `…q_proj.lora_A.weight`."""
    return {name: tensor for name, tensor in state.items() if ".lora_A." in name or ".lora_B." in name}


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let the model be its base for the block."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
