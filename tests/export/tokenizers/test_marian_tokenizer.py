"""Marian's tokenizer, of two SentencePiece models and one vocabulary, beside transformers' own."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import pytest
import sentencepiece
from transformers import MarianTokenizer

from edgelm.errors import CheckpointError
from edgelm.text.languages import Languages
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.sources.checkpoint_folder import read_text_files

ENGLISH = [
    "The sea is blue and the sky is grey.", "The boats are white; the wind sings over the sand.",
    "In the morning the light comes slowly, and nobody speaks of the night.", "How much is it? It is 25 pounds.",
] * 4  # fmt: skip
FRENCH = [
    "La mer est bleue et le ciel est gris.", "Les bateaux sont blancs ; le vent chante sur le sable.",
    "Le matin la lumière vient lentement, et personne ne parle de la nuit.", "Combien ça coûte ? C'est 25 livres.",
] * 4  # fmt: skip
TEXTS = [
    *ENGLISH[:4], *FRENCH[:3], "  the   sea  ", "blue", "sand\nand sea", "the ﬁne sea", "", "the 海 sea", "é",
    "</s> the sea",
    ">>fra<< The sea is blue.",
]  # fmt: skip


def train(texts: list[str], model_type: str = "unigram", vocab_size: int = 300) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type=model_type,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    names: list[str] = ["</s>", "<unk>"]
    for name, texts in (("source.spm", ENGLISH), ("target.spm", FRENCH)):
        content = train(texts)
        (folder / name).write_bytes(content)
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        names += [model.IdToPiece(i) for i in range(3, model.GetPieceSize())]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys([*names, ">>fra<<", "<pad>"]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return folder


@pytest.fixture(scope="module")
def original(folder: Path) -> MarianTokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without sacremoses it leaves punctuation as it is, as edgelm does
        return MarianTokenizer(*(str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")))


@pytest.fixture(scope="module")
def rebuilt(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    target = tmp_path_factory.mktemp("rebuilt")
    for name, content in read_text_files(folder).items():
        (target / name).write_text(content, encoding="utf-8")
    return Tokenizer.load(target)


@pytest.mark.parametrize("text", TEXTS)
def test_a_source_has_the_ids_of_transformers(text: str, original: MarianTokenizer, rebuilt: Tokenizer) -> None:
    if text == "</s> the sea":  # a control token there; here what a text says never becomes one
        assert 0 not in rebuilt.encode(text)
        return
    assert rebuilt.as_source(rebuilt.encode(text)) == original(text).input_ids


def test_a_language_that_is_asked_for_is_the_one_that_may_be_written(
    original: MarianTokenizer, rebuilt: Tokenizer
) -> None:
    languages = Languages(rebuilt, ARCHITECTURES["marian"].to_model_config({"model_type": "marian"}))
    assert list(languages) == ["fra"]
    for text in (*ENGLISH[:4], "  the sea"):
        assert languages.source_ids(text, None, "fra") == original(f">>fra<< {text}").input_ids


def test_an_answer_in_the_other_language_is_decoded(original: MarianTokenizer, rebuilt: Tokenizer) -> None:
    for text in FRENCH[:4]:
        ids = original(text_target=text).input_ids
        assert rebuilt.decode(ids) == original.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"</s>": 0, "<unk>": 1, "<pad>": 3}, "must count its 3 pieces from 0, and have </s>, <pad>, <unk>"),
        ({"</s>": 0, "<unk>": "1", "<pad>": 2}, "must count its 3 pieces from 0"),
        ({"</s>": 0, "<unk>": 1}, "must count its 2 pieces from 0"),
        ({"</s>": {}, "<unk>": {}, "<pad>": True}, "must count its 3 pieces from 0"),
        ({str(index): index for index in range(66_561)}, r"vocab\.json has 66561 pieces; at most 66560 are read"),
        (
            {"</s>": 0, "<unk>": 1, "<pad>": 2, ">>①<<": 3},
            r"vocab\.json: .* its user-defined piece '>>①<<' would be normalized",
        ),
        ({"</s>": 0, "<unk>": 1, "<pad>": 2, "\ud800": 3}, "tokenizer.json would hold half of a surrogate pair"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(
    vocabulary: dict[str, object], message: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "source.spm").write_bytes((folder / "source.spm").read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(CheckpointError, match=message):
        read_text_files(tmp_path)


def test_a_source_model_that_is_no_unigram_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source.spm").write_bytes(train(ENGLISH, "bpe", 60))
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<unk>": 1, "<pad>": 2}))
    with pytest.raises(CheckpointError, match="of the kind 'bpe'; Marian's are unigrams"):
        read_text_files(tmp_path)


def test_a_source_model_with_a_piece_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source.spm").write_bytes(b"\x0a\x09\x0a\x05<unk>\x18\x02" + b"\x0a\x03\x0a\x01a" * 2)
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<unk>": 1, "<pad>": 2}))
    with pytest.raises(CheckpointError, match=r"source\.spm has pieces that are alike"):
        read_text_files(tmp_path)


def test_a_source_model_without_pieces_of_its_own_makes_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "source.spm").write_bytes(b"\x0a\x09\x0a\x05<unk>\x18\x02")
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<unk>": 1, "<pad>": 2, "a": 3}))
    tokenizer = json.loads(read_text_files(tmp_path)["tokenizer.json"])
    assert tokenizer["model"]["vocab"][3] == ["a", -16.0]
