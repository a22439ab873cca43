"""The command `edgelm data`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgelm.cli.output import is_terminal, megabytes, one_line, print_json, print_rows, printable
from edgelm.cli.progress import progress_line
from edgelm.cli.wrong_usage import wrong_usage
from edgelm.counted import counted
from edgelm.errors import DataError
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.conversations.chats import Chats, load_chats
from edgelm_training.evaluation.held_out import is_shards
from edgelm_training.texts.corpus import SEARCHED_FOR_OBJECTS, broken_ones, describe_passed_over
from edgelm_training.texts.documents import DocumentConfig
from edgelm_training.texts.shard_writer import PrepareConfig, prepare_shards
from edgelm_training.texts.shards import SPLITS, Shards

_SHOWN_CHARACTERS = 1000
_ONE_DOCUMENT = (
    "There is one document, or one several times, so none is left to validate on: a run on these shards has no "
    "validation loss and no best checkpoint, only the latest. If these are several texts, name the line between them: "
    "--split-on LINE."
)


@click.group()
def data() -> None:
    """Turn text into tokens to train on, and look at them.

    \b
    Examples:
      edgelm data prepare corpus/*.txt --tokenizer tok/ -o shards/
      edgelm data show shards/
      edgelm data show chats.jsonl --tokenizer ckpt/
    """


@data.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS…")
@click.option(
    "--tokenizer", metavar="FOLDER", type=click.Path(path_type=Path), required=True,
    help="A folder with a tokenizer.json: of `edgelm tokenizer train`, or a checkpoint.",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), required=True,
    help="The folder of shards; older shards there are replaced when the new ones are complete.",
)  # fmt: skip
@click.option(
    "--field", default=DocumentConfig.field, show_default=True, metavar="NAME",
    help="The key (JSONL) or column (Parquet) with the text.",
)  # fmt: skip
@click.option(
    "--split-on", metavar="LINE",
    help="The line between the documents of a text file ('' for an empty line); by default each file is one document.",
)  # fmt: skip
@click.option(
    "--max-characters", type=int, metavar="N", default=DocumentConfig.max_characters, show_default=True,
    help="Longer documents are cut, at the end of a paragraph where there is one.",
)  # fmt: skip
@click.option(
    "--validation-fraction", type=float, metavar="X", default=PrepareConfig.validation_fraction, show_default=True,
    help="The share of the documents to keep out of training, chosen by a hash of their text.",
)  # fmt: skip
@click.option("--end-token", metavar="TOKEN", help="The token that ends a document.  [default: the eos_token]")
@click.option("--workers", type=int, metavar="N", help="Processes.  [default: one for each core]")
@click.option(
    "--skip-broken", is_flag=True, help="Leave out broken lines (of a text file: the document), and count them."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def prepare(
    paths: tuple[str, ...],
    tokenizer: Path,
    output: Path,
    field: str,
    split_on: str | None,
    max_characters: int,
    validation_fraction: float,
    end_token: str | None,
    workers: int | None,
    skip_broken: bool,
    as_json: bool,
) -> None:
    """Tokenize a corpus into shards, for `edgelm train --data`.

    PATHS are files (text, .jsonl, .json, .parquet, each also as .gz but Parquet), folders, and globs. The same corpus,
    tokenizer and settings give the same bytes, whatever the number of workers. After Ctrl-C, a crash or an error the
    same command goes on where it stopped; the folder appears when it is complete.

    \b
    Examples:
      edgelm data prepare corpus/*.txt more.jsonl --tokenizer tok/ -o shards/
      edgelm data prepare stories.txt --split-on '<|endoftext|>' --tokenizer tok/ -o shards/
      edgelm data prepare 'web/**/*.jsonl.gz' --field content --skip-broken --tokenizer tok/ -o shards/
      edgelm data prepare books.parquet --tokenizer ckpt/ --workers 8 -o shards/
    """
    with wrong_usage():
        config = PrepareConfig(
            documents=DocumentConfig(
                field=field, split_on=split_on, max_characters=max_characters, skip_broken=skip_broken
            ),
            validation_fraction=validation_fraction,
            end_token=end_token,
            workers=workers,
        )
    if passed_over := describe_passed_over(paths):
        click.echo(one_line(passed_over), err=True)
    with wrong_usage(), progress_line() as progress:
        prepared = prepare_shards(paths, output, tokenizer, config, progress=progress, waiting=_announce_wait)
    figures = {**_shard_figures(output), "unchanged": prepared.unchanged}
    if split_on is not None and not prepared.index.get("separators", 1):  # shards of an earlier version have no count
        click.echo(
            f"No line of the texts is {split_on!r}, so each text file is one document. It must stand by itself: what "
            "stands within a line splits nothing.",
            err=True,
        )
    if validation_fraction and not figures["splits"]["validation"]["documents"]:
        click.echo(_ONE_DOCUMENT, err=True)
    if as_json:
        print_json(figures)
        return
    _print_shards(figures)
    if prepared.unchanged:
        click.echo("They were up to date; nothing was written.", err=True)


def _announce_wait(holder: str) -> None:
    click.echo(f"Another process ({holder or 'unknown'}) prepares the same shards; waiting …", err=True)


@data.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS…")
@click.option(
    "--tokenizer", "model", metavar="FOLDER", type=click.Path(path_type=Path),
    help="For conversations: a folder with a tokenizer.json and a chat_template.jinja.",
)  # fmt: skip
@click.option(
    "--split", type=click.Choice(SPLITS), default="train", show_default=True, help="Which split of the shards."
)
@click.option("-n", "--count", type=click.IntRange(min=0), default=3, show_default=True, help="How many to show.")
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="The first one to show.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures and the texts as JSON.")
def show(paths: tuple[str, ...], model: Path | None, split: str, count: int, start: int, as_json: bool) -> None:
    """Show shards, or what a model learns from conversations.

    PATHS is one folder of shards, or with --tokenizer files of conversations: OpenAI's messages, ShareGPT, Alpaca, or
    prompt and completion. Of those, what is learned is in green, and in ⟦brackets⟧ where there are no colours.

    \b
    Examples:
      edgelm data show shards/
      edgelm data show shards/ --split validation --start 100 -n 1
      edgelm data show chats.jsonl --tokenizer ckpt/
      edgelm data show shards/ --json
    """
    if model is not None:
        if passed_over := describe_passed_over(paths, searched=SEARCHED_FOR_OBJECTS):
            click.echo(one_line(passed_over), err=True)
        with progress_line() as progress:
            chats, _ = load_chats(paths, model, progress=progress)
        _show_chats(chats, Tokenizer.load(model), range(start, start + count), as_json)
        return
    folder = Path(paths[0])
    if not is_shards(folder):
        raise DataError(
            f"{paths[0]} is no folder of shards (`edgelm data prepare` makes one). For conversations, name the model "
            "that reads them: --tokenizer FOLDER."
        )
    if len(paths) > 1:
        raise DataError(f"Shards are shown one folder at a time; these are {len(paths)}. Name one of them.")
    shards = Shards.open(folder, split)
    figures = _shard_figures(folder)
    tokenizer = Tokenizer.load(folder)
    numbers = range(min(start, shards.num_documents), min(start + count, shards.num_documents))
    shown = [_document_figures(shards, tokenizer, number) for number in numbers]
    if as_json:
        print_json({**figures, "split": split, "shown": shown})
        return
    _print_shards(figures)
    for document in shown:
        text = document["text"]
        cut = f" … ({len(text):,} characters)" if len(text) > _SHOWN_CHARACTERS else ""
        click.echo()
        place = one_line(document["place"])
        click.secho(f"{split} {document['number']} · {place} · {document['tokens']:,} tokens", dim=True)
        click.echo(printable(text[:_SHOWN_CHARACTERS]) + cut)


def _shard_figures(folder: Path) -> dict[str, Any]:
    splits = {split: Shards.open(folder, split) for split in SPLITS}
    train = splits["train"]
    return {
        "folder": str(folder),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "vocab_size": train.vocab_size,
        "tokenizer_sha256": train.tokenizer_hash,
        "fingerprint": train.fingerprint,
        "source_files": len(train.index["sources"]),
        "source_bytes": sum(source["bytes"] for source in train.index["sources"]),
        "broken": train.index["broken"],
        "splits": {
            split: {"documents": shards.num_documents, "tokens": shards.num_tokens, "shards": len(shards.shards)}
            for split, shards in splits.items()
        },
    }


def _print_shards(figures: dict[str, Any]) -> None:
    rows = [("shards", f"{figures['folder']} ({megabytes(figures['bytes'])})")]
    for split, counts in figures["splits"].items():
        rows.append((split, f"{counted(counts['tokens'], 'token')}, {counted(counts['documents'], 'document')}"))
    rows.append(("vocabulary", f"{figures['vocab_size']:,} tokens"))
    rows.append(("made of", f"{counted(figures['source_files'], 'file')} ({megabytes(figures['source_bytes'])})"))
    if figures["broken"]:
        rows.append(("left out", broken_ones(figures["broken"])))
    print_rows(rows)


def _document_figures(shards: Shards, tokenizer: Tokenizer, number: int) -> dict[str, Any]:
    ids = shards.document(number).tolist()
    file, line = shards.place(number)
    return {
        "number": number,
        "place": f"{file}:{line}",
        "tokens": len(ids),
        "text": tokenizer.decode(ids, skip_control_tokens=False),
    }


def _show_chats(chats: Chats, tokenizer: Tokenizer, numbers: range, as_json: bool) -> None:
    figures = {
        "conversations": len(chats),
        "tokens": len(chats.token_ids),
        "learned_tokens": int(chats.learned.sum()),
        "longest": int(np.diff(chats.ends, prepend=0).max()),
    }
    shown: list[dict[str, Any]] = []
    for number in range(min(numbers.start, len(chats)), min(numbers.stop, len(chats))):
        file, line = chats.places[number]
        shown.append({"number": number, "place": f"{file}:{line}", "parts": list(_parts(chats, tokenizer, number))})
    if as_json:
        print_json({**figures, "shown": shown})
        return
    share = figures["learned_tokens"] / figures["tokens"]
    rows = [
        ("conversations", f"{figures['conversations']:,}"),
        ("tokens", f"{figures['tokens']:,}, of them learned {figures['learned_tokens']:,} ({share:.0%})"),
        ("longest", f"{figures['longest']:,} tokens"),
    ]
    print_rows(rows)
    coloured = is_terminal(sys.stdout) and click.get_current_context().color is not False
    for chat in shown:
        click.echo()
        click.secho(f"{chat['number']} · {one_line(chat['place'])}", dim=True)
        for part in chat["parts"]:
            text = printable(part["text"])
            if part["learned"]:
                text = click.style(text, fg="green") if coloured else f"⟦{text}⟧"
            click.echo(text, nl=False)
        click.echo()


def _parts(chats: Chats, tokenizer: Tokenizer, number: int) -> Iterator[dict[str, Any]]:
    """Yield a conversation's text in pieces, each learned or not."""
    ids, learned = chats[number]
    for is_learned, run in groupby(zip(ids.tolist(), learned.tolist(), strict=True), key=lambda pair: pair[1]):
        text = tokenizer.decode((id_ for id_, _ in run), skip_control_tokens=False)
        yield {"learned": is_learned, "text": text}
