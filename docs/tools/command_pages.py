"""Give the site one page for each command of `edgelm`: its help, as the terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from edgelm.cli.main import main

FOLDER = "commands"
WIDTH = 100


def on_config(config: MkDocsConfig) -> None:
    """Put the commands into the navigation."""
    for item in config.nav or []:
        if "Commands" in item:
            item["Commands"] = [{name: f"{FOLDER}/{name}.md"} for name, _ in _commands()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name, command in _commands():
        content = f"# edgelm {name}\n\n{_page(f'edgelm {name}', command)}"
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=content))
    return files


def _commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main, info_name="edgelm")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None, name
        yield name, command


def _page(name: str, command: click.Command) -> str:
    """Write the help of a command, and of those in it where it is a group."""
    context = click.Context(command, info_name=name, max_content_width=WIDTH, terminal_width=WIDTH)
    parts = [f"```text\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for inner, sub in sorted(command.commands.items()):
            parts.append(f"## {name} {inner}\n\n{_page(f'{name} {inner}', sub)}")
    return "\n".join(parts)
