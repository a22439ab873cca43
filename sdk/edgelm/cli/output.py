"""Text between the program and its user: what comes from a command line, and what may go to a terminal."""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

import click

from edgelm.cli.columns import columns, padded
from edgelm.completion import Timings, Usage
from edgelm.counted import counted
from edgelm.errors import ConfigError

# Control characters but newline and tab: an answer must not move the cursor, change the title or the clipboard. And
# what turns the direction of writing: code would be read in another order than it has (CVE-2021-42574). Arabic and
# Hebrew are written from right to left without it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What JSON lets pass in a text, and is written as an escape here: control characters, and halves of surrogate pairs.
_ESCAPED = re.compile(r"[\x7f-\x9f\ud800-\udfff]")


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether somebody looks at a standard stream; Python has None for one that is closed."""
    return stream is not None and stream.isatty()


def ask(question: str, way_out: str) -> None:
    """Ask a question whose answer has to be yes.

    Raises:
        click.Abort: it is no.
        click.UsageError: nobody is here to answer; `way_out` is what to do then.
    """
    if not is_terminal(sys.stdin):
        raise click.UsageError(f"Nobody is here to ask: {way_out}")
    click.confirm(question, abort=True, err=True)


def can_redraw(stream: TextIO | None) -> bool:
    """Tell whether a line that is there can be written anew: on a terminal that is not dumb."""
    return is_terminal(stream) and not is_dumb()


def is_dumb() -> bool:
    """Tell whether the terminal is one that text is only ever added to."""
    return os.environ.get("TERM") in ("dumb", "unknown")


def redraw_line(text: str = "") -> None:
    """Write a text over the line of standard error."""
    # color=True: else, without colours, click drops the code that clears the line, and the rest of it would stay.
    click.echo(f"\r\x1b[K{text}", err=True, nl=False, color=True)


def piped_lines() -> Iterator[str]:
    """Yield the lines of standard input; none where it is closed, or open for writing alone, as nohup leaves it.

    Bytes that are not UTF-8 become U+FFFD, with a remark at the first: of a text in GBK or Shift JIS nothing is left.

    Raises:
        ConfigError: it has the character NUL, which is in no text.
    """
    is_whole = True
    try:
        for line in sys.stdin or ():
            if "\0" in line:
                raise ConfigError(
                    "What is piped in is no text in UTF-8: it has the character NUL. It is a binary file, or text in "
                    "UTF-16, which becomes UTF-8 with iconv -f UTF-16 -t UTF-8."
                )
            text = clean_text(line)
            if is_whole and text != line:
                is_whole = False
                click.echo(
                    "What is piped in is not all UTF-8: the model reads \ufffd for the rest. Text in an older encoding "
                    "becomes UTF-8 with iconv, such as iconv -f GBK -t UTF-8.",
                    err=True,
                )
            yield text
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def columns_of_stderr() -> int:
    """Return how wide the terminal behind standard error is, wherever standard output goes."""
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):  # none at all, none that is a terminal, none with a descriptor
        width = 0
    return width or shutil.get_terminal_size().columns


def printable(text: str) -> str:
    """Drop what a terminal would obey instead of showing it."""
    return _CONTROL.sub("", text)


def one_line(text: str) -> str:
    """Drop the same, and show where a line ends: what a package says of itself must not write lines of a report."""
    return printable(text).replace("\n", "⏎")


def clean_text(argument: str) -> str:
    """Replace bytes that are not UTF-8, which the system passes on as lone surrogates, by U+FFFD."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def timing_line(usage: Usage, timings: Timings, finish_reason: str) -> str:
    """Describe one answer: tokens, speed, and why it ended."""
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    guessed = (
        f" ({timings.accepted_tokens} of {timings.drafted_tokens} guessed right)" if timings.drafted_tokens else ""
    )
    return (
        f"{counted(usage.completion_tokens)}{guessed}, {timings.decode_tokens_per_second:.1f} tokens/s · "
        f"prompt {usage.prompt_tokens}{cached}, {timings.prefill_tokens_per_second:.0f} tokens/s · {finish_reason}"
    )


def say_waiting(name: str) -> Callable[[str], None]:
    """Return what says, given its process id, for whom a command waits that works on the model `name`."""
    return lambda owner: click.echo(f"Waiting for process {owner or '?'}, which works on {name} …", err=True)


def megabytes(size: int) -> str:
    """Write a size in bytes for people."""
    if size < 1e5:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print labels, and what each of them is."""
    for label, value in rows:
        click.echo(f"{label:>18}  {one_line(value)}")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below the titles of their columns, each in a line of its own whatever stands in it."""
    table = [[one_line(cell) for cell in cells] for cells in (titles, *rows)]
    widths = [max(map(columns, column)) for column in zip(*table, strict=True)]
    for cells in table:
        click.echo("  ".join(padded(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON, with readable texts where the output is UTF-8; else in ASCII, so that no character is lost."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    if encoding != "utf-8" or _ESCAPED.search(text):
        text = json.dumps(value, indent=indent, default=str)
    click.echo(text)
