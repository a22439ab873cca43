"""Tensor maps: canonical tensor names to a source's, complete in both directions and in shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError

_LAYER = re.compile(r"\.(\d+)\.")
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def pattern_of(name: str) -> tuple[str, str]:
    """Split `model.layers.7.mlp.up_proj.weight` into `model.layers.{i}.mlp.up_proj.weight` and `7` (or nothing)."""
    match = _LAYER.search(name)
    if match is None:
        return name, ""
    return f"{name[: match.start()]}.{{i}}.{name[match.end() :]}", match[1]


def source_name(name: str, names: Mapping[str, str] | None) -> str:
    """Translate a canonical name by a table of stems (`Architecture.tensor_names`); None leaves it as it is.

    Raises:
        CheckpointError: the table has no such name.
    """
    if names is None:
        return name
    pattern, layer = pattern_of(name)
    stem, _, suffix = pattern.rpartition(".")
    if stem not in names:
        raise CheckpointError(f"The architecture's table of names lacks {stem}, which its config asks for.")
    return f"{names[stem].replace('{i}', layer)}.{suffix}"


def map_tensors(
    config: ModelConfig,
    names: Mapping[str, str] | None,
    present: Mapping[str, tuple[int, ...]],
    ignored: Collection[str],
    where: object,
) -> dict[str, str]:
    """Map every canonical tensor to the source's name for it.

    names: a table of stems; None where the source has the canonical names. present: the source's tensors and their
    shapes. ignored: patterns of names that hold no weights. where: the file or folder, for the message. A tied head
    that the source stores all the same is passed over: the caller compares it with the embedding.

    Raises:
        CheckpointError: lists every tensor that is missing, unknown, or of another shape.
    """
    if config.num_hidden_layers > len(present):  # before any name is built: a hostile count must not fill the memory
        raise CheckpointError(
            f"{where}: the config has {config.num_hidden_layers} layers, but there are only {len(present)} tensors."
        )
    shapes = config.tensor_shapes()
    mapping = {name: source_name(name, names) for name in shapes}
    known = set(mapping.values())
    if config.tie_word_embeddings:
        known.add(source_name(HEAD, names))
    missing = [source for source in mapping.values() if source not in present]
    unknown = [name for name in present if name not in known and pattern_of(name)[0] not in ignored]
    misshapen = [
        f"{source} is {list(present[source])} instead of {list(shapes[name])}"
        for name, source in mapping.items()
        if source in present and present[source] != shapes[name]
    ]
    problems = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    found = [f"{kind}: {', '.join(listed)}" for kind, listed in problems if listed]
    if found:
        raise CheckpointError(
            f"{where}: the tensors do not fit a {config.model_type} model of this config. {'; '.join(found)}."
        )
    return mapping
