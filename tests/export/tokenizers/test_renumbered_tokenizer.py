"""Tokenizers whose class gives SentencePiece's pieces other ids, beside that library and transformers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer, M2M100Tokenizer

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm.text.languages import Languages
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.sources.checkpoint_folder import read_text_files

SENTENCES = [
    "The sea is blue and the sky is grey.", "How much is it? It is 25 pounds.", "fr_XX __fr__ fra_Latn",
    "La mer est bleue et le ciel est gris.", "Combien ça coûte ? C'est 25 livres.", "海はとても青い。空は灰色です。",
] * 4  # fmt: skip
TEXTS = [
    *SENTENCES[:6], "  the   sea", "sea\nsea", "the ﬁne sea", "", "£ sea 鯨鯨", "</s> the <mask> sea", "é",
]  # fmt: skip
MODEL = "sentencepiece.bpe.model"


def train(kind: str, **options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=190,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


BPE, UNIGRAM = train("bpe"), train("unigram")
OF_PEGASUS = train("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


@pytest.fixture
def pair_config() -> ModelConfig:
    """The features of any model with an encoder."""
    return ARCHITECTURES["m2m_100"].to_model_config({"model_type": "m2m_100"})


def write(folder: Path, name: str, model: bytes, **settings: Any) -> Path:
    (folder / name).write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_vocabulary(folder: Path, pieces: list[str]) -> None:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))


def rebuilt(folder: Path) -> Tokenizer:
    out = folder / "rebuilt"
    out.mkdir()
    for name, content in read_text_files(folder).items():
        (out / name).write_text(content, encoding="utf-8")
    return Tokenizer.load(out)


def pieces_of(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.IdToPiece(id_) for id_ in range(3, processor.GetPieceSize())]


def check(tokenizer: Tokenizer, model: bytes, unknown: int, moved: int) -> None:
    """Compare with the library's ids, of which all but those of its first three pieces are so much larger."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    own = processor.unk_id()
    for text in TEXTS:
        expected = [unknown if id_ == own else id_ + moved for id_ in processor.Encode(text)]
        assert tokenizer.encode(text) == expected, text
    for text in SENTENCES[:6]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


# Of what it reads differently, transformers 5.24 keeps a space at the end, and gives mBART no normalization.
THEIRS = [text for text in TEXTS if "<" not in text and "_" not in text and "ﬁ" not in text]


@pytest.mark.parametrize(
    ("class_", "languages", "around"),
    [
        ("MBartTokenizer", 25, (["</s>"], ["en_XX"])),
        ("MBart50Tokenizer", 52, (["en_XX"], ["</s>"])),
    ],
)
def test_mbart_has_fairseq_order_and_its_languages(
    class_: str, languages: int, around: Any, tmp_path: Path, pair_config: ModelConfig
) -> None:
    folder = write(tmp_path, MODEL, UNIGRAM, tokenizer_class=class_)
    tokenizer = rebuilt(folder)
    check(tokenizer, UNIGRAM, unknown=3, moved=1)
    assert len(Languages(tokenizer, pair_config)) == languages
    theirs = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.vocab_size == len(theirs)
    for text in THEIRS:
        assert tokenizer.as_source(tokenizer.encode(text)) == theirs(text).input_ids
    for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "fr_XX"):
        assert tokenizer.id_of(name) == theirs.convert_tokens_to_ids(name)


@pytest.mark.parametrize("model_config", [{"model_type": "m2m_100"}, {"tokenizer_class": "M2M100Tokenizer"}])
def test_m2m100_has_the_ids_of_its_vocabulary_and_languages_behind(
    model_config: dict[str, str], tmp_path: Path, pair_config: ModelConfig
) -> None:
    folder = write(tmp_path, MODEL, BPE)
    (folder / "config.json").write_text(json.dumps(model_config))
    write_vocabulary(folder, [*sorted(pieces_of(BPE)), "▁is▁blue"])
    tokenizer, theirs = rebuilt(folder), M2M100Tokenizer.from_pretrained(folder)
    for text in TEXTS:
        if "<" not in text and "__" not in text:  # control tokens there
            assert tokenizer.as_source(tokenizer.encode(text)) == theirs(text).input_ids
    known = Languages(tokenizer, pair_config)
    assert len(known) == 100
    assert all(known[name] == theirs.get_lang_id(name) for name in known)
    assert known["fr"] not in tokenizer.encode("__fr__")


def test_a_piece_that_m2m100_lacks_has_an_id_of_no_model(tmp_path: Path) -> None:
    folder = write(tmp_path, MODEL, BPE, tokenizer_class="M2M100Tokenizer", src_lang="fr")
    lacked = pieces_of(BPE)[-1]
    write_vocabulary(folder, pieces_of(BPE)[:-1])
    tokenizer = rebuilt(folder)
    count = len(pieces_of(BPE)) - 1 + 4 + 100 + 8
    assert tokenizer.id_of(lacked) == count
    assert tokenizer.around[0] == (tokenizer.id_of("__fr__"),)


@pytest.mark.parametrize(
    ("settings", "languages"),
    [({}, 3), ({"src_lang": "python"}, 3), ({"src_lang": "__java__"}, 3), ({"language_codes": "multi"}, 7)],
)
def test_plbart_has_fairseq_order_and_the_languages_of_programs(
    settings: dict[str, str], languages: int, tmp_path: Path, pair_config: ModelConfig
) -> None:
    folder = write(tmp_path, MODEL, BPE, tokenizer_class="PLBartTokenizer", **settings)
    tokenizer, theirs = rebuilt(folder), AutoTokenizer.from_pretrained(folder)
    check(tokenizer, BPE, unknown=3, moved=1)
    known = Languages(tokenizer, pair_config)
    assert len(known) == languages
    assert dict(known) == {name: theirs.convert_tokens_to_ids(f"__{name}__") for name in known}
    assert tokenizer.id_of("<mask>") == (theirs.convert_tokens_to_ids("<mask>") if languages == 3 else None)
    for text in THEIRS:
        assert tokenizer.as_source(tokenizer.encode(text)) == theirs(text).input_ids


def test_pegasus_has_the_tokens_of_its_pretraining_first(tmp_path: Path) -> None:
    folder = write(tmp_path, "spiece.model", OF_PEGASUS)
    (folder / "config.json").write_text('{"model_type": "pegasus"}')
    tokenizer, theirs = rebuilt(folder), AutoTokenizer.from_pretrained(folder)
    check(tokenizer, OF_PEGASUS, unknown=105, moved=103)
    assert tokenizer.around == ((), (1,))
    for text in THEIRS:
        assert tokenizer.as_source(tokenizer.encode(text)) == theirs(text).input_ids


def test_nllb_has_the_languages_that_its_folder_lists(tmp_path: Path, pair_config: ModelConfig) -> None:
    first = len(pieces_of(BPE)) + 4
    added = {str(first + i): {"content": name, "special": True} for i, name in enumerate(("eng_Latn", "fra_Latn"))}
    folder = write(tmp_path, MODEL, BPE, tokenizer_class="NllbTokenizer", added_tokens_decoder=added)
    tokenizer = rebuilt(folder)
    check(tokenizer, BPE, unknown=3, moved=1)
    assert dict(Languages(tokenizer, pair_config)) == {"eng_Latn": first, "fra_Latn": first + 1}
    assert tokenizer.around == ((first,), (2,))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (BPE, {"tokenizer_class": "NllbTokenizer"}, "nothing there says which id 'eng_Latn' has, which Nllb"),
        (UNIGRAM, {"tokenizer_class": "MBartTokenizer", "src_lang": "xx"}, "nothing there says which id 'xx' has"),
        (
            OF_PEGASUS,
            {"tokenizer_class": "MBart50TokenizerFast"},
            "begins with the pieces '<pad>', '</s>', '<unk>'; its",
        ),
        (UNIGRAM, {"tokenizer_class": "PegasusTokenizer"}, "class expects <pad>, </s>"),
        (OF_PEGASUS, {"tokenizer_class": "PegasusTokenizer", "offset": 0}, "offset is 0; supported is 103"),
        (
            BPE,
            {"tokenizer_class": "M2M100Tokenizer", "language_codes": "wmt21"},
            "language_codes is 'wmt21'; supported is m2m100",
        ),
        (
            BPE,
            {"tokenizer_class": "M2M100Tokenizer"},
            r"must count its 4 tokens from 0, and have <s>, <pad>, </s>, <unk>",
        ),
    ],
)
def test_a_folder_of_another_order_is_refused(
    model: bytes, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 4}')
    with pytest.raises(CheckpointError, match=message):
        read_text_files(write(tmp_path, MODEL, model, **settings))


def test_a_vocabulary_without_the_tokens_of_fairseq_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2}')
    with pytest.raises(CheckpointError, match="must count its 3 tokens from 0, and have <s>, <pad>, </s>, <unk>"):
        read_text_files(write(tmp_path, MODEL, BPE, tokenizer_class="M2M100Tokenizer"))
