"""The command `edgelm tokenizer`."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path

import click

from edgelm.cli.output import one_line, print_json, print_rows
from edgelm.cli.progress import progress_line, status
from edgelm.cli.wrong_usage import wrong_usage
from edgelm.counted import counted
from edgelm_training.texts.corpus import broken_ones, describe_passed_over
from edgelm_training.texts.documents import DocumentConfig
from edgelm_training.texts.tokenizer_training import CONTROL_TOKENS, TokenizerConfig, train_tokenizer


@click.group()
def tokenizer() -> None:
    """Train the tokenizer of a new model.

    \b
    Examples:
      edgelm tokenizer train corpus/*.txt --vocab-size 8192 -o tok/
    """


@tokenizer.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS…")
@click.option(
    "-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), required=True,
    help="The tokenizer's folder; an older one there is replaced.",
)  # fmt: skip
@click.option(
    "--vocab-size", type=int, metavar="N", default=TokenizerConfig.vocab_size, show_default=True,
    help="Tokens at most, control tokens and the 256 bytes among them.",
)  # fmt: skip
@click.option(
    "--control-token", "control_tokens", multiple=True, metavar="TOKEN",
    help=f"One more token that no text can spell, beside {', '.join(CONTROL_TOKENS)}; repeatable.",
)  # fmt: skip
@click.option(
    "--field", default=DocumentConfig.field, show_default=True, metavar="NAME",
    help="The key (JSONL) or column (Parquet) with the text.",
)  # fmt: skip
@click.option("--skip-broken", is_flag=True, help="Leave out broken lines (of a text file: the document).")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def train(
    paths: tuple[str, ...],
    output: Path,
    vocab_size: int,
    control_tokens: tuple[str, ...],
    field: str,
    skip_broken: bool,
    as_json: bool,
) -> None:
    """Train a byte-level BPE tokenizer on text.

    PATHS are files (text, .jsonl, .json, .parquet, each also as .gz but Parquet), folders, and globs. They are read
    once, in bounded memory. Every text can be encoded, and decodes to the same bytes. The folder has a chat template
    (ChatML), and loads in edgelm and in transformers.

    \b
    Examples:
      edgelm tokenizer train corpus/*.txt --vocab-size 8192 -o tok/
      edgelm tokenizer train corpus/ more.jsonl --field content -o tok/
      edgelm tokenizer train books.parquet --control-token '<|fim|>' -o tok/
    """
    with wrong_usage():
        config = TokenizerConfig(
            vocab_size=vocab_size,
            control_tokens=control_tokens,
            documents=DocumentConfig(field=field, skip_broken=skip_broken),
        )
    if passed_over := describe_passed_over(paths):
        click.echo(one_line(passed_over), err=True)
    with wrong_usage(), contextlib.ExitStack() as shown:
        progress = shown.enter_context(progress_line())

        def merging() -> None:
            progress.close()
            shown.enter_context(status("Finding the tokens"))

        trained = train_tokenizer(paths, output, config, progress=progress, merging=merging)
    if as_json:
        print_json({**asdict(trained), "folder": str(trained.folder)})
        return
    fewer = f" (of {vocab_size}: the text has no more pairs)" if trained.vocab_size < vocab_size else ""
    read = f"{counted(trained.documents, 'document')}, {counted(trained.files, 'file')}"
    rows = [
        ("tokenizer", str(output)),
        ("vocabulary", f"{trained.vocab_size} tokens{fewer}"),
        ("trained on", f"{trained.characters:,} characters, {read}"),
    ]
    if trained.broken:
        rows.append(("left out", broken_ones(trained.broken)))
    print_rows(rows)
