"""`edgelm run` with what the answer must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from command_line import invoke

from edgelm.testing import tiny_model_path


def run(*arguments: str) -> Result:
    return invoke("run", tiny_model_path(), *arguments, "Hello", stdin="")


def test_the_answer_is_what_the_option_says(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"],
                                  "additionalProperties": False}), encoding="utf-8-sig")  # fmt: skip
    assert json.loads(run("--json-schema", str(schema)).stdout)["a"] in (1, 22)
    assert run("--regex", "[0-9]{3}").stdout.strip().isdigit()
    assert run("--choice", "yes", "--choice", "no, never").stdout in ("yes\n", "no, never\n")
    grammar = tmp_path / "answer.lark"
    grammar.write_text('start: "a" /[bc]/', encoding="utf-8")
    assert run("--grammar", str(grammar)).stdout in ("ab\n", "ac\n")
    grammar.write_text('# of llama.cpp\nroot ::= "a" [de]\n', encoding="utf-8")
    assert run("--grammar", str(grammar)).stdout in ("ad\n", "ae\n")


def test_an_answer_that_is_cut_off_and_so_is_not_what_was_asked_for_is_told() -> None:
    result = run("--regex", "[0-9]{30}", "--max-new-tokens", "2")
    assert result.stderr == "The answer was cut off after 2 tokens: --max-new-tokens N allows more.\n"
    endless = run("--regex", "[0-9]+", "--max-new-tokens", "2000")
    assert endless.stderr.endswith(" tokens: the context is full; --context-shift 0 goes on.\n")
    assert (
        "cut off" not in run("--regex", "[0-9]{30}", "--max-new-tokens", "2", "--json").stderr
    )  # which says it itself
    assert "cut off" not in run("--max-new-tokens", "2").stderr  # piped, and what was asked for


def test_what_cannot_be_is_wrong_usage_or_named(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    for content, message in (
        (b"{", "is not JSON"),
        (b"[1]", "The JSON schema is [1]; it must be a mapping"),
        (b"\xff", "Cannot read"),
        (b'{"uniqueItems": true}', "The JSON schema cannot be enforced: Unimplemented keys: ["),
    ):
        file.write_bytes(content)
        result = run("--json-schema", str(file))
        assert result.exit_code == 2
        assert message in result.stderr
    result = run("--json-schema", str(file), "--regex", "a")
    assert result.exit_code == 2
    assert "--json-schema and --regex exclude each other; give one." in result.stderr
    result = run("--json-schema", str(file), "--num-beams", "3")
    assert result.exit_code == 2
    assert "--num-beams and --json-schema exclude each other; give one." in result.stderr


def test_a_form_that_is_none_is_wrong_usage_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken.lark").write_text("start: (", encoding="utf-8")
    (tmp_path / "broken.json").write_text('{"type": "string", "pattern": "(?=a)"}', encoding="utf-8")
    for option, value, message in (
        ("--regex", "(", "The regular expression cannot be enforced:"),
        ("--regex", "", "The regular expression is ''; it must be a text of at least one character."),
        ("--grammar", str(tmp_path / "broken.lark"), "The grammar cannot be enforced:"),
        ("--json-schema", str(tmp_path / "broken.json"), "The JSON schema cannot be enforced: pattern:"),
        ("--choice", "", "choices is ['']; it must be a list of texts, none of them empty."),
    ):
        result = invoke("run", "no-such-model", option, value, "Hello", stdin="")
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        assert message in result.stderr


def test_a_form_that_the_environment_sets_says_how_to_see_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_RUN_REGEX", "(")
    assert "`edgelm config run` shows where it is set." in run().stderr


@pytest.mark.parametrize(
    ("option", "form"), [("--json-schema", '{"type": "object"}'), ("--grammar", 'root ::= "a"' + 300 * " ")]
)
def test_a_form_in_the_place_of_its_file_is_told_apart(option: str, form: str) -> None:
    result = run(option, form)
    assert result.exit_code == 2
    assert f"it takes a file. Write the text that begins with {form[:20]!r} into one." in result.stderr


@pytest.mark.parametrize("option", ["--json-schema", "--grammar"])
def test_a_file_that_is_not_there_is_wrong_usage(option: str) -> None:
    result = run(option, "no-such-file")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
