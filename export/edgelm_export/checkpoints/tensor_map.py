"""Tensor maps: where each canonical tensor is in a source, complete in both directions and in shape."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError

_STREAMS = r"altup_(?:unembed_)?projections"
_LAYER = re.compile(r"(?<!_projections)\.(\d+)\.")
_NUMBERED = re.compile(rf"\.(experts|heads|{_STREAMS})\.(\d+)\.")
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
PER_LAYER_EMBEDDING = "model.embed_tokens_per_layer.weight"
EXPERTS = ".experts."  # in the names of all that is of one of several experts
ENCODER_EMBEDDING = "model.encoder.embed_tokens.weight"
# Whose rows a graph looks up on their grid, and what a person calls them.
GATHERED = {
    EMBEDDING: "the embedding",
    PER_LAYER_EMBEDDING: "the embeddings of layers",
    ENCODER_EMBEDDING: "the encoder's embedding",
}
# What a graph multiplies the channels by that a head reads, where its stored weights are divided by that.
HEAD_FACTORS = "lm_head.factors"
# In the place of `weight`'s parent, what is in the lower plane of a head with a shortlist.
REMAINDER = "remainder"

_NORM = re.compile(r"(?<!linear_attn\.)(?<!mamba\.)norm\.weight$")

Rows = NDArray[np.int64]


def head_name(config: ModelConfig) -> str:
    """Return the tensor that the head multiplies by: its own, or the embedding."""
    return EMBEDDING if config.tie_word_embeddings else HEAD


def is_of_norm(name: str) -> bool:
    """Tell whether a tensor is the weight of a norm of the config's kind; those behind a state are always plain."""
    return _NORM.search(name) is not None


def _pairs(config: ModelConfig, rows: int) -> Rows:
    """Undo the order of who turns neighbours: row i + R/2 of a head stands behind row i there."""
    by_head = np.arange(rows).reshape(-1, config.head_dim)
    turning, rest = np.split(by_head, [config.rotary_dim], axis=1)
    order: Rows = np.concatenate([turning[:, ::2], turning[:, 1::2], rest], axis=1).reshape(-1)
    return order


def _swapped_halves(config: ModelConfig, rows: int) -> Rows:
    """Turn the other way round: with its halves swapped, a head that turned by -angle turns by angle."""
    order: Rows = np.arange(rows).reshape(-1, 2, config.head_dim // 2)[:, ::-1].reshape(-1)
    return order


def _neighbours(config: ModelConfig, rows: int) -> Rows:
    """Undo the order of who puts the value heads of one key head as far from each other as they can be.

    They are the last rows; in front may be those of queries and keys.
    """
    heads, sharing = config.linear_num_value_heads or 1, config.linear_num_key_heads or 1
    width = config.linear_value_head_dim or 1 if rows > heads else 1
    first = rows - heads * width
    apart = np.arange(first, rows).reshape(heads // sharing, sharing, width)
    order: Rows = np.concatenate([np.arange(first), apart.swapaxes(0, 1).reshape(-1)])
    return order


def _turning_queries(config: ModelConfig, rows: int) -> Rows:
    """Undo the order of who turns neighbours in heads of latent attention's queries, which turn in their last part."""
    width = (config.qk_nope_head_dim or 0) + config.rotary_dim
    return _pairs_at_the_end(config, np.arange(rows).reshape(-1, width))


def _turning_latent(config: ModelConfig, rows: int) -> Rows:
    """Undo that order in the keys that all heads share, which stand behind latent vectors."""
    return _pairs_at_the_end(config, np.arange(rows).reshape(1, rows))


def _pairs_at_the_end(config: ModelConfig, by_head: Rows) -> Rows:
    rest, turning = np.split(by_head, [by_head.shape[1] - config.rotary_dim], axis=1)
    order: Rows = np.concatenate([rest, turning[:, ::2], turning[:, 1::2]], axis=1).reshape(-1)
    return order


_MOST_TOLD = 16  # of the tensors that an error names

# What some folders of all families hold besides: rope's table, as older code stored it, and the scales by which another
# runtime rounds keys and values that it keeps.
_OF_NO_WEIGHT = (".inv_freq", ".k_scale", ".v_scale", ".kv_scale", "_proj.output_scale")
# And what the names of layers begin with that guess further tokens; transformers leaves them out too.
_GUESSING = "mtp."

# How the rows (or the columns) of a tensor are to be taken from a source so that they are in our order.
ORDERS: dict[str, Callable[[ModelConfig, int], Rows]] = {
    "pairs": _pairs,
    "pairs of latent attention's queries": _turning_queries,
    "pairs behind latent vectors": _turning_latent,
    "swapped halves": _swapped_halves,
    "neighbours": _neighbours,
}


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """How a source names and stores the tensors of a family.

    names: canonical stems (a name without its `.weight` or `.bias`) or whole names, with `{i}` for the layer and `{e}`
    for the expert, head or stream, to the source's, where it has others. Stems with one and the same source are parts
    of a fused tensor, stacked in their canonical order. A source without `{e}` has the experts' (or heads') tensors
    behind each other, [E, ...]. interleaved: source names of fused tensors whose parts have every other row. ignored:
    names of a source that hold no weights. copies: those that have to hold the embedding again. transposed: source
    stems, or names, whose weights are [in, out]. by_head: source stems of fused tensors that hold each head's parts
    side by side. by_key_head: those of linear attention that hold each key head's. by_latent_head: those of latent
    attention that hold each head's two matrices behind each other, that of queries the other way round. by_group: those
    of attention that hold the query heads of each key head, then that, then its value head. by_quarter: those of
    attention that hold the queries, values and keys of a quarter of the heads, of the next quarter, and so on.
    row_orders, column_orders: canonical stems, or names, to names in `ORDERS`. norms_plus_one: the source holds 1 +
    weight of each norm. negative_exponentials: source names of tensors that hold -exp(x) of our x. rows_before: source
    stems of tables to how many rows stand before the first. rows_behind: those that may have further rows behind the
    last, which are passed over. stacks_of_one: source names of tensors with one dimension of 1 in front.
    ones_elsewhere: source names of tensors whose dimension of 1 may stand in another place than ours, or in none.
    vectors_in_rows: source names of vectors that stand in several rows there. assembled: source names to those of the
    parts that a source may have in their place, whose rows stand behind each other; one part is another name.
    has_more_layers: behind the config's there may be layers for other uses, which are passed over.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    copies: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    by_head: frozenset[str] = frozenset()
    by_key_head: frozenset[str] = frozenset()
    by_group: frozenset[str] = frozenset()
    by_quarter: frozenset[str] = frozenset()
    by_latent_head: frozenset[str] = frozenset()
    interleaved: frozenset[str] = frozenset()
    row_orders: Mapping[str, str] = field(default_factory=dict)
    column_orders: Mapping[str, str] = field(default_factory=dict)
    norms_plus_one: bool = False
    negative_exponentials: frozenset[str] = frozenset()
    rows_before: Mapping[str, int] = field(default_factory=dict)
    rows_behind: frozenset[str] = frozenset()
    stacks_of_one: frozenset[str] = frozenset()
    ones_elsewhere: frozenset[str] = frozenset()
    vectors_in_rows: frozenset[str] = frozenset()
    assembled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_more_layers: bool = False

    @property
    def is_canonical(self) -> bool:
        """Whether the source's tensors are ours under our names."""
        renamed = any(name != source for name, source in self.names.items())
        return not (renamed or self.transposed or self.row_orders or self.norms_plus_one)

    @property
    def prefix(self) -> str:
        """What names begin with, but not in folders of the family's bare model."""
        return self.source_name(EMBEDDING).partition(".")[0] + "."

    def source_name(self, name: str) -> str:
        """Translate a canonical name."""
        pattern, layer, expert = pattern_of(name)
        stem, _, suffix = pattern.rpartition(".")
        source = self.names[pattern] if pattern in self.names else f"{self.names.get(stem, stem)}.{suffix}"
        return source.replace("{i}", layer).replace("{e}", expert)


CANONICAL = TensorLayout()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A canonical tensor inside a source's.

    index: which entry of a stack of experts; None where the source is one tensor. rows: of the source's tensor, or of
    the entry, after its transposition; None is all of them, as of columns. offset: added to each value.
    is_negative_exponential: the source has -exp of it. shape: where it is not the source's.
    """

    source: str
    index: int | None = None
    rows: slice | Rows | None = None
    columns: slice | Rows | None = None
    transposed: bool = False
    is_negative_exponential: bool = False
    offset: float = 0.0
    shape: tuple[int, ...] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the source's tensor as that is."""
        taken = (self.index, self.rows, self.columns, self.shape)
        is_changed = self.transposed or self.is_negative_exponential or bool(self.offset)
        return not is_changed and all(each is None for each in taken)

    def taken_from(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the canonical tensor from the whole of the source's, or of its entry `index`."""
        tensor = tensor.T if self.transposed else tensor
        tensor = tensor.reshape(-1) if self.shape is not None and len(self.shape) == 1 else tensor
        tensor = tensor if self.rows is None else tensor[self.rows]
        tensor = tensor if self.columns is None else tensor[:, self.columns]
        if self.is_negative_exponential:
            with np.errstate(all="ignore"):  # what is no logarithm is refused as any value that is not finite
                tensor = np.log(-tensor)
        tensor = tensor if self.shape is None else tensor.reshape(self.shape)
        return np.ascontiguousarray(tensor + np.float32(self.offset) if self.offset else tensor)


@functools.lru_cache(maxsize=1 << 16)  # asked seven times of each name
def pattern_of(name: str) -> tuple[str, str, str]:
    """Split `model.layers.7.mlp.experts.3.up_proj.weight`, the same of a head or stream, or a name without.

    Returns the pattern `model.layers.{i}.mlp.experts.{e}.up_proj.weight`, `7` and `3`; nothing for what is not there.
    """
    match = _LAYER.search(name)
    pattern = name if match is None else f"{name[: match.start()]}.{{i}}.{name[match.end() :]}"
    numbered = _NUMBERED.search(pattern)
    return _NUMBERED.sub(r".\1.{e}.", pattern), match[1] if match else "", numbered[2] if numbered else ""


def check_layers(config: ModelConfig, tensors: int, where: object) -> None:
    """Check a config against the number of tensors before any name is built: a hostile count must not fill the memory.

    Raises:
        CheckpointError: the config has more layers than there are tensors.
    """
    layers = sum(config.layer_counts)
    if layers > tensors:
        raise CheckpointError(f"{where}: the config has {layers} layers, but there are only {tensors} tensors.")


def map_tensors(
    config: ModelConfig, layout: TensorLayout, present: Mapping[str, tuple[int, ...]], where: object
) -> dict[str, Part]:
    """Find every canonical tensor in a source.

    present: the source's tensors and their shapes. where: the file or folder, for the message. A tied head that the
    source stores all the same is passed over: the caller compares it with the embedding.

    Raises:
        CheckpointError: tensors are missing, unknown, or of another shape; it names them, or the first of many.
    """
    check_layers(config, len(present), where)
    groups = _groups(config, layout)
    prefix = _missing_prefix(layout, groups, present)
    prefixed = {name if name in groups else prefix + name: shape for name, shape in present.items()}
    _check(config, layout, groups, prefixed, where)
    parts = _parts(config, layout, groups)
    return {name: dataclasses.replace(part, source=part.source.removeprefix(prefix)) for name, part in parts.items()}


def parts_of(config: ModelConfig, layout: TensorLayout) -> dict[str, Part]:
    """Say where every canonical tensor is in a source of this layout that has all of them."""
    return _parts(config, layout, _groups(config, layout))


def _groups(config: ModelConfig, layout: TensorLayout) -> dict[str, list[str]]:
    """List the canonical tensors that are parts of each tensor of a source."""
    groups: dict[str, list[str]] = {}
    for name in config.tensor_shapes():
        groups.setdefault(layout.source_name(name), []).append(name)
    return groups


def _missing_prefix(layout: TensorLayout, groups: Collection[str], present: Collection[str]) -> str:
    """Return what the names of a bare model lack; nothing where they are those of a whole one."""
    is_bare = not any(name.startswith(layout.prefix) for name in present)
    return layout.prefix if is_bare and any(layout.prefix + name in groups for name in present) else ""


def _check(
    config: ModelConfig,
    layout: TensorLayout,
    groups: Mapping[str, list[str]],
    present: Mapping[str, tuple[int, ...]],
    where: object,
) -> None:
    known, shapes = set(groups), config.tensor_shapes()
    if config.tie_word_embeddings:
        known.add(layout.source_name(HEAD))
    missing = (source for source in groups if source not in present)
    unknown = (name for name in present if name not in known and not _is_passed_over(config, layout, name))
    misshapen = (
        f"{source} is {list(found)} instead of {list(shape)}"
        for source, names in groups.items()
        if (found := present.get(source)) is not None
        and _compared(layout, source, found, shape := _source_shape(shapes, layout, source, names))
        != _compared(layout, source, shape, shape)
    )
    problems = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    told = [f"{kind}: {listed}" for kind, names in problems if (listed := _first_of(names))]
    if told:
        raise CheckpointError(
            f"{where}: the tensors do not fit a {config.model_type} model of this config. {'; '.join(told)}."
        )


def _first_of(names: Iterable[str]) -> str:
    """List what is told of names: a file may have thousands, which are not looked at either."""
    first = list(itertools.islice(names, _MOST_TOLD + 1))
    return ", ".join(first[:_MOST_TOLD]) + (" and others" if len(first) > _MOST_TOLD else "")


def _is_passed_over(config: ModelConfig, layout: TensorLayout, name: str) -> bool:
    """Tell whether a tensor of a source is nothing that the model computes with."""
    pattern, layer, _ = pattern_of(name)
    if name.endswith(_OF_NO_WEIGHT) or name.startswith(_GUESSING):
        return True
    if pattern in layout.ignored or pattern in layout.copies:
        return True
    return layout.has_more_layers and layer != "" and int(layer) >= config.num_hidden_layers


def _source_shape(
    shapes: Mapping[str, tuple[int, ...]], layout: TensorLayout, source: str, names: list[str]
) -> tuple[int, ...]:
    if _has_latent_heads(layout, source):
        (rank, nope), (values, _) = (shapes[name] for name in names[:2])
        return len(names) // 2 * (nope + values), rank
    entries = _entries(layout, source, names)
    rows = _rows_before(layout, source) + sum(shapes[name][0] for name in entries[0])
    shape = (rows, *shapes[names[0]][1:])
    shape = shape[::-1] if _is_transposed(layout, source) else shape
    return (len(entries), *shape) if _is_stack(layout, source, names) else shape


def _stem_of(source: str) -> str:
    """Return the pattern of a source's name without its `.weight` or `.bias`."""
    return pattern_of(source)[0].rpartition(".")[0]


def _has_latent_heads(layout: TensorLayout, source: str) -> bool:
    return _stem_of(source) in layout.by_latent_head


def _of_latent_heads(shapes: Mapping[str, tuple[int, ...]], source: str, names: list[str]) -> dict[str, Part]:
    """Find the matrices [L, P] and [Y, L] of each head in [N * (P + Y), L]."""
    parts: dict[str, Part] = {}
    start = 0
    for queries, values in zip(names[::2], names[1::2], strict=True):
        middle = start + shapes[queries][1]
        parts[queries] = Part(source=source, columns=slice(start, middle), transposed=True)
        start = middle + shapes[values][0]
        parts[values] = Part(source=source, rows=slice(middle, start))
    return parts


def _compared(layout: TensorLayout, source: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> tuple[int, ...]:
    """Return what of a shape is to be the same in the source and here, where `expected` is."""
    pattern = pattern_of(source)[0]
    if pattern in layout.vectors_in_rows:
        return (math.prod(shape),)
    if _stem_of(source) in layout.rows_behind:
        return tuple(min(size, most) for size, most in zip(shape[:1], expected, strict=False)) + shape[1:]
    return tuple(size for size in shape if size != 1) if pattern in layout.ones_elsewhere else shape


def _is_stack(layout: TensorLayout, source: str, names: list[str]) -> bool:
    return source in layout.stacks_of_one or (bool(pattern_of(names[0])[2]) and not pattern_of(source)[2])


def _rows_before(layout: TensorLayout, source: str) -> int:
    return layout.rows_before.get(_stem_of(source), 0)


def _entries(layout: TensorLayout, source: str, names: list[str]) -> list[list[str]]:
    """Group the parts of a source by the expert that they are of; all together where it is no stack of experts."""
    if not _is_stack(layout, source, names):
        return [names]
    entries: dict[str, list[str]] = {}
    for name in names:
        entries.setdefault(pattern_of(name)[2], []).append(name)
    return list(entries.values())


def _is_transposed(layout: TensorLayout, source: str) -> bool:
    is_weight = source.endswith(".weight")
    return pattern_of(source)[0] in layout.transposed or (is_weight and _stem_of(source) in layout.transposed)


def _parts(config: ModelConfig, layout: TensorLayout, groups: Mapping[str, list[str]]) -> dict[str, Part]:
    shapes, reshaped = config.tensor_shapes(), layout.ones_elsewhere | layout.vectors_in_rows
    parts: dict[str, Part] = {}
    for source, names in groups.items():
        if _has_latent_heads(layout, source):
            parts |= _of_latent_heads(shapes, source, names)
            continue
        pattern, is_longer = pattern_of(source)[0], _stem_of(source) in layout.rows_behind
        for index, entry in enumerate(_entries(layout, source, names)):
            start = before = _rows_before(layout, source)
            for number, name in enumerate(entry):
                count = shapes[name][0]
                order, columns = (_order(orders, name) for orders in (layout.row_orders, layout.column_orders))
                rows = _rows(config, layout, source, number, start, count, entry)
                if (before or is_longer) and rows is None:
                    rows = slice(start, start + count)
                if order is not None:
                    placed = rows if isinstance(rows, np.ndarray) else np.arange(start, start + count)
                    rows = placed[ORDERS[order](config, count)]
                parts[name] = Part(
                    source=source,
                    index=index if _is_stack(layout, source, names) else None,
                    rows=rows,
                    columns=None if columns is None else ORDERS[columns](config, shapes[name][1]),
                    transposed=_is_transposed(layout, source),
                    is_negative_exponential=pattern in layout.negative_exponentials,
                    offset=-1.0 if layout.norms_plus_one and is_of_norm(name) else 0.0,
                    shape=shapes[name] if pattern in reshaped else None,
                )
                start += count
    return parts


def _order(orders: Mapping[str, str], name: str) -> str | None:
    pattern = pattern_of(name)[0]
    return orders.get(pattern, orders.get(pattern.rpartition(".")[0]))


def _rows(
    config: ModelConfig, layout: TensorLayout, source: str, number: int, start: int, count: int, names: list[str]
) -> slice | Rows | None:
    """Find the rows of part `number` of a source whose parts have these names."""
    stem = _stem_of(source)
    if pattern_of(source)[0] in layout.interleaved:
        return slice(number, None, len(names))
    if stem in layout.by_key_head:
        return _by_key_head(config, number, names)
    if stem in layout.by_group:
        return _by_group(config, number)
    if stem in layout.by_quarter:
        return _by_quarter(count, number)
    if stem in layout.by_head:
        heads = np.arange(count // config.head_dim)[:, None] * len(names) + number
        by_head: Rows = (heads * config.head_dim + np.arange(config.head_dim)).reshape(-1)
        return by_head
    return slice(start, start + count) if len(names) > 1 else None


def _by_group(config: ModelConfig, number: int) -> Rows:
    """Find the rows of queries (part 0), keys or values in a tensor that has those of each key head side by side."""
    groups, H = config.num_key_value_heads, config.head_dim
    sizes = (config.num_attention_heads // groups * H, H, H)
    starts = np.arange(groups)[:, None] * sum(sizes) + sum(sizes[:number])
    rows: Rows = (starts + np.arange(sizes[number])).reshape(-1)
    return rows


def _by_quarter(count: int, number: int) -> Rows:
    """Find the rows of queries (part 0), keys or values in a tensor that has them a quarter of the heads at a time,
    values before keys.
    """
    size, place = count // 4, (0, 2, 1)[number]
    rows: Rows = (np.arange(4)[:, None] * 3 * size + place * size + np.arange(size)).reshape(-1)
    return rows


def _by_key_head(config: ModelConfig, number: int, names: list[str]) -> Rows:
    """Find the rows of part `number` in a tensor that has what all parts have of a key head side by side."""
    heads, key = config.linear_num_key_heads or 1, config.linear_key_head_dim or 1
    sharing = (config.linear_num_value_heads or 1) // heads
    values = sharing * (config.linear_value_head_dim or 1)
    of_parts = {
        "in_proj_qkv": (key, key, values),
        "in_proj_z": (values,),
        "in_proj_b": (sharing,),
        "in_proj_a": (sharing,),
    }
    sizes = [of_parts[name.split(".")[-2]] for name in names]
    starts = np.arange(heads)[:, None] * sum(map(sum, sizes)) + sum(map(sum, sizes[:number]))
    pieces = []
    for size in sizes[number]:
        pieces.append((starts + np.arange(size)).reshape(-1))
        starts = starts + size
    order: Rows = np.concatenate(pieces)
    return order
