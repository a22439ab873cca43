import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from constraint_texts import accepts
from json_files import edited_json
from metaspace_tokenizer import write_metaspace

from edgelm.decoding.answer import join
from edgelm.decoding.sampling import Sampler
from edgelm.errors import ConfigError, EdgeLMError, MissingExtraError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.structure.constraint import Constraint
from edgelm.structure.schema_gaps import close_gaps
from edgelm.testing import scripted_model
from edgelm.text.tokenizer import Tokenizer

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["person", "personage"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def constrained(constraint: Constraint, **settings: Any) -> GenerationConfig:
    return GenerationConfig(constraint=constraint, **{"max_new_tokens": 200, **settings})


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.5, "top_k": 9, "seed": 4}])
def test_an_answer_has_the_form_of_its_json_schema(model: LanguageModel, settings: dict[str, Any]) -> None:
    completion = model.generate("The sea", constrained(Constraint.json_schema(PERSON), **settings))
    assert completion.finish_reason == "stop"
    jsonschema.validate(json.loads(completion.text), PERSON)
    # In one line, with the spaces of most JSON that models have read.
    assert completion.text.startswith('{"name": "')
    assert re.search(r', "age": \d+, "kind": "person(age)?"}$', completion.text)


def test_an_answer_matches_its_pattern_grammar_or_choice(model: LanguageModel) -> None:
    free = {"temperature": 1.0, "seed": 1}
    assert re.fullmatch(
        r"[a-f]{3}-[0-9]+!", model.generate("x", constrained(Constraint.regex("[a-f]{3}-[0-9]+!"), **free)).text
    )
    grammar = 'start: pair ("," pair)*\npair: /[a-z]/ "=" ("0" | "1")'
    text = model.generate("x", constrained(Constraint.lark(grammar), max_new_tokens=40, **free)).text
    assert re.match(r"[a-z]=[01]", text)
    gbnf = 'root ::= pair ("," pair){2}\npair ::= [a-z] "=" ( "0" | "1" ) # a bit\n'
    text = model.generate("x", constrained(Constraint.gbnf(gbnf), **free)).text
    assert re.fullmatch(r"[a-z]=[01](,[a-z]=[01]){2}", text)
    choices = ["yes", "yes, sure", 'a "quoted" one', "日本"]
    for seed in range(5):
        config = constrained(Constraint.choices(choices), temperature=2.0, seed=seed)
        assert model.generate("x", config).text in choices
    completion = model.generate(
        "x", constrained(Constraint.json_object(), temperature=1.0, seed=11, max_new_tokens=900)
    )
    assert completion.text.startswith("{")
    if completion.finish_reason == "stop":
        assert isinstance(json.loads(completion.text), dict)


def test_comments_of_gbnf_are_told_from_what_looks_like_them(tokenizer: Tokenizer) -> None:
    gbnf = Constraint.gbnf('# "a\nroot ::= "#" [#"] x # [b\n# c\n\nx ::= ( # "\n"\\"#" )#d')
    assert [accepts(gbnf, tokenizer, text) for text in ('##"#', '#""#', '##"')] == [True, True, False]


def test_the_answer_ends_where_nothing_can_follow_even_without_end_tokens(model: LanguageModel) -> None:
    completion = model.generate("x", constrained(Constraint.choices(["abc"]), ignore_eos=True))
    assert (completion.text, completion.finish_reason) == ("abc", "stop")
    # Only an end token may follow a complete text that could go on: here at the latest after three letters.
    for seed in range(5):
        completion = model.generate("x", constrained(Constraint.regex("[ab]{1,3}"), temperature=1.0, seed=seed))
        assert re.fullmatch("[ab]{1,3}", completion.text)


def test_an_end_token_never_comes_before_the_text_is_complete(model: LanguageModel) -> None:
    biased = constrained(Constraint.json_schema(PERSON), logit_bias={2: 1e6}, temperature=1.0, seed=0)
    jsonschema.validate(json.loads(model.generate("x", biased).text), PERSON)
    # Also a token of text that the request calls an end.
    space = model.tokenizer.encode(" ")[0]
    completion = model.generate("x", constrained(Constraint.choices(["a b"]), stop_token_ids=(space,)))
    assert completion.text != "a"
    # And where the form leaves no choice about the text, which other tokens can write, or none.
    second = model.tokenizer.encode("hello world")[1]
    completion = model.generate("x", constrained(Constraint.regex("hello world"), stop_token_ids=(second,)))
    assert (completion.text, completion.finish_reason) == ("hello world", "stop")
    with pytest.raises(EdgeLMError, match=r"continues it but those that end the answer \(stop_token_ids\)\."):
        model.generate("x", constrained(Constraint.choices(["q"]), stop_token_ids=model.tokenizer.encode("q")))


def test_forced_tokens_are_computed_in_one_step_and_are_those_of_one_at_a_time() -> None:
    model = scripted_model("unused")
    text = "This whole sentence is forced, from its first letter to its last; 日本 too."
    completion = model.generate("x", constrained(Constraint.choices([text]), logprobs=1))
    assert completion.text == text
    assert list(completion.token_ids) == model.tokenizer.encode(text)
    assert len(completion.logprobs) == len(completion.token_ids)
    steps = [len(ids) for ids in model.session.forwarded[1:]]  # type: ignore[attr-defined]
    assert len(steps) < len(completion.token_ids) / 4


@pytest.mark.parametrize("speculation", [None, "prompt_lookup"])
def test_no_more_is_forced_into_a_cache_than_the_answer_may_have(model: LanguageModel, speculation: str | None) -> None:
    text = "This whole sentence is forced, from its first letter to its last."
    config = constrained(Constraint.choices([text]), max_new_tokens=9, speculation=speculation)
    cache = model.new_cache()
    answer = join(model.stream([5, 6, 7], config, cache=cache))
    assert answer.usage.completion_tokens == 9
    assert cache.token_ids == [5, 6, 7, *answer.token_ids]


def test_fast_forwarding_changes_neither_tokens_nor_logprobs(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = constrained(Constraint.json_schema(PERSON), temperature=1.0, seed=5, logprobs=0, repetition_penalty=1.2)
    fast = model.generate("The sea", config)
    monkeypatch.setattr(Sampler, "forced_tokens", lambda self, most: [])
    slow = model.generate("The sea", config)
    assert fast.token_ids == slow.token_ids
    # Steps of several tokens compute attention in another order; measured: 1e-6.
    np.testing.assert_allclose(
        [token.logprob for token in fast.logprobs], [token.logprob for token in slow.logprobs], atol=1e-4
    )


def test_streaming_stops_and_limits_work_with_a_constraint(model: LanguageModel) -> None:
    config = constrained(Constraint.json_schema(PERSON), temperature=1.0, seed=5)
    whole = model.generate("x", config)
    chunks = list(model.stream("x", config))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert len(chunks) > 3
    stopped = model.generate("x", config.replace(stop=("age",)))
    assert (stopped.text, stopped.finish_reason) == (whole.text.partition("age")[0], "stop")
    cut = model.generate("x", config.replace(max_new_tokens=4))
    assert cut.finish_reason == "length"
    assert cut.token_ids == whole.token_ids[:4]
    held_back = model.generate("x", constrained(Constraint.choices(["over the se"]), stop=("sea",)))
    assert (held_back.text, held_back.finish_reason) == ("over the se", "stop")


def test_a_constraint_can_begin_after_a_text(tokenizer: Tokenizer) -> None:
    model = scripted_model("I think: Answer: maybe so")
    constraint = Constraint.choices([" yes", " no"]).starting_after("Answer:", "never said")
    assert re.fullmatch("I think: Answer: (yes|no)", model.generate("x", constrained(constraint)).text)
    at_start = Constraint.choices([" yes", " no"]).starting_after("Answer:", at_start=True)
    assert model.generate("x", constrained(at_start)).text == "I think: Answer: maybe so"
    begun = scripted_model(" Answer: maybe so").generate("x", constrained(at_start)).text
    assert re.fullmatch(" Answer: (yes|no)", begun)


def test_no_token_carries_an_answer_over_the_beginning_of_its_constraint(tokenizer: Tokenizer) -> None:
    # " m" would finish the text and begin with a letter that is no choice's; " y" is fine, as is the space alone.
    matcher = Constraint.choices(["yes"]).starting_after(": ").compile(tokenizer)
    matcher.advance(tokenizer.encode(":")[0])
    assert matcher.is_active
    row = np.zeros(tokenizer.vocab_size, np.float32)
    matcher.mask(row)
    masked = {tokenizer.token_text(int(id_)) for id_ in np.flatnonzero(row < 0)}
    assert " m" in masked
    assert not {" ", " y", "m", "\n"} & masked


def test_a_vocabulary_padded_beyond_the_tokenizer_is_masked_there(tokenizer: Tokenizer) -> None:
    matcher = Constraint.regex("[ab]+").compile(tokenizer, end_ids=[2])
    row = np.zeros(tokenizer.vocab_size + 64, np.float32)
    matcher.mask(row)
    allowed = {tokenizer.token_text(int(id_)) for id_ in np.flatnonzero(row == 0)}
    assert {"a", "b"} <= allowed <= {"a", "b", "aa", "ab", "ba", "bb"}
    assert (row[tokenizer.vocab_size :] < 0).all()
    # A head that has fewer rows than the tokenizer has tokens.
    matcher.mask(row[:300])


def test_gbnf_may_name_any_character(tokenizer: Tokenizer) -> None:
    gbnf = Constraint.gbnf(r'root ::= [\U0001F600-\U0001F64F] "\u4f60\U0001F600\U00000022\\U0001F600" [一-龥]')
    assert accepts(gbnf, tokenizer, '🙏你😀"\\U0001F600好')
    assert not accepts(gbnf, tokenizer, '☺你😀"\\U0001F600好')


def test_a_choice_may_have_any_character(tokenizer: Tokenizer) -> None:
    for text in ('"', "\\", "/", "\n", "\x00", "\x1f", "\x7f", "\x80", "\u2028", "\ufeff", "😀"):
        assert accepts(Constraint.choices([text]), tokenizer, text), ascii(text)


def test_tokenizers_that_put_a_space_before_a_text_match_from_the_first_character(metaspace_folder: Path) -> None:
    tokenizer = Tokenizer.load(metaspace_folder)
    for text in ("hi", " hi", "<s>"):
        assert accepts(Constraint.choices([text]), tokenizer, text)
    assert not accepts(Constraint.choices(["hi"]), tokenizer, " hi")
    assert tokenizer.encode_continuation("hi") != tokenizer.encode("hi")


def answer_under(constraint: Constraint, tokenizer: Tokenizer) -> str:
    """Return what is written by what must come, and of what may come the first."""
    matcher, ids = constraint.compile(tokenizer), list[int]()
    while not matcher.is_complete:
        row = np.zeros(tokenizer.vocab_size, np.float32)
        matcher.mask(row)
        ids.append((matcher.forced() or [int(row.argmax())])[0])
        matcher.advance(ids[-1])
    return b"".join(map(tokenizer.token_bytes, ids)).decode()


@pytest.mark.parametrize("text", ["hi", "  hi  sea", "ｈｉ ①", "漢字\x02", '{"名前": "ﾃｽﾄ"}'])
def test_a_text_that_the_tokenizer_would_change_is_written_as_it_stands(tmp_path: Path, text: str) -> None:
    as_sentencepiece_does = [
        {"type": "Nmt"}, {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]  # fmt: skip
    with edited_json(write_metaspace(tmp_path) / "tokenizer.json") as content:
        content["normalizer"]["normalizers"][:0] = as_sentencepiece_does
    assert answer_under(Constraint.choices([text]), Tokenizer.load(tmp_path)) == text


def test_a_vocabulary_that_cannot_write_what_must_come_is_named(tmp_path: Path) -> None:
    with edited_json(write_metaspace(tmp_path) / "tokenizer.json") as content:
        content["model"]["byte_fallback"] = False
        decoder = content["decoder"]
        decoder["decoders"] = [step for step in decoder["decoders"] if step["type"] != "ByteFallback"]
    with pytest.raises(ConfigError, match="followed: no token of this model's vocabulary continues it"):
        answer_under(Constraint.choices(["h漢"]), Tokenizer.load(tmp_path))


def test_a_control_token_is_no_text(tokenizer: Tokenizer) -> None:
    matcher = Constraint.regex("(?s:.*)").compile(tokenizer)
    row = np.zeros(tokenizer.vocab_size, np.float32)
    matcher.mask(row)
    assert all(row[id_] < 0 for id_ in tokenizer.control_token_ids)


def test_a_constraint_that_no_token_continues_is_an_error(tokenizer: Tokenizer) -> None:
    matcher = Constraint.choices(["a"]).compile(tokenizer, end_ids=[])
    matcher.advance(tokenizer.encode("a")[0])
    assert matcher.is_complete
    with pytest.raises(EdgeLMError, match="allows no token here"):
        matcher.mask(np.zeros(tokenizer.vocab_size, np.float32))
    with pytest.raises(EdgeLMError, match="cannot be followed"):
        Constraint.choices(["a"]).compile(tokenizer).advance(tokenizer.encode("b")[0])


def test_an_answer_may_be_one_of_thousands_of_choices(model: LanguageModel, tokenizer: Tokenizer) -> None:
    labels = [f"label {number}" for number in range(2500)]
    constraint = Constraint.choices(labels)
    assert model.generate("x", constrained(constraint, temperature=2.0, seed=1)).text in labels
    assert all(accepts(constraint, tokenizer, label) for label in ("label 2", "label 24", "label 249", "label 2499"))
    assert not accepts(constraint, tokenizer, "label 2500")


def test_a_constraint_is_shown_in_one_line() -> None:
    schema = Constraint.json_schema({"type": "object", "properties": {"name": {"type": "string"}}})
    assert repr(schema) == """<Constraint: json_schema '{"type": "ob...: "string"}}}'>"""
    assert repr(Constraint.regex("a").starting_after(": ")) == "<Constraint: regex 'a' after (': ',)>"
    with pytest.raises(ConfigError, match=r"and constraint is <Constraint: regex 'a'>; beam search chooses every"):
        GenerationConfig(constraint=Constraint.regex("a"), num_beams=2)


@pytest.mark.parametrize("multiple", [7, 0.01, 2.5, 100_000_000, 1e300, 99_990, True, 0, -5, math.nan, "text", [3]])
def test_multiples_of_few_states_and_what_is_none_are_left_to_llguidance(multiple: object) -> None:
    schema = {"properties": {"multipleOf": {"multipleOf": multiple}}}
    assert close_gaps(schema) == schema


def test_bounds_that_numpy_computed_are_numbers_like_others() -> None:
    bounds = {"minimum": 0.25, "exclusiveMaximum": 9.75, "multipleOf": 0.5}
    computed = {name: np.float64(bound) for name, bound in bounds.items()}
    assert Constraint.json_schema(computed) == Constraint.json_schema(bounds)


def test_choices_may_come_one_by_one() -> None:
    assert Constraint.choices(text for text in ("yes", "no")) == Constraint.choices(["yes", "no"])


def _branching(depth: int) -> dict[str, Any]:
    """Return a schema of objects in objects, two in each."""
    inner = _branching(depth - 1) if depth else {"type": "string"}
    return {"type": "object", "properties": {"a": inner, "b": inner}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.json_schema([]), r"JSON schema is \[\]; it must be a mapping"),  # type: ignore[arg-type]
        (lambda: Constraint.json_schema("{}"), "pydantic class gives .* json.loads makes one of"),  # type: ignore[arg-type]
        (lambda: Constraint.json_schema({"const": {1}}), "The JSON schema is not JSON"),
        (lambda: Constraint.json_schema({1: 2}), "The JSON schema is not JSON: it has the key 1, and keys are texts"),  # type: ignore[dict-item]
        (lambda: Constraint.json_schema({"minProperties": 3}), "minProperties is 3, with 0 properties required"),
        (
            lambda: Constraint.json_schema({"properties": {"a": {"multipleOf": 999_983}}}),
            "its multipleOf, 999983 the largest of 1, would take long to follow",
        ),
        (
            lambda: Constraint.json_schema({"allOf": [{"multipleOf": 9.97}, {"multipleOf": 991}]}),
            "its multipleOf, 991 the largest of 2, would take long to follow",
        ),
        (lambda: Constraint.json_schema({"multipleOf": 10**5000 + 7}), r"its multipleOf, 1.0*e\+5000 the largest of 1"),
        (
            lambda: Constraint.json_schema({"properties": {f"{i}": {} for i in range(1003)}, "required": ["1"]}),
            "an object has 1002 properties that may be left out; up to 1000 can be followed",
        ),
        (
            lambda: Constraint.json_schema({"properties": {"x": {"enum": [1, *([i] for i in range(4001))]}}}),
            "an enum has 4001 objects and lists; up to 4000 can be followed",
        ),
        (lambda: Constraint.regex(""), "The regular expression is ''"),
        (lambda: Constraint.choices([]), r"choices is \[\]"),
        (lambda: Constraint.choices(["a", ""]), "none of them empty"),
        (lambda: Constraint.choices("yes"), "choices takes a list of texts; put the one text into a list"),
        (lambda: Constraint.choices(["a"]).starting_after(), r"starting_after is \(\); it takes texts"),
        (lambda: Constraint.choices(["a"]).starting_after(["x"]), r"starting_after is \(\['x'\],\); it takes"),  # type: ignore[arg-type]
        (lambda: Constraint.choices(["a"]).starting_after("x", "\ud83d"), "half of a surrogate pair is no character"),
        (lambda: GenerationConfig(constraint="x"), "constraint is 'x'; make one with"),  # type: ignore[arg-type]
    ],
)
def test_a_constraint_that_is_none_is_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.regex("a("), "The regular expression cannot be enforced: .*unclosed group"),
        (
            Constraint.json_schema({"$ref": "#"}),
            "JSON schema cannot be enforced: no text has this form. Look for a part",
        ),
        (Constraint.regex(r"[^\s\S]"), "The regular expression cannot be enforced: no text has this form"),
        (Constraint.lark('start: a\na: a "x"'), "The grammar cannot be enforced: no text has this form"),
        (Constraint.lark("start: foo"), 'The grammar cannot be enforced: .*unknown name: "foo"'),
        (Constraint.gbnf('roots ::= "a"'), "The grammar cannot be enforced: No 'root' rule found"),
        (Constraint.gbnf("root ::= ("), "The grammar cannot be enforced: Expected '[)]' at line 1"),
        (
            Constraint.gbnf('root ::= "a"\n' + 'b ::= "a"\n' * 2000),
            "cannot be enforced: it has 2001 rules; at most 2000",
        ),
        (
            Constraint.gbnf('root ::= "' + "a" * (1 << 18) + '"'),
            r"it has 262155 characters without its comments; at most",
        ),
        (Constraint.gbnf("root ::= " + "(" * 9000), "The grammar cannot be enforced: maximum recursion depth"),
        (Constraint.json_schema({"uniqueItems": True}), r'uniqueItems.* put \{"x-guidance": \{"lenient": true\}'),
        (Constraint.json_schema({"type": "string", "pattern": "(?=a)"}), "pattern: regex parse error"),
        (Constraint.json_schema({"type": "string", "format": "regex"}), "Unknown format: regex. To give"),
        (
            Constraint.json_schema({"minimum": 3, "maximum": 1, "type": "integer"}),
            "minimum .3. is greater than maximum",
        ),
        (Constraint.json_schema({"type": "integer", "multipleOf": 10**400}), "cannot be enforced: number out of range"),
    ],
)
def test_what_cannot_be_enforced_is_named(model: LanguageModel, constraint: Constraint, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        model.stream("x", GenerationConfig(constraint=constraint))  # with the call, not with the first chunk


def test_what_llguidance_stumbles_over_is_named(model: LanguageModel) -> None:
    constraint = Constraint.json_schema({"anyOf": [_branching(2)] * 1000})  # 0.4 s: not while tests are collected
    with pytest.raises(ConfigError, match=r"(?s)cannot be enforced: panic: assertion .* - 10$"):
        model.stream("x", GenerationConfig(constraint=constraint))


def test_constraints_need_an_extra_only_when_they_are_used(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    constraint = Constraint.json_schema(PERSON)
    with pytest.raises(MissingExtraError, match=r'pip install "edgelm\[structured\]"'):
        constraint.compile(tokenizer)


def test_a_model_without_constraints_never_imports_llguidance() -> None:
    program = (
        "import sys, edgelm, edgelm.testing; model = edgelm.load(edgelm.testing.tiny_model_path()); "
        "model.generate('a', edgelm.GenerationConfig(max_new_tokens=2)); sys.exit('llguidance' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_engine_follows_constraints_too(model: LanguageModel) -> None:
    from edgelm.batching.engine import Engine

    config = constrained(Constraint.json_schema(PERSON), temperature=1.0, seed=5)
    with Engine(model) as engine:
        generations = [engine.submit("The sea", config.replace(seed=seed)) for seed in range(4)]
        texts = ["".join(chunk.text for chunk in generation) for generation in generations]
    assert texts == [model.generate("The sea", config.replace(seed=seed)).text for seed in range(4)]
