"""SentencePiece models and what stands beside them in the folders of checkpoints."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from tempfile import NamedTemporaryFile
from typing import Any

from fuzz.mutations import mutate_bytes, mutate_json

from edgelm_export.verification.verification_text import verification_text

_AS_IT_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
_KINDS: Sequence[dict[str, Any]] = (
    {"model_type": "bpe", "byte_fallback": True, "vocab_size": 340, **_AS_IT_IS},
    {"model_type": "bpe", "user_defined_symbols": ["<a>", "<b>c"], "vocab_size": 90},
    {"model_type": "unigram", "vocab_size": 90},
)
_NORMALIZATION = "FB01\t66 69\nFF21\t41\n"  # a short one: nmt_nfkc has 240 kB
_TOKENS = {"0": {"content": "<unk>", "special": True}, "2": {"content": "</s>", "special": False, "lstrip": True}}
_SETTINGS = {
    "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
    "eos_token": {"content": "</s>"}, "unk_token": "<unk>", "chat_template": "{{ 1 }}", "added_tokens_decoder": _TOKENS,
}  # fmt: skip
_SETTINGS_FILE = "tokenizer_config.json"
RENUMBERING = ("MBart50Tokenizer", "M2M100Tokenizer", "PegasusTokenizer")
_NAMES = ("", "a", "x" * 300, "\ud800", "\0", ">>deu<<", "▁", "▁the", "<unk>", "<s>", "\U0001f600")


@cache
def models() -> tuple[bytes, ...]:
    """Return a model of each kind, trained on the text that exports are verified on."""
    import sentencepiece

    found = []
    with NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(_NORMALIZATION)
        rules.flush()
        for options in _KINDS:
            written = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(verification_text().splitlines()), model_writer=written, hard_vocab_limit=False,
                minloglevel=2, num_threads=1, **{"normalization_rule_tsv": rules.name} | options,
            )  # fmt: skip
            found.append(written.getvalue())
    return tuple(found)


def prepare_models(folder: Path) -> Sequence[bytes]:
    """Write what stands beside a model, in a folder of Llama's kind, one of Marian's, and those of classes that number
    the pieces anew; return the models.
    """
    (folder / _SETTINGS_FILE).write_text(json.dumps(_SETTINGS))
    vocabulary = prepare_vocabularies(folder / "marian")[0]
    for class_ in RENUMBERING:
        (folder / class_).mkdir()
        (folder / class_ / _SETTINGS_FILE).write_text(json.dumps({"tokenizer_class": class_}))
        (folder / class_ / "vocab.json").write_bytes(vocabulary)
    return models()


def prepare_settings(folder: Path) -> Sequence[bytes]:
    """Write a model; return the settings beside it."""
    (folder / "tokenizer.model").write_bytes(models()[0])
    added = {"340": {"content": "<tool>", "special": False, "rstrip": True}}
    languages = {"340": {"content": "eng_Latn", "special": True}}
    nllb = {"tokenizer_class": "NllbTokenizer", "legacy_behaviour": False, "src_lang": "eng_Latn"}
    return [
        json.dumps(_SETTINGS | {"added_tokens_decoder": _TOKENS | added}).encode(),
        json.dumps(nllb | {"added_tokens_decoder": languages}).encode(),
    ]


def prepare_vocabularies(folder: Path) -> Sequence[bytes]:
    """Write a model as source.spm; return the vocab.json beside it."""
    from sentencepiece import SentencePieceProcessor

    folder.mkdir(exist_ok=True)
    data = models()[-1]
    (folder / "source.spm").write_bytes(data)
    model = SentencePieceProcessor(model_proto=data)
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    names = dict.fromkeys([*pieces, "</s>", "<unk>", "<pad>", "<s>", ">>fra<<", "▁mer"])
    vocabulary = json.dumps({name: index for index, name in enumerate(names)}).encode()
    (folder / "vocab.json").write_bytes(vocabulary)
    return [vocabulary]


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change a few messages, whose lengths then fit; or bytes anywhere."""
    if random.random() < 0.3:
        return mutate_bytes(data, random, others)
    fields = list(_messages(data))
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.choice((random.randrange(len(fields)), -1, -2))  # the settings are the last two
        tag, content = fields[place]
        action = random.random()
        if action < 0.7:
            fields[place] = (tag, mutate_bytes(content, random, others))
        elif action < 0.8 and len(fields) > 1:
            del fields[place]
        elif action < 0.9:
            fields.insert(random.randrange(len(fields)), fields[place])
        else:
            fields[place] = (random.choice((1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2)), content)
    return b"".join(_varint(tag) + _varint(len(content)) + content for tag, content in fields)


def mutate_vocabulary(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Give pieces other names, under the same numbers; or change the JSON anywhere."""
    if random.random() < 0.3:
        return mutate_json(data, random, others)
    names = list(json.loads(data))
    for _ in range(random.choice((1, 2, 8))):
        names[random.randrange(len(names))] = random.choice((*_NAMES, random.choice(names)[:-1], f"{random.random()}"))
    return json.dumps({name: index for index, name in enumerate(dict.fromkeys(names))}).encode()


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        length, position = _read_varint(data, position)
        yield tag, data[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[position] & 127) << shift
        shift, position = shift + 7, position + 1
        if data[position - 1] < 128:
            return value, position


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)
