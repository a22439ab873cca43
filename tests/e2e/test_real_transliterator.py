"""A trained encoder and decoder through every room: its author's answer, transformers', and a book in both scripts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transliterator
from transformers import M2M100ForConditionalGeneration

import edgelm
from edgelm import GenerationConfig, LanguageModel
from edgelm.library.library import Library
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

pytestmark = pytest.mark.real_model

Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def wheel(shared_library: Library) -> Path:
    with shared_library.lock("detransliterator"):
        return transliterator.fetch_wheel(shared_library.root / "wheels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transliterator") / "source"


@pytest.fixture(scope="module")
def config(wheel: Path, folder: Path) -> GenerationConfig:
    never = transliterator.write_m2m100(wheel, folder)
    return GenerationConfig(max_new_tokens=120, temperature=0.0, logit_bias=dict.fromkeys(never, -100.0))


@pytest.fixture(scope="module")
def pairs(wheel: Path) -> Pairs:
    return transliterator.parallel_lines(wheel, 12)


def load(folder: Path, precision: str) -> LanguageModel:
    package = folder.parent / precision
    export_package(HuggingFaceCheckpoint(folder), package, precision)
    return edgelm.load(package, edgelm.SessionOptions(threads=1))


def answer(model: LanguageModel, text: str, config: GenerationConfig) -> str:
    return model.generate(text, config).text.strip()


def error_rate(answers: list[str], pairs: Pairs) -> float:
    """Return the character error rate: insertions, deletions and substitutions for each character of the reference."""
    edits = sum(edit_distance(given, wanted) for given, (_, wanted) in zip(answers, pairs, strict=True))
    return edits / sum(len(wanted) for _, wanted in pairs)


def edit_distance(a: str, b: str) -> int:
    """Return Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_it_answers_as_its_author_says_and_as_transformers_does(
    folder: Path, config: GenerationConfig, pairs: Pairs
) -> None:
    model = load(folder, "fp32")
    assert answer(model, "musa dunbuya", config) == "ߡߎߛߊ߫ ߘߎ߲ߓߎߦߊ"  # in the package's README
    oracle = M2M100ForConditionalGeneration.from_pretrained(folder).eval()
    never = [[id_] for id_ in config.logit_bias]
    for beams, some in ((1, pairs[:6]), (5, pairs[:1])):
        for text, _ in some:
            ids = torch.tensor([model.tokenizer.as_source(model.tokenizer.encode(text))])
            wanted = oracle.generate(input_ids=ids, num_beams=beams, max_new_tokens=120, bad_words_ids=never)[0]
            given = answer(model, text, dataclasses.replace(config, num_beams=beams))
            assert given == model.tokenizer.decode(wanted.tolist()).strip(), (beams, text)


def test_rounding_costs_it_no_letters(folder: Path, config: GenerationConfig, pairs: Pairs) -> None:
    for precision in ("int8", "int4"):
        model = load(folder, precision)
        # 0.0585 and 0.0571 measured.
        assert error_rate([answer(model, text, config) for text, _ in pairs], pairs) < 0.065, precision
