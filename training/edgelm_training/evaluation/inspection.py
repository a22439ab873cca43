"""Inspection: what a model does with a text: its attention, its guesses, and the norms along its residual stream.

Shapes: L layers, N query heads, K key-value heads, H head dimension, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgelm.errors import ConfigError, ContextLengthError
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.model import Decoder, Transformer

Array = NDArray[np.float32]
HAS_ENCODER = "The model has an encoder; models of one stack alone can be looked into."


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A next token that the model thinks possible."""

    token: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Position:
    """One token of the text, and what the model expects after it.

    token: as it reads; bytes that are no whole character are written as \\xNN. guesses: the likeliest next tokens.
    next_probability and next_rank (1 is the likeliest): of the token that does come next; None at the end of the text.
    entropy: of the next token's distribution, in bits.
    """

    id: int
    token: str
    guesses: tuple[Guess, ...]
    next_probability: float | None
    next_rank: int | None
    entropy: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a model does with a text.

    attention: float32 [A, N, T, T], how much each token (the row) takes from each (the column), in each of the
    `attention_layers`, which are counted from 0. stream_norms: float32 [L + 1, T], the length of the residual stream's
    vector at each token: after the embedding, then after each layer.
    """

    positions: tuple[Position, ...]
    attention_layers: tuple[int, ...]
    attention: Array
    stream_norms: Array


@torch.no_grad()
def inspect_text(model: Transformer, tokenizer: Tokenizer, ids: Sequence[int], *, guesses: int = 10) -> Inspection:
    """Run a model on the tokens of a text, and keep what it does on the way.

    Raises:
        ContextLengthError: there are no tokens, or more than the model's context holds.
    """
    if not isinstance(model.model, Decoder):
        raise ConfigError(HAS_ENCODER)
    if not ids:
        raise ContextLengthError("The text has no tokens; there is nothing to look at.")
    model.eval()
    device = next(model.parameters()).device
    attending = model.config.attention_layers
    attention_inputs: list[tuple[Any, ...]] = []
    stream: list[Tensor] = []
    with contextlib.ExitStack() as hooks:
        for number, block in enumerate(model.model.layers):
            if number == 0:
                hooks.enter_context(block.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0])))
            hooks.enter_context(block.register_forward_hook(lambda _, __, output: stream.append(output)))
            if number in attending:
                keep = _attention(block).register_forward_pre_hook(lambda _, inputs: attention_inputs.append(inputs))
                hooks.enter_context(keep)
        logits_TV = model(torch.tensor([list(ids)], device=device))[0].float()
    weights = [
        attention_weights(_attention(model.model.layers[layer]), inputs)
        for layer, inputs in zip(attending, attention_inputs, strict=True)
    ]
    return Inspection(
        positions=tuple(_positions(logits_TV.cpu(), tokenizer, ids, guesses)),
        attention_layers=attending,
        attention=np.stack([layer_NTT.cpu().numpy() for layer_NTT in weights]),
        stream_norms=np.stack([_first_stream(hidden)[0].float().norm(dim=-1).cpu().numpy() for hidden in stream]),
    )


def attention_weights(attention: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    """Return the weights [N, T, T] by which an attention mixes values, for inputs of one row that it was called with.

    What attention gives is linear in the values: with the rows of an identity in their place, it gives its weights. So
    they are the model's own, whatever its windows, caps and masks, and kernels that never show their weights.
    """
    config: Any = attention.config
    K, H = config.kv_heads(attention.layer), config.head_size(attention.layer)
    T, device, dtype = inputs[0].shape[1], inputs[0].device, inputs[0].dtype
    parts = []
    for start in range(0, T, H):
        stop = min(start + H, T)
        values_KTH = torch.zeros(K, T, H, device=device, dtype=dtype)
        values_KTH[:, torch.arange(start, stop), torch.arange(stop - start)] = 1
        mixed: list[Tensor] = []
        with (
            attention.values.register_forward_hook(lambda *_, values=values_KTH: values[None]),  # type: ignore[union-attr]
            attention.gathered.register_forward_pre_hook(lambda _, given, kept=mixed: kept.append(given[0])),  # type: ignore[union-attr]
        ):
            attention(*inputs)
        parts.append(mixed[0][0, ..., : stop - start])
    return torch.cat(parts, dim=-1).float()


def _first_stream(hidden: Tensor) -> Tensor:
    """Return [B, T, D] of what goes from block to block, which may be several streams [B, T, A, D]."""
    return hidden if hidden.ndim == 3 else hidden[:, :, 0]


def _attention(block: nn.Module) -> nn.Module:
    return block.get_submodule("self_attn")


def _positions(logits_TV: Tensor, tokenizer: Tokenizer, ids: Sequence[int], guesses: int) -> Iterator[Position]:
    for place, id_ in enumerate(ids):
        log_V = torch.log_softmax(logits_TV[place], dim=-1)
        best = torch.topk(log_V, min(guesses, len(log_V)))
        next_id = ids[place + 1] if place + 1 < len(ids) else None
        yield Position(
            id=id_,
            token=token_as_text(tokenizer, id_),
            guesses=tuple(
                Guess(token=token_as_text(tokenizer, guess), probability=float(np.exp(value)))
                for guess, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ),
            next_probability=None if next_id is None else float(log_V[next_id].exp()),
            next_rank=None if next_id is None else int((log_V > log_V[next_id]).sum()) + 1,
            entropy=float(-(log_V.exp() * log_V.clamp(min=-1e4)).sum()) / float(np.log(2)),
        )


def token_as_text(tokenizer: Tokenizer, id_: int) -> str:
    """Return a token as it reads, a control token by its name, and bytes that are no whole character as \\xNN."""
    return tokenizer.token_bytes(id_).decode("utf-8", errors="backslashreplace")
