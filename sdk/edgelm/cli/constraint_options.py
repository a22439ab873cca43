"""Options that say what an answer must be: a JSON schema, a pattern, a grammar, or one of some texts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgelm.cli.wrong_usage import refused, wrong_usage
from edgelm.structure.constraint import Constraint


class _FormFile(click.Path):
    """A file with a form; the form itself, which llama.cpp takes, is refused with what to do."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a file that is there."""
        try:
            return super().convert(value, param, ctx)
        except (click.BadParameter, OSError, ValueError):  # as of a name that is too long
            if not any(sign in str(value) for sign in ("{", "::=", "\n")):
                raise
            self.fail(f"it takes a file. Write the text that begins with {str(value)[:20]!r} into one.", param, ctx)


_FILE = _FormFile(exists=True, dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option("--json-schema", type=_FILE, metavar="FILE", help="Answer with JSON that this JSON schema describes."),
    click.option("--regex", metavar="PATTERN", help="Answer with a text that this pattern matches as a whole."),
    click.option("--grammar", type=_FILE, metavar="FILE", help="Answer with a text of this grammar: Lark, or GBNF."),
    click.option("--choice", multiple=True, metavar="TEXT", help="Answer with this text, or another --choice."),
)
_MAKERS: dict[str, Callable[[Any], Constraint]] = {
    "json_schema": lambda path: Constraint.json_schema(_read_json(path)),
    "regex": Constraint.regex,
    "grammar": lambda path: Constraint.grammar(_read(path)),
    "choice": Constraint.choices,
}


def constraint_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a constraint to a command, which receives it among its `settings`. At most one is given."""

    @functools.wraps(command)
    def with_constraint(*positional: Any, settings: dict[str, Any], **named: Any) -> None:
        given = {name: value for name in _MAKERS if (value := named.pop(name)) not in (None, ())}
        if len(given) > 1:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise refused(f"{names} exclude each other; give one.", *given)
        if given and settings.get("num_beams", 1) > 1:
            option = next(iter(given)).replace("_", "-")
            raise refused(f"--num-beams and --{option} exclude each other; give one.", "num_beams", *given)
        for name, value in given.items():
            from edgelm.structure.constraint_matcher import check_form  # brings numpy with it

            with wrong_usage([name]):
                constraint = _MAKERS[name](value)
                check_form(constraint)
            settings = {**settings, "constraint": constraint}
        command(*positional, **named, settings=settings)

    for option in reversed(_OPTIONS):
        with_constraint = option(with_constraint)
    return with_constraint


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"Cannot read {path}: {error}.") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{path} is not JSON: {error}.") from error
