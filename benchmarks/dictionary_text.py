"""A corpus of one domain: what nouns and verbs mean, in sentences, from WordNet (Debian's package wordnet-base).

python benchmarks/dictionary_text.py dictionary/     # writes dictionary/corpus.jsonl, one sentence a document
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click

from definitions import fetch_wordnet, meanings

# Part of speech -> how a definition becomes a sentence.
_SENTENCES = {"noun": "{article} {word} is {gloss}.", "verb": "To {word} is to {gloss}."}
_LONGEST = 300  # characters


def sentences(wordnet: Path) -> Iterator[str]:
    """Yield a sentence for each word of each meaning."""
    for part, pattern in _SENTENCES.items():
        for _, words, gloss in meanings(wordnet, part):
            meaning = re.split(r"; |\"", gloss)[0].strip(" ;:.")
            meaning = re.sub(r"^\([^)]*\) ", "", meaning)
            for word in (re.sub(r"\(.*\)", "", word).replace("_", " ") for word in words):
                sentence = pattern.format(article="An" if word[0] in "aeiouAEIOU" else "A", word=word, gloss=meaning)
                # Names and plurals would be bad sentences of this form.
                if word.islower() and meaning[:1].islower() and len(sentence) <= _LONGEST:
                    yield sentence


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    wordnet = fetch_wordnet(folder / "wordnet")
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        count = sum(1 for sentence in sentences(wordnet) if file.write(json.dumps({"text": sentence}) + "\n"))
    click.echo(f"{count} sentences in {folder / 'corpus.jsonl'}")


if __name__ == "__main__":
    main()
