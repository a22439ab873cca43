"""Held-out documents: the token ids that a model is measured on, from texts or from shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import ConfigError, DataError
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.texts.corpus import SourceFile, find_files, whole_span
from edgelm_training.texts.documents import LONGEST_DOCUMENT, DocumentConfig, DocumentReader
from edgelm_training.texts.shards import INDEX_FILE, Shards

_BEHIND = 1 << 14  # characters


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One document. ids: as the model reads them; the first `given` of them are not scored."""

    ids: list[int]
    given: int


def held_out_documents(
    paths: tuple[str, ...],
    tokenizer: Tokenizer,
    model: Path,
    *,
    field: str = DocumentConfig.field,
    split_on: str | None = None,
    split: str | None = None,
    max_tokens: int | None = None,
) -> Iterator[HeldOut]:
    """Read the documents of files, folders and globs (as `edgelm data prepare` does), or of folders of shards.

    A text begins with the tokens that its tokenizer puts before every text; without any, its first token is given. Of
    shards, `split` is read (None: validation), with the tokens that begin and end its documents. What is named twice is
    read once. max_tokens: of each document's text no more are needed, and what stands far behind them is left out.

    Raises:
        ConfigError: the field, the line between texts, or the split has nothing to be read from.
        DataError: a path does not exist or cannot be read, or shards were made with another tokenizer than `model` has.
    """
    leading = list(tokenizer.leading_ids)
    # A document is scored whole, in windows: nothing is cut as it would be for training.
    config = DocumentConfig(field=field, split_on=split_on, max_characters=LONGEST_DOCUMENT)
    reader = DocumentReader(config)
    sources: dict[Path, Shards | SourceFile] = {}  # all of them found before the first is read
    for path in paths:
        if is_shards(path):
            sources.setdefault(Path(path).resolve(), Shards.open(path, split or "validation"))
        else:
            for file in find_files([path]):
                sources.setdefault(file.path.resolve(), file)
    files = [source for source in sources.values() if isinstance(source, SourceFile)]
    if files:
        config.check_fits(files)
    elif split_on is not None or field != DocumentConfig.field:
        name, value = ("field", field) if split_on is None else ("split_on", split_on)
        raise ConfigError(f"{name} is {value!r}, and the documents of shards are cut already. Leave it out.")
    if split is not None and len(files) == len(sources):
        raise ConfigError(f"split is {split!r}, and {paths[0]} is no folder of shards. Leave it out.")
    for source in sources.values():
        if isinstance(source, Shards):
            yield from _of_shards(source, model)
            continue
        for document in reader.read(source, whole_span(source)):
            ids = _first_ids(tokenizer, document.text, max_tokens)
            yield HeldOut(ids=[*leading, *ids], given=max(1, len(leading)))


def _first_ids(tokenizer: Tokenizer, text: str, most: int | None) -> list[int]:
    """Encode a text, or a beginning of it that has more than `most` tokens: a text of 20 MB takes 2.7 GB.

    Where it is cut, tokens may be others than in the whole; that is far behind those that are wanted.
    """
    size = len(text) if most is None else 8 * most + _BEHIND
    while True:
        ids = tokenizer.encode(text[:size])
        if size >= len(text) or most is None or len(ids) > most + _BEHIND // 8:
            return ids
        size *= 2


def is_shards(path: str | Path) -> bool:
    """Tell whether a path is a folder of shards."""
    return (Path(path) / INDEX_FILE).is_file()


def _of_shards(shards: Shards, model: Path) -> Iterator[HeldOut]:
    shards.check_tokenizer(model)
    if not shards.num_documents:
        raise DataError(f"{shards.folder} has no documents in its {shards.split} split. Choose another: --split.")
    for number in range(shards.num_documents):
        yield HeldOut(ids=shards.document(number).tolist(), given=max(1, len(shards.start_token_ids)))
