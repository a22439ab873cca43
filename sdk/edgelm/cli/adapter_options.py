"""The option --adapter: what was learned beside a model, loaded with it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

_NAMED = re.compile(r"([A-Za-z0-9._+-]+)=(.+)", re.DOTALL)


class NamedFolder(click.ParamType):  # type: ignore[type-arg]  # click before 8.4 takes none
    """A folder, with a name before it where its own is not wanted."""

    name = "folder"

    def convert(self, value: Any, _param: click.Parameter | None, _context: click.Context | None) -> Any:
        """Part the name from the folder."""
        if not isinstance(value, str):
            return value
        match = _NAMED.fullmatch(value)
        return (match[1], Path(match[2])) if match else (None, Path(value))

    def shell_complete(self, _context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let a shell that completes go on with folders."""
        return [CompletionItem(incomplete, type="dir")]

    def placed(self, value: str, folder: Path) -> str:
        """Return the value with its path taken from `folder`."""
        name, path = self.convert(value, None, None)
        placed = str(folder / os.path.expanduser(path))
        return placed if name is None else f"{name}={placed}"


adapter_option = click.option(
    "--adapter", metavar="[NAME=]FOLDER", type=NamedFolder(), help="Answer with an adapter of this package."
)
adapters_option = click.option(
    "--adapter", "adapters", multiple=True, metavar="[NAME=]FOLDER", type=NamedFolder(),
    help="Load an adapter of this package too; may be given several times.",
)  # fmt: skip


def with_adapters(model: LanguageModel, adapters: Sequence[tuple[str | None, Path]]) -> LanguageModel:
    """Load adapters, and return the model with the first of them as its default."""
    for name, folder in adapters:
        model.load_adapter(folder, name)
    return model.adapted(next(iter(model.adapters))) if adapters else model
