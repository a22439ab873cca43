"""Folders whose tokenizer is tekken.json, or a vocabulary for tiktoken, with settings beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
from fuzz.mutations import mutate_bytes, mutate_json

from edgelm_export.sources.checkpoint_folder import read_text_files
from edgelm_export.tokenizers.byte_level_tokenizer import TEKKEN_SPLIT
from edgelm_export.tokenizers.tekken_folder import TEKKEN
from edgelm_export.tokenizers.tiktoken_folder import TIKTOKEN_CLASSES
from edgelm_export.tokenizers.tokenizer_json import TOKENIZER_CONFIG

FOLDER = "folder"  # what is JSON in a line, by the names of its files; then the lines of a vocabulary for tiktoken
_TIKTOKEN = "tiktoken.model"
_TOKENS = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" t", b" th", b" the", b"\n\n", b"19", b"84"]
_LISTED = {"300": {"content": "<tool>", "special": True}, "310": {"content": "<x>", "special": False}}
_LINES = (b"", b"\r", b"AA==", b"AA== 1 2", b"AA== -1", b"AA== 1e3", b"AA== " + b"9" * 5000, b" 7", b"= 7", b"x" * 5000)


def prepare(_folder: Path) -> Sequence[bytes]:
    texts = [base64.b64encode(token).decode() for token in _TOKENS]
    named = [
        {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    tekken: dict[str, Any] = {
        "config": {
            "pattern": TEKKEN_SPLIT, "num_vocab_tokens": len(_TOKENS), "default_vocab_size": 5 + len(_TOKENS),
            "default_num_special_tokens": 5, "version": "v13",
        },
        "vocab": [{"rank": rank, "token_bytes": text, "token_str": None} for rank, text in enumerate(texts)],
        "special_tokens": named,
    }  # fmt: skip
    older = {key: tekken[key] for key in ("config", "vocab")}
    older["config"] = older["config"] | {"version": "v7"}
    settings = {"bos_token": "<s>", "add_bos_token": False, "added_tokens_decoder": {"1": {"content": "<s>"}}}
    seeds = [{TEKKEN: tekken}, {TEKKEN: older, TOKENIZER_CONFIG: {"added_tokens_decoder": _LISTED}}]
    seeds.append({TEKKEN: tekken, TOKENIZER_CONFIG: settings})
    lines = "".join(f"{text} {rank}\n" for rank, text in enumerate(texts)).encode()
    classes = [
        {TOKENIZER_CONFIG: {"tokenizer_class": name, "added_tokens_decoder": _LISTED, "eos_token": "<tool>"}}
        for name in TIKTOKEN_CLASSES
    ]
    return [json.dumps(files).encode() + b"\n" for files in seeds] + [
        json.dumps(files).encode() + b"\n" + lines for files in classes
    ]


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change settings, tokens of a tekken.json, or lines of a vocabulary."""
    text, _, lines = data.partition(b"\n")
    if lines and random.random() < 0.7:
        return text + b"\n" + _mutate_lines(lines, random)
    files = json.loads(text)
    name = random.choice(list(files))
    part: Any = files[name]
    if name == TEKKEN and random.random() < 0.9:  # most of it is the vocabulary
        part = part[random.choice(list(part))]
        if isinstance(part, list) and random.random() < 0.9:
            part = random.choice(part)
    try:
        changed = json.loads(mutate_json(json.dumps(part).encode(), random))
    except (ValueError, RecursionError):  # its bytes were changed
        return mutate_bytes(text, random) + b"\n" + lines
    if isinstance(changed, dict) and isinstance(part, dict):
        part.clear()
        part.update(changed)
    else:
        files[name] = changed
    return json.dumps(files).encode() + b"\n" + lines


def _mutate_lines(data: bytes, random: Random) -> bytes:
    if random.random() < 0.3:
        return mutate_bytes(data, random)
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 3))):
        place, other = random.randrange(len(lines)), random.choice(lines)
        lines[place] = random.choice((other, *_LINES, lines[place] + b" ", other.split(b" ")[0] + b" 3"))
    return b"\n".join(lines)


def read(folder: Path) -> None:
    """Read a folder; the tokenizers library has to take what is made of it."""
    text, _, lines = (folder / FOLDER).read_bytes().partition(b"\n")
    for name in (TEKKEN, TOKENIZER_CONFIG, _TIKTOKEN):
        (folder / name).unlink(missing_ok=True)
    try:
        files = json.loads(text)
    except (ValueError, RecursionError):
        files = None
    if isinstance(files, dict):
        for name in files.keys() & {TEKKEN, TOKENIZER_CONFIG}:
            (folder / name).write_text(json.dumps(files[name]))
    else:
        (folder / TEKKEN).write_bytes(text)
    if lines:
        (folder / _TIKTOKEN).write_bytes(lines)
    made = read_text_files(folder)["tokenizer.json"]
    tokenizers.Tokenizer.from_str(made).encode("The sea, 1984:  wide.")
