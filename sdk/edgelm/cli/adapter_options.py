"""The option --adapter: what was learned beside a model, loaded with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

_NAMED = re.compile(r"([A-Za-z0-9._+-]+)=(.+)", re.DOTALL)

adapter_option = click.option(
    "--adapter", metavar="FOLDER", type=click.Path(path_type=Path), help="Answer with an adapter of this package."
)


def _named_folders(
    _context: click.Context, _parameter: click.Parameter, texts: Sequence[str]
) -> tuple[tuple[str | None, Path], ...]:
    matches = [(_NAMED.fullmatch(text), text) for text in texts]
    return tuple((match[1], Path(match[2])) if match else (None, Path(text)) for match, text in matches)


adapters_option = click.option(
    "--adapter", "adapters", multiple=True, metavar="[NAME=]FOLDER", callback=_named_folders,
    help="Load an adapter of this package too; may be given several times.",
)  # fmt: skip


def with_adapters(model: LanguageModel, adapters: Sequence[tuple[str | None, Path]]) -> LanguageModel:
    """Load adapters, and return the model with the first of them as its default."""
    for name, folder in adapters:
        model.load_adapter(folder, name)
    return model.adapted(next(iter(model.adapters))) if adapters else model
