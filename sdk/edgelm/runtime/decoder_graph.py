"""DecoderGraph: what a decoder's graph takes and gives, read from its own inputs and outputs.

edgelm's own graphs, those of onnxruntime-genai's builder and those of Optimum differ in what they take beside token ids
and the cache. Shapes: B batch, T query tokens, S key tokens, P past tokens, K kv heads, H head dim, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig
from edgelm.errors import PackageError
from edgelm.memory.cache_layout import StateLayout, cache_layout

_Value = TypeVar("_Value")

HIDDEN_STATE = "last_hidden_state"
CROSS = "cross_key_values"  # keys and values of a source text, which an encoder's graph gives by layer
# What the convolutions of all layers read of the tokens before, and what of the new ones will be read.
PAST_CONV, PRESENT_CONV = "past_conv", "present_conv"
SHARED = "shared"  # keys and values of an earlier layer, as a layer gives them again that looks at those

# past_key_values.3.key (Optimum, onnxruntime-genai), past.3.key, past_key_3; present likewise.
_CACHE_NAME = re.compile(r"(past|present|cross|shared)(?:_key_values)?\.(?P<layer>\d{1,4})\.(?P<part>key|value)")
# What a layer keeps of a text as its state: what its convolution reads, and its matrices.
STATES = ("conv_state", "recurrent_state")
_STATE_NAME = re.compile(r"(past_key_values|present)\.(?P<layer>\d{1,4})\.(?P<part>conv_state|recurrent_state)")
_OLD_CACHE_NAME = re.compile(r"(past|present)_(?P<part>key|value)_(?P<layer>\d{1,4})")
_TYPES: Mapping[str, DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8,
}
# What edgelm can give besides the cache. `use_cache_branch` chooses between the two halves of an old merged decoder;
# `num_logits_to_keep` is how many of the last positions logits are wanted for, 0 for all.
_KNOWN_INPUTS = ("input_ids", "attention_mask", "position_ids", "use_cache_branch", "num_logits_to_keep")
# Why a graph that takes these is no whole decoder.
_OTHER_MODELS = {
    "encoder_hidden_states": "It is the half of an encoder-decoder model of another program; edgelm runs "
    "those that it exported itself.",
    "inputs_embeds": "It is a part of a model that also reads pictures or sound; edgelm runs models of text.",
}
# Where one of these reads the mask or the positions, its length counts, so it has to be that of the tokens.
_READERS_OF_LENGTHS = {"If", "Loop", "Scan", "CumSum", "Where", "Attention", "MultiHeadAttention", "Trilu", "Range"}
# Of a head with a shortlist; the first alone chooses experts too.
_OF_SHORTLISTS = {"GatherElements", "ReduceMax"}


@dataclass(frozen=True, kw_only=True)
class GraphValue:
    """An input or output as ONNX Runtime describes it; what is no number in `shape` is a dimension's name, or None."""

    name: str
    type: str
    shape: Sequence[int | str | None]


@dataclass(frozen=True, kw_only=True)
class DecoderGraph:
    """What a decoder's graph takes and gives.

    inputs: the numpy types of `input_ids`, `attention_mask`, `position_ids`, `use_cache_branch` and
    `num_logits_to_keep`, of those that it takes. past, present: the cache's names, keys and values of one layer after
    the other. shares_cache: whether past and present may be the same memory, longer than what is filled of it, as
    GroupQueryAttention has it; otherwise the graph takes exactly P tokens' keys and values, and gives P + T.
    takes_longer_mask: whether the mask may go on behind the tokens with zeros then, as edgelm's own graphs have it.
    cross: the names of the keys and values of a source text, layer after layer, where a decoder has an encoder.
    heads: how many kv heads each layer has, and their size, where the graph says so. shared: the names under which
    layers give the keys and values of earlier ones again, which may be the same memory. has_shortlist: whether the head
    computes some tokens again, as edgelm's own graphs have it.
    convolves: whether it takes and gives what convolutions read, as edgelm's own graphs have it. past_states,
    present_states: the names of the states, those of one kind after those of the other, and
    state_shapes what they are for one row. short_context: how many places the mask of another program's graph may have
    for its text to turn as a short one (LongRoPE).
    """

    inputs: Mapping[str, np.dtype[np.generic]]
    past: tuple[str, ...]
    present: tuple[str, ...]
    cache_type: np.dtype[np.generic]
    heads: tuple[tuple[int | None, int | None], ...]
    vocab_size: int | None
    logits_type: np.dtype[np.generic]
    gives_last_logits: bool  # of the last position alone, always
    has_hidden_state: bool
    shares_cache: bool
    takes_longer_mask: bool = False
    cross: tuple[str, ...] = ()
    convolves: bool = False
    past_states: tuple[str, ...] = ()
    present_states: tuple[str, ...] = ()
    state_shapes: tuple[tuple[int | str | None, ...], ...] = ()
    shared: tuple[str, ...] = ()
    has_shortlist: bool = False
    short_context: int | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        inputs: Iterable[GraphValue],
        outputs: Iterable[GraphValue],
        operators: Iterable[tuple[str, str]],
        *,
        is_foreign: bool,
        short_context: int | None = None,
    ) -> DecoderGraph:
        """Read a graph's description; `path` is what errors name.

        inputs: also those that have a default. operators: those in use, as (domain, name). is_foreign: whether another
        program wrote it. short_context: as the field; all that a foreign graph's `If` asks is then the mask's length.

        Raises:
            PackageError: it is no decoder with a cache of keys and values, or takes what edgelm does not give.
        """
        given, results = {value.name: value for value in inputs}, {value.name: value for value in outputs}
        past, present = _cache_names(given, "past"), _cache_names(results, "present")
        cross = _cache_names(given, "cross")
        convolves = not is_foreign and PAST_CONV in given and PRESENT_CONV in results
        past_states = {} if is_foreign else _state_names(given, "past_key_values")
        present_states = {} if is_foreign else _state_names(results, "present")
        known = {*_KNOWN_INPUTS, *past.values(), *cross.values(), *past_states.values()}
        if convolves:
            known.add(PAST_CONV)
        for name in sorted(given.keys() - known):
            why = _OTHER_MODELS.get(name, f"edgelm gives {', '.join(_KNOWN_INPUTS)}, and keys and values by layer.")
            raise PackageError(f"{path} takes the input {name!r}. {why}")
        _check_text(path, given, results)
        _check_cache(path, past, present, past_states, present_states)
        names = {name for domain, name in operators}
        writes_in_place = "GroupQueryAttention" in names
        # A longer mask is what tells LongRoPE that a text is to be long, so a cache has room for that or not.
        readers = _READERS_OF_LENGTHS if short_context is None else _READERS_OF_LENGTHS - {"If"}
        cache = {place: given[name] for place, name in past.items()}
        return cls(
            inputs={name: _type_of(path, given[name]) for name in _KNOWN_INPUTS if name in given},
            past=tuple(past.values()),
            present=tuple(present.values()),
            cache_type=_only(path, "types of keys and values", (_type_of(path, value) for value in cache.values())),
            heads=_heads_of_layers(path, cache),
            vocab_size=_dimension(path, results["logits"], -1),
            logits_type=_type_of(path, results["logits"]),
            gives_last_logits=_dimension(path, results["logits"], 1) == 1,
            has_hidden_state=HIDDEN_STATE in results,
            shares_cache=writes_in_place and not (is_foreign and names & readers),
            takes_longer_mask=not (writes_in_place or is_foreign),
            cross=tuple(cross.values()),
            convolves=convolves,
            past_states=tuple(past_states.values()),
            present_states=tuple(present_states.values()),
            state_shapes=tuple(tuple(given[name].shape[1:]) for name in past_states.values()),
            shared=() if is_foreign else tuple(_cache_names(results, SHARED).values()),
            has_shortlist=not is_foreign and names >= _OF_SHORTLISTS,
            short_context=short_context,
        )

    def fitted(self, config: ModelConfig, path: Path) -> ModelConfig:
        """Return a config with the sizes that the graph has; what the graph leaves open is as the config says.

        Raises:
            PackageError: the graph has another number of layers, or an encoder where the config has none.
        """
        again = 2 * config.num_kv_shared_layers if config.kv_lora_rank is None else config.kept_buffers
        shapes = tuple(layout.sizes for layout in cache_layout(config) if isinstance(layout, StateLayout))
        for what, found, wanted in (
            ("keys and values", len(self.past), config.kept_buffers),
            ("keys and values that it gives again", len(self.shared), again if self.shares_cache else 0),
            (f"inputs {PAST_CONV}", int(self.convolves), int(config.conv_channels > 0)),
            ("keys and values of a source text", len(self.cross), 0 if config.encoder is None else len(self.past)),
            ("as shapes of states", self.state_shapes, shapes),
        ):
            if found != wanted:
                raise PackageError(
                    f"{path} has {found!s:.200} {what}; by the model's config they are {wanted!s:.200}. The graph and "
                    "the config are not of one model."
                )
        return dataclasses.replace(
            config,
            **self._fitted_heads(config, path),
            **self._turning(config),
            vocab_size=self.vocab_size or config.vocab_size,
            kv_cache="int8" if self.cache_type == np.int8 else "fp32",
        )

    def _turning(self, config: ModelConfig) -> dict[str, Any]:
        """Return the fields that say from where on a text turns otherwise; by how much stands in the graph alone."""
        if self.short_context is None or not self.shares_cache:
            return {}
        unknown = (1.0,) * ((self.heads[0][1] or config.head_dim) // 2)
        return {
            "position": "rope",
            "rope_scaling": RopeScaling(
                rope_type="longrope",
                original_max_position_embeddings=self.short_context,
                short_factor=unknown,
                long_factor=unknown,
            ),
        }

    def _fitted_heads(self, config: ModelConfig, path: Path) -> dict[str, Any]:
        """Return the fields of the heads that all layers have; where not all are alike, they must be the config's."""
        named = [(config.kv_heads(layer), config.head_size(layer)) for layer in config.cached_layers]
        if config.kv_lora_rank is not None and set(self.heads) != {(1, config.head_dim)}:
            raise PackageError(
                f"{path} does not keep one head of {config.head_dim} of each layer, as the model's config says. The "
                "graph and the config are not of one model."
            )
        if len(set(self.heads)) > 1 or len(set(named)) > 1:
            found = [(heads or say[0], size or say[1]) for (heads, size), say in zip(self.heads, named, strict=True)]
            if found != named:
                raise PackageError(
                    f"{path} has layers with different kv heads, and the model's config has others. The graph and the "
                    "config are not of one model."
                )
            return {}
        heads, size = self.heads[0]
        kv_heads = heads or config.num_key_value_heads
        return {
            "num_key_value_heads": kv_heads,
            "num_attention_heads": max(kv_heads, config.num_attention_heads // kv_heads * kv_heads),
            "head_dim": size or config.head_dim,
        }


def _check_text(path: Path, inputs: Mapping[str, GraphValue], outputs: Mapping[str, GraphValue]) -> None:
    """Check that a graph takes token ids and gives logits."""
    for kind, name, found in (("input", "input_ids", inputs), ("output", "logits", outputs)):
        if name not in found:
            raise PackageError(
                f"{path} has no {kind} {name!r}, so it is no decoder of text. It has: {', '.join(sorted(found))[:300]}."
            )


def _check_cache(
    path: Path,
    past: Mapping[tuple[int, str], str],
    present: Mapping[tuple[int, str], str],
    past_states: Mapping[tuple[int, int], str],
    present_states: Mapping[tuple[int, int], str],
) -> None:
    """Check that a graph gives again all that it takes of a text."""
    if not past or past.keys() != present.keys():
        raise PackageError(
            f"{path} does not take and give keys and values by layer (past_key_values.0.key, present.0.key …): it "
            f"has {len(past)} such inputs and {len(present)} such outputs. Export the model with its cache: "
            "optimum-cli export onnx --task text-generation-with-past …"
        )
    if past_states.keys() != present_states.keys():
        raise PackageError(
            f"{path} takes {len(past_states)} states of a text and gives {len(present_states)}; each "
            "layer has two. Export or download the package again."
        )


def _cache_names(values: Mapping[str, GraphValue], kind: str) -> dict[tuple[int, str], str]:
    """Name the cache's inputs or outputs by (layer, part), in the order of a cache's buffers."""
    names = {}
    for name in values:
        match = _CACHE_NAME.fullmatch(name) or _OLD_CACHE_NAME.fullmatch(name)
        if match is not None and match[1] == kind:
            names[int(match["layer"]), match["part"]] = name
    return dict(sorted(names.items()))


def _state_names(values: Mapping[str, GraphValue], kind: str) -> dict[tuple[int, int], str]:
    """Name the states by (which of the two, layer), in the order of a cache's buffers."""
    matches = [match for name in values if (match := _STATE_NAME.fullmatch(name)) and match[1] == kind]
    return dict(sorted(((STATES.index(match["part"]), int(match["layer"])), match[0]) for match in matches))


def _heads_of_layers(
    path: Path, cache: Mapping[tuple[int, str], GraphValue]
) -> tuple[tuple[int | None, int | None], ...]:
    """Read how many kv heads each layer has, and their size; its keys and its values have the same."""
    found: dict[int, list[tuple[int | None, int | None]]] = {}
    for (layer, _), value in cache.items():
        found.setdefault(layer, []).append((_dimension(path, value, 1), _dimension(path, value, 3)))
    return tuple(_only(path, "heads of keys and of values", parts) for parts in found.values())


def _type_of(path: Path, value: GraphValue) -> np.dtype[np.generic]:
    if value.type not in _TYPES:
        raise PackageError(
            f"{path} takes {value.name!r} as {value.type}; edgelm gives {', '.join(sorted(_TYPES))}. Export the model "
            "in float32 or float16."
        )
    return np.dtype(_TYPES[value.type])


def _dimension(path: Path, value: GraphValue, axis: int) -> int | None:
    try:
        size = value.shape[axis]
    except IndexError:
        raise PackageError(
            f"{path} has {value.name!r} with {len(value.shape)} dimensions, {list(value.shape)}; keys and values are "
            "[B, K, S, H], and logits [B, T, V]."
        ) from None
    return size if isinstance(size, int) else None


def _only(path: Path, what: str, values: Iterable[_Value]) -> _Value:
    found = sorted(set(values), key=str)
    if len(found) != 1:
        raise PackageError(f"{path} has layers with different {what}: {', '.join(map(str, found))}. edgelm needs one.")
    return found[0]
