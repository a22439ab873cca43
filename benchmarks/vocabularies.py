"""Tokenizers rebuilt from GGUF beside the originals: python benchmarks/vocabularies.py LLAMA_CPP/models

llama.cpp's sources (the sdist of llama-cpp-python has them under vendor/) hold vocabularies of real models, each with
texts and the token ids that the model's own tokenizer gives them. Prints how many texts have the same ids.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from edgelm.errors import CheckpointError
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.gguf.file import GGUFFile
from edgelm_export.gguf.tokenizer import tokenizer_files

SEPARATOR = "\n__ggml_vocab_test__\n"


def rebuilt(path: Path) -> Tokenizer:
    """Rebuild the tokenizer of a GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer_files(GGUFFile.open(path).metadata).items():
            (Path(folder) / name).write_text(content, encoding="utf-8")
        return Tokenizer.load(folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Compare the tokenizers of FOLDER, which has ggml-vocab-NAME.gguf, .gguf.inp and .gguf.out."""
    outputs = sorted(folder.glob("ggml-vocab-*.gguf.out"))
    if not outputs:
        raise click.UsageError(
            f"{folder} has no ggml-vocab-NAME.gguf.out: name the folder models/ of llama.cpp's sources."
        )
    for path in outputs:
        source = path.with_suffix("")
        name = source.stem.removeprefix("ggml-vocab-")
        texts = Path(f"{source}.inp").read_bytes().decode().split(SEPARATOR)
        ids = [[int(id_) for id_ in line.split()] for line in path.read_text().split("\n")[: len(texts)]]
        try:
            tokenizer = rebuilt(source)
        except CheckpointError as error:
            print(f"| {name} | refused: {str(error).partition(';')[0]} |")
            continue
        same = sum(tokenizer.encode(text) == expected for text, expected in zip(texts, ids, strict=True))
        print(f"| {name} | {same} of {len(texts)} |")


if __name__ == "__main__":
    main()
