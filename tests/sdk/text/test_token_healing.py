import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.completion import Message
from edgelm.errors import ConfigError, TokenizerError
from edgelm.generation_config import GenerationConfig
from edgelm.loading import load
from edgelm.structure.constraint import Constraint
from edgelm.testing import scripted_model, tiny_model_path
from edgelm.text.fill_in_middle import FILL_IN_TOKENS, fill_in_ids
from edgelm.text.token_healing import PrefixMatcher, back_up
from edgelm.text.tokenizer import Tokenizer

Row = NDArray[np.float32]


def test_a_prompt_is_backed_up_only_where_a_longer_token_begins_as_it_ends(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("see t")
    assert back_up(tokenizer, ids) == (ids[:-1], tokenizer.token_bytes(ids[-1]))
    begins_control_tokens_alone = tokenizer.encode("see <")
    for rest in (
        [], [5], ids[-1:], [5, tokenizer.control_tokens["<|im_end|>"]], tokenizer.encode("see ~"),
        begins_control_tokens_alone,
    ):  # fmt: skip
        assert back_up(tokenizer, rest) == (rest, b"")


def test_the_first_tokens_write_the_bytes_that_stand_already_or_begin_them(tokenizer: Tokenizer) -> None:
    matcher = PrefixMatcher(tokenizer, b" t")
    row = np.zeros(tokenizer.vocab_size, np.float32)
    matcher.mask(row)
    allowed = {tokenizer.token_text(int(id_)) for id_ in np.flatnonzero(row == 0)}
    assert {" ", " t", " the"} <= allowed
    assert all(text == " " or text.startswith(" t") for text in allowed)
    matcher.advance(tokenizer.encode(" ")[0])
    assert matcher.is_active
    matcher.mask(row := np.zeros(300, np.float32))  # a head that has fewer rows than the tokenizer has tokens
    assert all(tokenizer.token_text(int(id_)).startswith("t") for id_ in np.flatnonzero(row == 0))
    matcher.advance(tokenizer.encode("t")[0])
    assert not matcher.is_active


@pytest.mark.parametrize("prefix", [b"t", b" t", b" the", b"  ", b"the se", "é".encode(), b"<", b"\xff\xff"])
def test_after_the_first_time_few_tokens_are_looked_at(
    tokenizer: Tokenizer, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_of = {id_: tokenizer.token_bytes(id_) for id_ in range(tokenizer.vocab_size)}
    expected = [
        id_
        for id_, data in bytes_of.items()
        if id_ not in tokenizer.control_token_ids and data and (data.startswith(prefix) or prefix.startswith(data))
    ]
    assert tokenizer.ids_by_bytes
    seen: list[int] = []
    monkeypatch.setattr(tokenizer, "token_bytes", lambda id_: seen.append(id_) or bytes_of[id_])
    row = np.zeros(tokenizer.vocab_size, np.float32)
    PrefixMatcher(tokenizer, prefix).mask(row)
    assert np.flatnonzero(row == 0).tolist() == expected
    assert len(seen) < tokenizer.vocab_size / 2


def test_no_control_token_writes_bytes_of_the_prompt(tokenizer: Tokenizer) -> None:
    row = np.zeros(tokenizer.vocab_size, np.float32)
    PrefixMatcher(tokenizer, b"<").mask(row)
    assert (row == 0).any()
    assert all(row[id_] < 0 for id_ in tokenizer.control_token_ids)


def test_an_answer_may_begin_inside_the_last_token_of_the_prompt() -> None:
    # " the" is one token; a prompt that ends in " t" alone would keep the model from writing it.
    model = scripted_model(" the sea")
    assert model.tokenizer.token_text(model.tokenizer.encode(" the")[0]) == " the"
    healed = model.generate("I see t", GenerationConfig(token_healing=True))
    assert healed.text == "he sea"
    assert healed.token_ids[:-1] == tuple(model.tokenizer.encode(" the sea"))
    assert healed.usage.prompt_tokens == len(model.tokenizer.encode("I see"))


def test_a_healed_answer_continues_the_prompt_whatever_is_drawn() -> None:
    model = load(tiny_model_path())
    for seed in range(8):
        config = GenerationConfig(token_healing=True, temperature=2.0, seed=seed, max_new_tokens=4, ignore_eos=True)
        completion = model.generate("I see th", config)
        whole = model.tokenizer.decode(
            [*back_up(model.tokenizer, model.tokenizer.encode_prompt("I see th"))[0], *completion.token_ids]
        )
        assert whole == "I see th" + completion.text


@pytest.mark.parametrize("settings", [{"temperature": 0.5}, {"repetition_penalty": 1.01}])
def test_a_healed_answer_that_is_no_plain_argmax_ends_with_the_end_token(settings: dict[str, float]) -> None:
    model = scripted_model(" the sea")
    healed = model.generate("I see t", GenerationConfig(token_healing=True, seed=0, max_new_tokens=20, **settings))  # type: ignore[arg-type]
    assert (healed.text, healed.finish_reason) == ("he sea", "stop")


def test_a_healed_answer_continues_the_prompt_whatever_a_processor_raises() -> None:
    model = scripted_model(" the sea")
    space = model.tokenizer.encode(" ")[0]

    def raise_a_space(logits_V: Row, token_ids: Sequence[int]) -> None:
        logits_V[space] = 1e6

    config = GenerationConfig(token_healing=True, processors=(raise_a_space,), max_new_tokens=3)
    # Of " t" the space is a beginning, which may come; what does not go on with the "t" may not.
    assert model.tokenizer.token_text(model.generate("I see t", config).token_ids[1]).startswith("t")


def test_of_a_conversation_only_the_assistants_own_words_are_healed() -> None:
    asked = [Message(role="user", content="What do you see?")]
    begun = [*asked, Message(role="assistant", content="I see t")]
    plain, healing = GenerationConfig(), GenerationConfig(token_healing=True)
    model = scripted_model(" the sea")
    healed = model.chat(begun, healing)
    assert (healed.text, healed.usage.prompt_tokens) == ("he sea", len(model.encode_chat(begun)) - 1)
    # What a template writes behind a question is no half of a word.
    assert model.chat(asked, healing).usage == model.chat(asked, plain).usage


def test_healing_and_a_constraint_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="token_healing and constraint exclude each other"):
        GenerationConfig(token_healing=True, constraint=Constraint.regex("a"))


@pytest.mark.parametrize("names", FILL_IN_TOKENS, ids=lambda names: names[0])
def test_the_middle_is_asked_for_in_the_models_own_tokens(tmp_path: Path, names: tuple[str, str, str]) -> None:
    spec = json.loads((tiny_model_path() / "tokenizer.json").read_text(encoding="utf-8"))
    for id_, name in enumerate(names):
        spec["model"]["vocab"][name] = spec["model"]["vocab"].pop(spec["added_tokens"][id_]["content"])
        spec["added_tokens"][id_]["content"] = name
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    # What the texts say of these tokens is text.
    ids = fill_in_ids(tokenizer, f"def {names[1]}", "return")
    assert ids == [0, *tokenizer.encode(f"def {names[1]}"), 1, *tokenizer.encode("return"), 2]


def test_a_model_without_such_tokens_says_so() -> None:
    with pytest.raises(TokenizerError, match=r"no tokens to fill in the middle; edgelm knows <.fim_prefix"):
        load(tiny_model_path()).infill("a", "b")
