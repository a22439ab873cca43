"""One dial, the number of parameters: it chooses shape, context, batch, learning rate and length of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgelm.config import ModelConfig
from edgelm_training.settings.settings import SettingError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_MIN_PARAMS, _MAX_PARAMS = 10_000, 10**12

# Chinchilla (arXiv:2203.15556): parameters and tokens grow alike, about 20 tokens a parameter.
TOKENS_PER_PARAMETER = 20
# Width over depth. Kaplan et al. (arXiv:2001.08361) find the loss flat over a wide range; below a billion parameters
# the deeper and thinner shapes are the better ones (MobileLLM, arXiv:2402.14905).
_DEEP_ASPECT, _USUAL_ASPECT, _MIN_ASPECT, _MAX_ASPECT = 32, 100, 16, 160
_WIDTHS = (32, 64, 96, 128, 192, *range(256, 2048, 128), *range(2048, 16384, 256))
# Below this a model is deep, and its head shares the matrix of the embeddings, which would be much of it (MobileLLM).
_SMALL_BELOW = 1_000_000_000
# Parameters -> tokens of context.
LONGEST_CONTEXT = 2048  # what is longer is asked for: a row is never split, and its attention grows with the square
_CONTEXTS = ((20_000_000, 512), (1_000_000_000, 1024), (_MAX_PARAMS, LONGEST_CONTEXT))
# Share of the peak rate at the end of pretraining (Chinchilla), with which a trained model goes on (arXiv:2407.07263).
_RATE_LEFT = 0.1


def parse_params(text: str) -> int:
    """Turn `15M`, `1.5B`, `800K` or a plain number into a count.

    Raises:
        ConfigError: it is none of these, or not between ten thousand and a trillion.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB]?)", text.strip().upper())
    count = float(match[1]) * _UNITS[match[2]] if match else 0
    if not _MIN_PARAMS <= count <= _MAX_PARAMS:
        raise SettingError(f"params is {text!r:.60}; it must be a number such as 15M, 1.5B or 800K, from 10K to 1000B.")
    return round(count)


def model_shape(params: int, vocab_size: int) -> dict[str, Any]:
    """Choose the fields of a Llama-shaped ModelConfig with about `params` parameters, embeddings included.

    The feed-forward is 8/3 of the width (arXiv:2002.05202, to keep a gated one at the cost of a plain one), two to
    four query heads share a key-value head (arXiv:2305.13245), and head sizes are multiples of 16, which the exporter's
    attention operator needs.

    Raises:
        ConfigError: the embeddings of the vocabulary alone are more than that.
    """
    context = usual_context(params)
    small = params < _SMALL_BELOW
    best_aspect = _DEEP_ASPECT if small else _USUAL_ASPECT
    best: tuple[float, dict[str, Any]] | None = None
    for width in _WIDTHS:
        shape = _one_layer(width, small, vocab_size, context)
        one = ModelConfig(**shape).count_parameters()
        layer = ModelConfig(**(shape | {"num_hidden_layers": 2})).count_parameters() - one
        depth = max(1, round((params - (one - layer)) / layer))
        if not _MIN_ASPECT <= width / depth <= _MAX_ASPECT:
            continue
        miss = abs((one + (depth - 1) * layer) / params - 1)
        # A shape near the best aspect ratio is worth a few percent of the asked size.
        cost = miss + 0.05 * abs(width / depth / best_aspect - 1)
        if best is None or cost < best[0]:
            best = cost, shape | {"num_hidden_layers": depth}
    if best is None or best[0] > 1:
        raise SettingError(
            f"params is {params:,}, too few for a vocabulary of {vocab_size:,} tokens: the embeddings alone are more. "
            "Ask for more parameters, or train a smaller tokenizer."
        )
    return best[1]


def usual_context(params: int) -> int:
    """Return the tokens of context that a model of that size is trained on."""
    return next((context for most, context in _CONTEXTS if params <= most), _CONTEXTS[-1][1])


def _one_layer(width: int, tied: bool, vocab_size: int, context: int) -> dict[str, Any]:
    """Return the fields of a model of that width with one layer."""
    head_dim = 16 if width < 128 else 32 if width < 256 else 64 if width < 2048 else 128
    heads = width // head_dim
    kv_heads = next(heads // shared for shared in ((4, 3, 2, 1) if heads >= 8 else (2, 1)) if heads % shared == 0)
    feed_forward = 64 * round(width * 8 / 3 / 64) if width >= 128 else 16 * round(width * 8 / 3 / 16)
    return {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
    }


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and with what to train a model."""

    global_batch_size: int  # rows
    learning_rate: float
    max_steps: int


def training_budget(
    params: int,
    sequence_length: int,
    *,
    max_steps: int | None = None,
    global_batch_size: int | None = None,
    goes_on_with: int | None = None,
) -> Budget:
    """Choose batch, learning rate and steps for a model of `params` parameters; what is given is kept.

    Of experts, those count that a token goes through: they are what the compute is spent on.

    Tokens: 20 a parameter (Chinchilla, arXiv:2203.15556), unless the steps are given. Batch and learning rate follow
    the compute C = 6 · parameters · tokens (arXiv:2001.08361): 0.2920 · C^0.3271 tokens and 0.3118 · C^-0.1250
    (DeepSeek LLM, arXiv:2401.02954, section 3.1; fitted from 1e17 FLOPs up, extrapolated below).

    goes_on_with: tokens of the data that a trained model goes on with: once through them, unless the steps are given,
        with the rate at which its pretraining, as above, would have ended: a tenth of its peak (arXiv:2407.07263).
    """
    pretraining_tokens = TOKENS_PER_PARAMETER * params
    tokens = pretraining_tokens if goes_on_with is None else goes_on_with
    batch_tokens = 0.2920 * (6.0 * params * tokens) ** 0.3271
    if max_steps is not None:
        # The tokens depend on the batch and the batch on the tokens: solved for the batch.
        of_steps = (0.2920 * (6.0 * params * max_steps) ** 0.3271) ** (1 / (1 - 0.3271))
        # More steps than one pass of data has are more passes over it, not larger batches.
        batch_tokens = of_steps if goes_on_with is None else min(of_steps, batch_tokens)
    rows = global_batch_size or _rounded_rows(batch_tokens / sequence_length)
    steps = max_steps or max(1, round(tokens / (rows * sequence_length)))
    compute = 6.0 * params * (steps * rows * sequence_length if goes_on_with is None else pretraining_tokens)
    # Below 1e15 FLOPs the rule asks for more than small models bear.
    rate = min(0.3118 * compute**-0.1250, 4e-3) * (1.0 if goes_on_with is None else _RATE_LEFT)
    return Budget(global_batch_size=rows, learning_rate=float(f"{rate:.3g}"), max_steps=steps)


def _rounded_rows(rows: float) -> int:
    """Round to a number that 1, 2, 4 and 8 processes can share."""
    return 8 * max(1, round(rows / 8))
