"""Folders of vocab.json and merges.txt, with the settings of several versions of transformers beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
from fuzz.mutations import mutate_bytes, mutate_json

from edgelm.testing import tiny_model_path
from edgelm_export.sources.checkpoint_folder import read_text_files
from edgelm_export.tokenizers.byte_level_folder import MERGES, SETTINGS_FILES, VOCABULARY

FOLDER = "folder"  # its files in one: those in JSON in a line, then the merges
_JSON_FILES = (VOCABULARY, *SETTINGS_FILES)
_ADDED = {"320": {"content": "<tool>", "special": True, "lstrip": True}, "400": {"content": "<x>", "special": False}}
_OLDER = {
    "added_tokens.json": {"<tool>": 321, "<|im_end|>": 2},
    "special_tokens_map.json": {
        "eos_token": {"content": "<|im_end|>", "lstrip": True},
        "additional_special_tokens": ["a"],
    },
}
_SETTINGS: Sequence[dict[str, Any]] = (
    {
        "tokenizer_config.json": {
            "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_eos_token": True, "add_prefix_space": True,
            "eos_token": {"content": "</s>"}, "tool_token": "<tool>", "added_tokens_decoder": _ADDED,
        },
    },
    {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "pad_token": None}, **_OLDER},
    {"config.json": {"model_type": "gpt_neox"}, **_OLDER},
    {"tokenizer_config.json": {"tokenizer_class": "BartTokenizer", "extra_special_tokens": {"x": "y"}}},
)  # fmt: skip


def prepare(_folder: Path) -> Sequence[bytes]:
    model = json.loads((tiny_model_path() / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    text = "\n".join(["#version: 0.2", *merges, ""]).encode()
    return [json.dumps({VOCABULARY: model["vocab"], **files}).encode() + b"\n" + text for files in _SETTINGS]


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change values of the settings and the vocabulary, or lines and bytes of the merges."""
    settings, _, merges = data.partition(b"\n")
    if random.random() < 0.6:
        return mutate_json(settings, random, others) + b"\n" + merges
    if random.random() < 0.4:
        return settings + b"\n" + mutate_bytes(merges, random, others)
    lines = merges.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 5))):
        place, other = random.randrange(len(lines)), random.choice(lines)
        action = random.random()
        if action < 0.3:
            del lines[place]
        elif action < 0.5:
            lines[place] = b" ".join([*lines[place].split(b" ")[:1], *other.split(b" ")[-1:]])
        elif action < 0.8:
            lines.insert(place, lines.pop(random.randrange(len(lines))))
        else:
            lines.insert(place, random.choice((other, b"", b"\r", other + b"\r", b" ", b"x" * 5000, b"\xff")))
    return settings + b"\n" + b"\n".join(lines or [b""])


def read(folder: Path) -> None:
    """Read a folder; the tokenizers library has to take what is made of it."""
    settings, _, merges = (folder / FOLDER).read_bytes().partition(b"\n")
    for name in _JSON_FILES:
        (folder / name).unlink(missing_ok=True)
    try:
        files = json.loads(settings)
    except (ValueError, RecursionError):
        files = None
    if isinstance(files, dict):
        for name in files.keys() & {*_JSON_FILES}:
            (folder / name).write_text(json.dumps(files[name]))
    else:
        (folder / VOCABULARY).write_bytes(settings)
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / MERGES).write_bytes(merges)
    text = read_text_files(folder)["tokenizer.json"]
    tokenizers.Tokenizer.from_str(text).encode("The sea, 1984:  wide.")
