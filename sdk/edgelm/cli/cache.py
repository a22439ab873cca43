"""`edgelm cache`: what is saved of conversations, and how much room it takes."""

from __future__ import annotations

import dataclasses

import click
from click.shell_completion import CompletionItem

from edgelm.cli.output import ask, megabytes, one_line, print_json, print_table
from edgelm.cli.wrong_usage import refused
from edgelm.errors import ConfigError
from edgelm.library.disk_use import size_of
from edgelm.library.library import Library
from edgelm.saved_session import SavedSession, SavedSessions


def complete_session(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the names of saved sessions."""
    try:
        names = SavedSessions().names()
    except (ConfigError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """List saved sessions, and clear what they take on the disk.

    A session is a conversation, and the keys and values that were computed for it, which take most of the room.

    \b
    Examples:
      edgelm cache                     list the sessions
      edgelm cache clear               free the room; the conversations stay
      edgelm cache rm holidays         delete a session
    """
    if context.invoked_subcommand is not None:
        return
    sessions = SavedSessions().sessions()
    if as_json:
        rows = [dataclasses.asdict(session) | {"saved": session.saved.isoformat()} for session in sessions]
        print_json(rows)
    elif sessions:
        _print_table(sessions)
    else:
        click.echo("No sessions are saved.", err=True)


def _print_table(sessions: list[SavedSession]) -> None:
    rows = [
        (
            session.name,
            session.model or "(broken)",
            str(session.messages),
            str(session.tokens),
            megabytes(session.size),
            f"{session.saved:%Y-%m-%d %H:%M}",
        )
        for session in sessions
    ]
    print_table(["NAME", "MODEL", "MESSAGES", "TOKENS", "SIZE", "SAVED"], rows)
    for session in sessions:
        if session.problem is not None:
            click.echo(f"warning: {session.name}: {one_line(session.problem)}", err=True)


@cache.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_session)
@click.option("--calibration", is_flag=True, help="Delete what calibrations that were stopped have left.")
def clear(names: tuple[str, ...], calibration: bool) -> None:
    """Delete the keys and values of sessions; without names, of all.

    The conversations stay. The next turn of such a session computes it once more. With --calibration the sessions stay
    as they are; an export whose calibration was stopped begins anew then.

    \b
    Examples:
      edgelm cache clear
      edgelm cache clear holidays
      edgelm cache clear --calibration
    """
    if calibration:
        if names:
            raise refused("--calibration is not of a session; leave the names out.", "names", "calibration")
        library = Library()
        size = size_of(library.calibration_path)
        running = library.remove_calibrations()
        click.echo(f"Freed {megabytes(size - size_of(library.calibration_path))}.", err=True)
        if running:
            click.echo(f"Calibrations that run now keep theirs: {running}.", err=True)
        return
    saved, names = SavedSessions(), tuple(dict.fromkeys(names))
    sizes = {session.name: session.cache_size for session in saved.sessions()}
    for name in names or tuple(sizes):
        try:
            saved.forget_cache(name)
        except ConfigError:
            if names or name in saved.names():  # else it was removed just now
                raise
    click.echo(f"Freed {megabytes(sum(sizes[name] for name in names or sizes))}.", err=True)


@cache.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_session)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Delete sessions, conversations and all.

    \b
    Examples:
      edgelm cache rm holidays
      edgelm cache rm old older --yes
    """
    saved, names = SavedSessions(), tuple(dict.fromkeys(names))
    for name in names:
        saved.describe(name)  # so that a missing one is an error before anything is asked or deleted
    if not yes:
        ask(f"Delete {', '.join(names)} for good?", "add --yes to delete without asking.")
    for name in names:
        saved.remove(name)
        click.echo(f"Deleted {name}.", err=True)
