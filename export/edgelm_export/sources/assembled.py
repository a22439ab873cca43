"""Assembled tensors: what a folder has in parts, or under other names, as the one tensor that a layout names."""

from __future__ import annotations

from collections.abc import Mapping

from edgelm_export.checkpoints.tensor_map import TensorLayout, pattern_of

Shapes = Mapping[str, tuple[int, ...]]


def assembled_names(layout: TensorLayout, present: Shapes) -> dict[str, tuple[str, ...]]:
    """Return the tensors that a folder has in parts, by the layout's names, each with the names of its parts in order.

    present: the folder's tensors and their shapes.
    """
    found = {}
    for whole, parts in layout.assembled.items():
        for name in present:
            pattern, layer, _ = pattern_of(name)
            if pattern == parts[0]:
                names = tuple(part.replace("{i}", layer) for part in parts)
                if present.keys() >= set(names) and _fit(present, names):
                    found[whole.replace("{i}", layer)] = names
    return {whole: names for whole, names in found.items() if whole not in present}


def with_assembled(present: Shapes, assembled: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes with those of whole tensors in the place of their parts'."""
    parts = {name for names in assembled.values() for name in names}
    wholes = {
        whole: (sum(present[name][0] for name in names), *present[names[0]][1:]) for whole, names in assembled.items()
    }
    return {name: shape for name, shape in present.items() if name not in parts} | wholes


def _fit(present: Shapes, names: tuple[str, ...]) -> bool:
    """Tell whether tensors have rows that can stand behind each other."""
    return len({present[name][1:] for name in names}) == 1 and all(present[name] for name in names)
