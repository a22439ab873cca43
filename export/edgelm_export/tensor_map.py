"""Tensor maps: where each canonical tensor is in a source, complete in both directions and in shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError

_LAYER = re.compile(r"\.(\d+)\.")
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

Rows = NDArray[np.int64]


def _pairs(config: ModelConfig, rows: int) -> Rows:
    """Undo llama.cpp's order: it rotates neighbours, so its converter puts row i + H/2 of a head behind row i."""
    order: Rows = np.arange(rows).reshape(-1, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return order


def _swapped_halves(config: ModelConfig, rows: int) -> Rows:
    """Turn the other way round: with its halves swapped, a head that turned by -angle turns by angle."""
    order: Rows = np.arange(rows).reshape(-1, 2, config.head_dim // 2)[:, ::-1].reshape(-1)
    return order


# How the rows of queries or keys are to be taken from a source so that they are in our order.
ROW_ORDERS: dict[str, Callable[[ModelConfig, int], Rows]] = {"pairs": _pairs, "swapped halves": _swapped_halves}


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """How a source names and stores the tensors of a family.

    names: canonical stems (a name without its `.weight` or `.bias`), with `{i}` for the layer, to the source's; None
    where the source has the canonical ones. Stems with one and the same source are parts of a fused tensor, stacked in
    their canonical order. prefix: what all names begin with, but not in folders of the family's bare model.
    ignored: names of a source that hold no weights. transposed: source stems whose weights are [in, out].
    by_head: source stems of fused tensors that hold each head's parts side by side. row_orders: canonical stems to
    names in `ROW_ORDERS`. norms_plus_one: the source holds 1 + weight of each norm.
    """

    names: Mapping[str, str] | None = None
    prefix: str = ""
    ignored: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    by_head: frozenset[str] = frozenset()
    row_orders: Mapping[str, str] = field(default_factory=dict)
    norms_plus_one: bool = False

    @property
    def is_canonical(self) -> bool:
        """Whether the source's tensors are ours under our names."""
        renamed = any(name != source for name, source in (self.names or {}).items())
        return not (renamed or self.transposed or self.row_orders or self.norms_plus_one)

    def source_name(self, name: str) -> str:
        """Translate a canonical name.

        Raises:
            CheckpointError: the table has no such name.
        """
        if self.names is None:
            return name
        pattern, layer = pattern_of(name)
        stem, _, suffix = pattern.rpartition(".")
        if stem not in self.names:
            raise CheckpointError(f"The architecture's table of names lacks {stem}, which its config asks for.")
        return f"{self.names[stem].replace('{i}', layer)}.{suffix}"


CANONICAL = TensorLayout()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A canonical tensor inside a source's.

    rows: of the source's tensor, after its transposition; None is all of them. offset: added to each value.
    """

    source: str
    rows: slice | Rows | None = None
    transposed: bool = False
    offset: float = 0.0

    def taken_from(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the canonical tensor from the whole of the source's."""
        tensor = tensor.T if self.transposed else tensor
        tensor = tensor if self.rows is None else tensor[self.rows]
        return np.ascontiguousarray(tensor + np.float32(self.offset) if self.offset else tensor)


def pattern_of(name: str) -> tuple[str, str]:
    """Split `model.layers.7.mlp.up_proj.weight` into `model.layers.{i}.mlp.up_proj.weight` and `7` (or nothing)."""
    match = _LAYER.search(name)
    if match is None:
        return name, ""
    return f"{name[: match.start()]}.{{i}}.{name[match.end() :]}", match[1]


def map_tensors(
    config: ModelConfig, layout: TensorLayout, present: Mapping[str, tuple[int, ...]], where: object
) -> dict[str, Part]:
    """Find every canonical tensor in a source.

    present: the source's tensors and their shapes. where: the file or folder, for the message. A tied head that the
    source stores all the same is passed over: the caller compares it with the embedding.

    Raises:
        CheckpointError: lists every tensor that is missing, unknown, or of another shape.
    """
    if config.num_hidden_layers > len(present):  # before any name is built: a hostile count must not fill the memory
        raise CheckpointError(
            f"{where}: the config has {config.num_hidden_layers} layers, but there are only {len(present)} tensors."
        )
    bare = bool(layout.prefix) and not any(name.startswith(layout.prefix) for name in present)
    prefixed = {layout.prefix + name if bare else name: shape for name, shape in present.items()}
    groups: dict[str, list[str]] = {}
    for name in config.tensor_shapes():
        groups.setdefault(layout.source_name(name), []).append(name)
    _check(config, layout, groups, prefixed, where)
    parts = _parts(config, layout, groups)
    if not bare:
        return parts
    return {name: _without_prefix(part, layout.prefix) for name, part in parts.items()}


def _check(
    config: ModelConfig,
    layout: TensorLayout,
    groups: Mapping[str, list[str]],
    present: Mapping[str, tuple[int, ...]],
    where: object,
) -> None:
    known = set(groups)
    if config.tie_word_embeddings:
        known.add(layout.source_name(HEAD))
    missing = [source for source in groups if source not in present]
    unknown = [name for name in present if name not in known and pattern_of(name)[0] not in layout.ignored]
    misshapen = [
        f"{source} is {list(present[source])} instead of {list(shape)}"
        for source, names in groups.items()
        if source in present and present[source] != (shape := _source_shape(config, layout, source, names))
    ]
    problems = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    found = [f"{kind}: {', '.join(listed)}" for kind, listed in problems if listed]
    if found:
        raise CheckpointError(
            f"{where}: the tensors do not fit a {config.model_type} model of this config. {'; '.join(found)}."
        )


def _source_shape(config: ModelConfig, layout: TensorLayout, source: str, names: list[str]) -> tuple[int, ...]:
    shapes = config.tensor_shapes()
    shape = (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])
    return shape[::-1] if _is_transposed(layout, source) else shape


def _is_transposed(layout: TensorLayout, source: str) -> bool:
    stem, _, suffix = pattern_of(source)[0].rpartition(".")
    return suffix == "weight" and stem in layout.transposed


def _parts(config: ModelConfig, layout: TensorLayout, groups: Mapping[str, list[str]]) -> dict[str, Part]:
    shapes = config.tensor_shapes()
    parts = {}
    for source, names in groups.items():
        by_head = pattern_of(source)[0].rpartition(".")[0] in layout.by_head
        start = 0
        for number, name in enumerate(names):
            count = shapes[name][0]
            rows: slice | Rows | None = None
            if by_head:
                heads = np.arange(count // config.head_dim)[:, None] * len(names) + number
                rows = (heads * config.head_dim + np.arange(config.head_dim)).reshape(-1)
            elif len(names) > 1:
                rows = slice(start, start + count)
            order = layout.row_orders.get(pattern_of(name)[0].rpartition(".")[0])
            if order is not None:
                rows = np.arange(start + count)[start:][ROW_ORDERS[order](config, count)]
            offset = -1.0 if layout.norms_plus_one and name.endswith("norm.weight") else 0.0
            parts[name] = Part(source=source, rows=rows, transposed=_is_transposed(layout, source), offset=offset)
            start += count
    return parts


def _without_prefix(part: Part, prefix: str) -> Part:
    source = part.source.removeprefix(prefix)
    return Part(source=source, rows=part.rows, transposed=part.transposed, offset=part.offset)
