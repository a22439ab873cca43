"""Tokenizers: tokenizer.json, and the files that one is built of."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from fuzz import byte_level_folders, ranked_folders, sentencepiece_models
from fuzz.mutations import mutate_json
from fuzz.target import Target, all_of, tiny_package

from edgelm.text.tokenizer import Tokenizer
from edgelm_export.sources.checkpoint_folder import read_text_files


def _read_text_files(folder: Path) -> None:
    for text in read_text_files(folder).values():
        text.encode()


def _read_sentencepiece(folder: Path) -> None:
    """Read a tokenizer.model as it is, as the source.spm of a Marian folder, and as classes number it anew."""
    copies = [folder / "marian" / "source.spm"]
    copies += [folder / class_ / "tokenizer.model" for class_ in sentencepiece_models.RENUMBERING]
    for path in copies:
        shutil.copy(folder / "tokenizer.model", path)
    all_of(*(functools.partial(_read_text_files, path) for path in (folder, *(path.parent for path in copies))))


ROWS: dict[str, Target] = {
    "tokenizer": Target(
        file="tokenizer.json", prepare=lambda folder: tiny_package(folder, "tokenizer.json"), mutate=mutate_json,
        read=lambda folder: Tokenizer.load(folder) and None, count=8, long_count=10_000,
    ),
    "sentencepiece": Target(
        file="tokenizer.model", prepare=sentencepiece_models.prepare_models, mutate=sentencepiece_models.mutate,
        read=_read_sentencepiece, count=120, long_count=1_000_000,
    ),
    "sentencepiece-settings": Target(
        file="tokenizer_config.json", prepare=sentencepiece_models.prepare_settings, mutate=mutate_json,
        read=_read_text_files, count=120, long_count=100_000,
    ),
    "marian-vocabulary": Target(
        file="vocab.json", prepare=sentencepiece_models.prepare_vocabularies,
        mutate=sentencepiece_models.mutate_vocabulary, read=_read_text_files, count=120, long_count=100_000,
    ),
    "byte-level": Target(
        file=byte_level_folders.FOLDER, prepare=byte_level_folders.prepare, mutate=byte_level_folders.mutate,
        read=byte_level_folders.read, count=200, long_count=100_000,
    ),
    "ranked": Target(
        file=ranked_folders.FOLDER, prepare=ranked_folders.prepare, mutate=ranked_folders.mutate,
        read=ranked_folders.read, count=120, long_count=100_000,
    ),
}  # fmt: skip
