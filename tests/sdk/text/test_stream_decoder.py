import random
from pathlib import Path

import pytest

from edgelm import GenerationConfig, LanguageModel
from edgelm.completion import Message
from edgelm.testing import ScriptedDecoder, scripted_model
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.stream_decoder import StreamDecoder
from edgelm.text.tokenizer import Tokenizer

TEXTS = ("The sea", "漢字かな", "😀 👨‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 e\u0301", " leading", "  two", "a\ufffdb")


@pytest.fixture(params=["byte_level_folder", "metaspace_folder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder: Path = request.getfixturevalue(request.param)
    return Tokenizer.load(folder)


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(id_) for id_ in ids), decoder.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_make_the_text_and_none_has_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = pieces_of(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces).replace("a\ufffdb", "")


def test_a_character_split_over_tokens_comes_with_its_last_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😂b")
    pieces = pieces_of(tokenizer, ids)
    assert len(ids) > 4
    assert pieces.count("😂") == 1
    assert pieces[-1] == ""


def test_any_list_of_tokens_gives_what_decode_gives(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size + 3) for _ in range(rng.randrange(30))]
        assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def test_bytes_that_are_no_character_do_not_hold_the_text_back(tokenizer: Tokenizer) -> None:
    a = tokenizer.encode("a")[-1]
    begun = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xe2")
    assert pieces_of(tokenizer, [begun, a, begun]) == ["", "\ufffda", "", "\ufffd"]


def test_control_tokens_have_no_text_even_within_a_character(tokenizer: Tokenizer) -> None:
    ids = [i for i in tokenizer.encode("😂") if tokenizer.token_bytes(i) != b" "]
    control = min(tokenizer.control_token_ids)
    assert "".join(pieces_of(tokenizer, [control, ids[0], control, *ids[1:], control])) == "😂"


def test_control_tokens_that_are_visible_are_text(tokenizer: Tokenizer) -> None:
    shown, hidden = sorted(tokenizer.control_tokens)[:2]
    decoder = StreamDecoder(tokenizer, visible=[shown])
    assert [decoder.push(tokenizer.control_tokens[name]) for name in (shown, hidden)] == [shown, ""]


def test_a_space_that_the_encoder_put_there_is_dropped_once_and_only_where_that_is_wanted(
    metaspace_folder: Path,
) -> None:
    tokenizer = Tokenizer.load(metaspace_folder)
    word, nothing = tokenizer.id_of("▁hi"), tokenizer.vocab_size + 7
    assert word is not None
    assert pieces_of(tokenizer, [nothing, word, word]) == ["", "hi", " hi", ""]
    decoder = StreamDecoder(tokenizer, keep_leading_space=True)
    assert [decoder.push(word), decoder.push(word)] == [" hi", " hi"]


@pytest.mark.parametrize("skip", [1, 2, 3, 7])
def test_bytes_that_stand_already_are_not_shown_however_many_tokens_they_take(
    byte_level_folder: Path, skip: int
) -> None:
    tokenizer = Tokenizer.load(byte_level_folder)
    letters = [tokenizer.id_of(letter) for letter in "unthinkable"]
    assert None not in letters
    decoder = StreamDecoder(tokenizer, skip=skip)
    assert "".join(decoder.push(id_) for id_ in letters if id_ is not None) == "unthinkable"[skip:]


def test_an_answer_keeps_the_space_before_it_where_it_goes_on_with_a_text(metaspace_folder: Path) -> None:
    double, tokenizer = scripted_model("x"), Tokenizer.load(metaspace_folder)
    model = LanguageModel(
        session=ScriptedDecoder(double.config, tokenizer.encode("hi sea")),
        tokenizer=tokenizer,
        chat_template=ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}"),
        generation_config=GenerationConfig(stop_token_ids=[tokenizer.control_tokens["</s>"]]),
        manifest=double.manifest,
    )
    assert model.generate("sea").text == model.generate(tokenizer.encode("sea")).text == " hi sea"
    assert model.generate("sea", GenerationConfig(num_beams=2, stop=" hi")).text == ""
    # Before it is no text, or that of another turn.
    assert model.generate([tokenizer.control_tokens["<s>"]]).text == "hi sea"
    asked, begun = Message(role="user", content="sea"), Message(role="assistant", content="sea")
    assert model.chat([asked]).text == "hi sea"
    assert model.chat([asked, begun]).text == " hi sea"
