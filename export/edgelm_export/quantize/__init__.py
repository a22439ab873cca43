"""Quantization: schemes (how one tensor is stored) and precisions (which scheme each tensor takes)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm_export.checkpoint import Checkpoint
from edgelm_export.quantize.int4 import quantize_int4
from edgelm_export.quantize.int8 import quantize_int8
from edgelm_export.quantize.keep import keep_grid
from edgelm_export.quantize.packed import PackedWeight

# One row a scheme: a weight [N, K] to a packed weight; None leaves it in float32.
SCHEMES: dict[str, Callable[[NDArray[np.float32]], PackedWeight] | None] = {
    "fp32": None,
    "int8-block64": lambda weight: quantize_int8(weight, 64),
    "int4-block64": lambda weight: quantize_int4(weight, 64),
}
KEEP = "keep"  # the source's own grid, where MatMulNBits has it


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Tensors whose canonical name matches `pattern` (a regular expression, searched) take `scheme`.

    `{last}` in the pattern stands for the number of the model's last layer.
    """

    pattern: str
    scheme: str


@dataclass(frozen=True, kw_only=True)
class Precision:
    """An ordered list of rules (the first match wins), and how much perplexity it may cost before export refuses."""

    rules: tuple[Rule, ...]
    perplexity_bound: float  # package over source

    def recipe(self, config: ModelConfig) -> tuple[Rule, ...]:
        """Return the rules for one model, with its layer numbers filled in."""
        last = str(config.num_hidden_layers - 1)
        return tuple(Rule(pattern=rule.pattern.replace("{last}", last), scheme=rule.scheme) for rule in self.rules)


def scheme_for(recipe: tuple[Rule, ...], name: str) -> str:
    """Return the scheme of a tensor."""
    return next(rule.scheme for rule in recipe if re.search(rule.pattern, name))


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(rules=(Rule(pattern=r".", scheme="fp32"),), perplexity_bound=1.001),
    "int8": Precision(rules=(Rule(pattern=r".", scheme="int8-block64"),), perplexity_bound=1.03),
    # 8 bits where 4 cost most (docs/results/quantization.md): the head decides every token, and the first and last
    # layers' errors are not averaged out by others.
    "int4": Precision(
        rules=(
            Rule(pattern=r"embed_tokens|lm_head", scheme="int8-block64"),
            Rule(pattern=r"layers\.(0|{last})\.", scheme="int8-block64"),
            Rule(pattern=r".", scheme="int4-block64"),
        ),
        perplexity_bound=1.5,
    ),
    "keep": Precision(rules=(Rule(pattern=r".", scheme=KEEP),), perplexity_bound=1.03),
}


def precision_named(name: str) -> Precision:
    """Look a precision up.

    Raises:
        ExportError: there is none of that name.
    """
    if name not in PRECISIONS:
        raise ExportError(f"No precision {name!r}. There are: {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def quantize(checkpoint: Checkpoint, name: str, scheme: str) -> PackedWeight | NDArray[np.float32]:
    """Read a matrix and store it by `scheme`: packed, or as it is in float32."""
    if scheme == KEEP:
        return keep_grid(checkpoint, name)
    function = SCHEMES[scheme]
    weight = checkpoint.tensor(name)
    return weight if function is None else function(weight)
