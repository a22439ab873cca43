"""A small Llama that is trained here, from its first weight on, with texts that everybody can have.

    python benchmarks/trained_llama.py trained/
    python benchmarks/quality.py trained/llama trained/llama.gguf docs/results/quality --title "Llama, trained here"

The texts are WordNet and Python's documentation (Debian's packages wordnet-base and python3.13-doc), without what
quality.py scores. Everything is done as a user does it: edgelm tokenizer train, data prepare, train. What is done is
not done again: a second call with the same folder goes on where the first was stopped.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import click

from definitions import PARTS, fetch_package, fetch_wordnet, meanings
from edgelm.runtime.cpu import physical_cores
from finetune_proof import run
from gguf_twin import write_first

VOCABULARY = 4096
# Rows of all matrices are multiples of 256, the blocks of llama.cpp's k-quants.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": "true",
}
_MEANINGS = 32  # in one document
_DOCUMENTATION = "usr/share/doc/python3.13/html/_sources"
# quality.py scores the reference. Of what Python's help has of other pages, so many words in a row tell.
_SCORED, _RUN = "reference", 8


def documents(wordnet: Path) -> Iterator[str]:
    """Yield documents: some meanings that follow each other in WordNet, each with its words."""
    for part in PARTS:
        lines = []
        for _, words, gloss in meanings(wordnet, part):
            names = ", ".join(word.partition("(")[0] for word in words)
            lines.append(f"{names.replace('_', ' ')}: {gloss.strip()}")
        for start in range(0, len(lines), _MEANINGS):
            yield "\n".join(lines[start : start + _MEANINGS])


def pages(documentation: Path) -> Iterator[str]:
    """Yield the pages of Python's documentation without their paragraphs that are in Python's help, too."""
    scored = {words for topic in topics.values() for words in _runs(topic)}
    for path in sorted(documentation.rglob("*.rst.txt")):
        if path.relative_to(documentation).parts[0] != _SCORED:
            paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
            yield "\n\n".join(text for text in paragraphs if scored.isdisjoint(_runs(text)))


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[start:] for start in range(_RUN)), strict=False)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", default=2000, show_default=True, help="Of 2,048 tokens each.")
@click.option("--threads", default=physical_cores(), show_default=True)
def main(folder: Path, steps: int, threads: int) -> None:
    """Train the model, and write FOLDER/llama, the checkpoint, and FOLDER/llama.gguf, the same for llama.cpp."""
    corpus, tokenizer, shards, training = (folder / name for name in ("corpus.jsonl", "tokenizer", "shards", "run"))
    if not corpus.exists():
        wordnet = fetch_wordnet(folder / "wordnet")
        documentation = fetch_package("python3.13-doc", folder / "documentation") / _DOCUMENTATION
        texts = [*documents(wordnet), *pages(documentation)]
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    if not tokenizer.exists():
        run("tokenizer", "train", corpus, "--vocab-size", VOCABULARY, "-o", tokenizer)
    run("data", "prepare", corpus, "--tokenizer", tokenizer, "-o", shards)
    shape = [option for field, value in SHAPE.items() for option in ("--model", f"{field}={value}")]
    run(
        "train", "--data", shards, "-o", training, *shape, "--max-steps", steps, "--sequence-length", 1024,
        "--global-batch-size", 2, "--learning-rate", 2e-3, "--schedule", "wsd", "--warmup-steps", 50,
        "--decay-fraction", 0.3, "--save-every", 100, "--eval-every", 200, "--eval-rows", 16, "--sample-every", 0,
        "--seed", 7, "--threads", threads, "--resume",
    )  # fmt: skip
    checkpoint = folder / "llama"
    if not checkpoint.exists():
        shutil.copytree(training / "best", checkpoint, ignore=shutil.ignore_patterns("trainer"))
    write_first(checkpoint, checkpoint.with_suffix(".gguf"))
    run("eval", checkpoint, "--data", shards, "--threads", threads)


if __name__ == "__main__":
    main()
