"""A task with a measurable score: to define a word as a JSON object of a fixed form.

Words and definitions are WordNet's (Debian's package wordnet-base). Each answer is greedy, and scored on

    form        is it a JSON object with the three keys, the word itself, and a part of speech that exists?
    part        ... and is that the word's most frequent part of speech?
    overlap     F1 of the words of its definition and of WordNet's, 0 where the form is wrong

Beside these stand two perplexities: of the true answers, each after its question; and of another kind of text (Python's
language reference), which a model should not forget. PyTorch computes in float32.
"""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import edgelm
from edgelm.package.manifest import FILE_NAME
from edgelm.runtime.session_options import SessionOptions
from edgelm.text.chat_encoding import encode_chat
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.evaluation.checkpoint_scorer import CheckpointScorer
from edgelm_training.evaluation.held_out import HeldOut
from edgelm_training.evaluation.package_scorer import PackageScorer
from edgelm_training.evaluation.perplexity import Scorer, WindowConfig, measure_perplexity

PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
PROMPT = 'Define "{word}". Answer with a JSON object that has the keys word, part_of_speech and definition.'
SCORES = ("form", "part", "overlap")
ANSWER_TOKENS = 64
_BATCH = 20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A word, its most frequent part of speech, and what it means then."""

    word: str
    part: str
    definition: str
    frequency: int

    @property
    def prompt(self) -> str:
        return PROMPT.format(word=self.word)

    @property
    def answer(self) -> str:
        return json.dumps({"word": self.word, "part_of_speech": self.part, "definition": self.definition})


def fetch_wordnet(folder: Path) -> Path:
    """Fetch WordNet, once, and return where its data files are."""
    return fetch_package("wordnet-base", folder) / "usr/share/wordnet"


def fetch_package(name: str, folder: Path) -> Path:
    """Fetch a package of Debian's with apt-get into a folder that it makes, once, and return where its files are."""
    if not folder.exists():
        folder.mkdir(parents=True)
        subprocess.run(["apt-get", "download", "-q", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["dpkg-deb", "-x", next(folder.glob(f"{name}*.deb")), folder], check=True)
    return folder


def split_entries(folder: Path, *, test: int) -> tuple[list[Entry], list[Entry]]:
    """Return the words to train on and the words to test on, the same in each call."""
    entries = read_wordnet(folder)
    random.Random(0).shuffle(entries)
    return entries[test:], entries[:test]


def read_wordnet(folder: Path) -> list[Entry]:
    """Read the words that WordNet's texts use, each in its most frequent sense; see wndb(5WN)."""
    best: dict[str, Entry] = {}
    for suffix, part in PARTS.items():
        glosses = {offset: re.split(r";|\"", gloss)[0].strip() for offset, _, gloss in meanings(folder, suffix)}
        for line in (folder / f"index.{suffix}").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if line.startswith(" ") or not re.fullmatch(r"[a-z]{4,}", fields[0]):
                continue
            word, pointers = fields[0], int(fields[3])
            frequency, offset = int(fields[5 + pointers]), fields[6 + pointers]
            entry = Entry(word=word, part=part, definition=glosses[offset], frequency=frequency)
            if frequency > 0 and (word not in best or best[word].frequency < frequency):
                best[word] = entry
    return sorted(best.values(), key=lambda entry: entry.word)


def meanings(wordnet: Path, suffix: str) -> Iterator[tuple[str, list[str], str]]:
    """Yield the meanings of a part of speech: their offsets, their words and their glosses; see wndb(5WN)."""
    for line in (wordnet / f"data.{suffix}").read_text(encoding="ascii").splitlines():
        if not line.startswith(" "):
            data, _, gloss = line.partition(" | ")
            fields = data.split()
            yield fields[0], fields[4 : 4 + 2 * int(fields[3], 16) : 2], gloss


def write_chats(entries: Sequence[Entry], path: Path) -> None:
    """Write what `edgelm finetune` learns the task from."""
    lines = (json.dumps({"prompt": entry.prompt, "completion": entry.answer}) + "\n" for entry in entries)
    path.write_text("".join(lines), encoding="utf-8")


def score(entry: Entry, answer: str) -> dict[str, float]:
    try:
        said = json.loads(answer)
    except ValueError:
        said = None
    fits = (
        isinstance(said, dict)
        and said.keys() == {"word", "part_of_speech", "definition"}
        and said["word"] == entry.word
        and said["part_of_speech"] in PARTS.values()
        and isinstance(said["definition"], str)
    )
    if not fits:
        return dict.fromkeys(SCORES, 0.0)
    theirs, ours = (set(re.findall(r"\w+", text.lower())) for text in (entry.definition, said["definition"]))
    shared = len(theirs & ours)
    overlap = 2 * shared / (len(theirs) + len(ours)) if shared else 0.0
    return {"form": 1.0, "part": float(said["part_of_speech"] == entry.part), "overlap": overlap}


def measure(folder: Path, test: Sequence[Entry], *, other_tokens: int, threads: int) -> dict[str, Any]:
    """Return the mean scores of a checkpoint or a package, both perplexities, and its first answers."""
    torch.set_num_threads(threads)
    options = SessionOptions(threads=threads)
    answers = _package_answers(folder, test, options) if is_package(folder) else _torch_answers(folder, test)
    scores = [score(entry, answer) for entry, answer in zip(test, answers, strict=True)]
    scorer: Scorer = PackageScorer(folder, options) if is_package(folder) else CheckpointScorer(folder, threads=threads)
    other = HeldOut(ids=scorer.tokenizer.encode("\n".join(topics.values())), given=1)
    config = WindowConfig(window=512, max_tokens=other_tokens)
    return {name: sum(each[name] for each in scores) / len(scores) for name in SCORES} | {
        "answer perplexity": _answer_perplexity(scorer, test),
        "other perplexity": measure_perplexity(scorer, [other], config).perplexity,
        "answers": answers[:5],
    }


def is_package(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file()


def _package_answers(folder: Path, test: Sequence[Entry], options: SessionOptions) -> list[str]:
    model = edgelm.load(folder, options)
    config = edgelm.GenerationConfig(max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    prompts = [_question(entry, folder, model.tokenizer) for entry in test]
    return [completion.text for completion in model.generate_batch(prompts, config)]


def _torch_answers(folder: Path, test: Sequence[Entry]) -> list[str]:
    """Answer with transformers, which reads our checkpoints and has a KV cache and batches."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(folder)
    end = model.generation_config.eos_token_id
    pad = end[0] if isinstance(end, list) else end
    answers = []
    for start in range(0, len(test), _BATCH):
        prompts = [_question(entry, folder, tokenizer) for entry in test[start : start + _BATCH]]
        longest = max(map(len, prompts))
        ids_BT = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts])
        mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        new_BT = model.generate(
            ids_BT, attention_mask=mask_BT, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=pad
        )[:, longest:]
        answers += [tokenizer.decode(ids) for ids in new_BT.tolist()]
    return answers


def _question(entry: Entry, folder: Path, tokenizer: Tokenizer) -> list[int]:
    template = ChatTemplate.load(folder)
    assert template is not None  # the models of this benchmark are for chats
    return encode_chat(template, tokenizer, [{"role": "user", "content": entry.prompt}])


def _answer_perplexity(scorer: Scorer, test: Sequence[Entry]) -> float:
    nats = tokens = 0.0
    for entry in test:
        question = _question(entry, scorer.folder, scorer.tokenizer)
        answer = [*scorer.tokenizer.encode(entry.answer), scorer.config.eos_token_ids[0]]
        nats += float(scorer.surprises([*question, *answer], len(question)).sum())
        tokens += len(answer)
    return math.exp(nats / tokens)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return a table in Markdown of what `measure` gave for each model."""
    names = [name for name in next(iter(rows.values())) if name != "answers"]
    lines = ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, row in rows.items():
        cells = (f"{row[name]:.2f}" if "perplexity" in name else f"{row[name]:.0%}" for name in names)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
