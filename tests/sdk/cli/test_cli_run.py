"""`edgelm run` on the tiny model: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import invoke
from json_files import edited_json

import edgelm
from edgelm import loading
from edgelm.cli.main import main
from edgelm.cli.output import printable
from edgelm.testing import scripted_model, tiny_model_path

TINY = str(tiny_model_path())


def run(*arguments: str, stdin: str | bytes = ""):
    return invoke("run", *arguments, stdin=stdin)


@pytest.fixture
def says_sea(monkeypatch):
    """Let every model answer `The sea is blue.`, and return the list of the conversations that it was asked."""
    model = scripted_model("The sea is blue.")
    asked: list[object] = []
    encode = model.encode_chat

    def encode_chat(messages, *others):
        asked.append(messages)
        return encode(messages, *others)

    monkeypatch.setattr(model, "encode_chat", encode_chat)
    monkeypatch.setattr(loading, "load", lambda *_: model)
    return asked


def test_the_answer_alone_goes_to_standard_output(says_sea):
    result = run(TINY, "Tell me.")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "The sea is blue.\n", "")
    assert says_sea == [[{"role": "user", "content": "Tell me."}]]


def test_an_answer_that_ends_its_line_gets_no_empty_one(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_: scripted_model("The sea is blue.\n"))
    assert run(TINY, "Tell me.").stdout == "The sea is blue.\n"


def test_the_answer_is_the_librarys():
    completion = edgelm.load(TINY).chat([{"role": "user", "content": "Hello"}])
    result = run(TINY, "Hello", "--json")
    answer = json.loads(result.stdout)
    assert answer["text"] == completion.text
    assert tuple(answer["token_ids"]) == completion.token_ids
    assert answer["finish_reason"] == completion.finish_reason
    assert answer["usage"]["completion_tokens"] == completion.usage.completion_tokens
    assert answer["usage"]["total_tokens"] == completion.usage.total_tokens
    assert answer["timings"]["decode_tokens_per_second"] > 0
    assert answer["model"] == "tiny-random"


@pytest.mark.parametrize(
    ("charset", "said", "is_readable"),
    [("utf-8", "Blüe 青い", True), ("latin-1", "Blüe 青い", False), ("utf-8", "Blüe \x9b31m\x7f", False)],
)
def test_json_keeps_the_answer_in_every_locale_and_commands_no_terminal(monkeypatch, charset, said, is_readable):
    monkeypatch.setattr(loading, "load", lambda *_: scripted_model(said))
    result = CliRunner(charset=charset).invoke(main, ["run", TINY, "Say it.", "--json"])
    assert json.loads(result.stdout_bytes)["text"] == said
    assert (said.encode() in result.stdout_bytes, result.stdout_bytes.isascii()) == (is_readable, not is_readable)


def test_what_is_piped_in_follows_the_prompt_or_is_the_prompt(says_sea):
    run(TINY, "Summarize:", stdin="line one\nline two\n")
    run(TINY, stdin="the prompt\n")
    run(TINY, "the prompt", stdin="\n")
    run(TINY, "why", "is", "it", "blue")
    run(TINY, stdin=b"caf\xc3\xa9 \xff")
    run(TINY, stdin="\n    return x \n\n")
    run(TINY, stdin=b"\xef\xbb\xbfwritten by Notepad")
    assert [messages[-1]["content"] for messages in says_sea] == [
        "Summarize:\n\nline one\nline two",
        "the prompt",
        "the prompt",
        "why is it blue",
        "café �",
        "    return x ",
        "written by Notepad",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf16_that_is_piped_in_is_no_prompt(says_sea, encoding):
    result = run(TINY, stdin="The sea is blue.".encode(encoding))
    assert (result.exit_code, result.stdout, says_sea) == (1, "", [])
    assert "error: What is piped in is no text in UTF-8: it has the character NUL." in result.stderr


def test_a_text_in_an_older_encoding_is_read_with_a_remark(says_sea):
    whole, broken = (
        run(TINY, stdin="海是蓝色的。\n天空也是。"),
        run(TINY, stdin="海是蓝色的。\n天空也是。".encode("gbk")),
    )
    assert "\ufffd" in says_sea[1][-1]["content"]
    assert "UTF-8" not in whole.stderr
    assert broken.stderr.count("What is piped in is not all UTF-8") == 1
    assert "iconv -f GBK -t UTF-8" in broken.stderr


def test_an_argument_that_is_not_utf8_is_repaired(says_sea):
    run(TINY, "caf\udce9", "--system", "th\udce9")
    assert [message["content"] for message in says_sea[0]] == ["th�", "caf�"]


def test_a_system_message_goes_first(says_sea):
    run(TINY, "Hello", "--system", "Be brief.")
    assert says_sea[0][0] == {"role": "system", "content": "Be brief."}


def test_raw_continues_the_prompt_without_the_template(says_sea):
    assert run(TINY, "Once", "--raw").stdout == "The sea is blue.\n"
    assert says_sea == []


def test_a_package_without_a_template_gets_the_plain_prompt(tmp_path):
    package = shutil.copytree(tiny_model_path(), tmp_path / "plain")
    (package / "chat_template.jinja").unlink()
    with edited_json(package / "edgelm.json") as manifest:
        manifest |= {"manifest_sha256": None, "name": "tiny-\arandom"}
        manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != "chat_template.jinja"]
    plain = json.loads(run(str(package), "Once", "--json", "--max-new-tokens", "5").stdout)
    raw = json.loads(run(TINY, "Once", "--json", "--max-new-tokens", "5", "--raw").stdout)
    assert plain["token_ids"] == raw["token_ids"]
    result = run(str(package), "Once", "--system", "Be brief.")
    assert result.exit_code == 2
    assert "--system needs the chat template; tiny-random has none." in result.stderr
    assert "--system needs the chat template; --raw leaves it out." in run(TINY, "x", "--raw", "--system", "y").stderr


def test_options_reach_the_sampler_and_others_keep_the_models_defaults(says_sea):
    assert run(TINY, "Hello", "--stop", " is").stdout == "The sea\n"
    assert json.loads(run(TINY, "Hello", "--json", "--max-new-tokens", "3").stdout)["finish_reason"] == "length"


def test_penalties_are_the_librarys():
    tiny = edgelm.load(TINY)
    penalties = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    options = [part for name, value in penalties.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    answer = json.loads(run(TINY, "Hi hi", "--raw", "--json", "--max-new-tokens", "12", *options).stdout)
    expected = tiny.generate("Hi hi", edgelm.GenerationConfig(max_new_tokens=12, **penalties))
    assert answer["token_ids"] == list(expected.token_ids)
    assert answer["token_ids"] != list(tiny.generate("Hi hi", edgelm.GenerationConfig(max_new_tokens=12)).token_ids)


def test_repeats_and_early_ends_are_the_librarys(says_sea):
    assert run(TINY, "Hello", "--stop", " ", "--min-new-tokens", "3").stdout == "The sea\n"
    tiny = edgelm.load(TINY)
    plain, expected = (
        tiny.generate("la la la la", edgelm.GenerationConfig(max_new_tokens=60, no_repeat_ngram_size=size))
        for size in (0, 1)
    )
    options = ("--max-new-tokens", "60", "--no-repeat-ngram-size", "1")
    answer = json.loads(run(TINY, "la la la la", "--raw", "--json", *options).stdout)
    assert answer["token_ids"] == list(expected.token_ids) != list(plain.token_ids)


def test_the_same_seed_gives_the_same_answer():
    sampled = ["--temperature", "1", "--max-new-tokens", "20", "--json"]
    texts = [json.loads(run(TINY, "Hi", *sampled, "--seed", seed).stdout)["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_stats_go_to_standard_error(says_sea):
    result = run(TINY, "Hello", "--stats", "--threads", "1")
    assert result.stdout == "The sea is blue.\n"
    assert re.search(r"tokens/s · prompt \d+, ", result.stderr)
    assert result.stderr.endswith("· stop\n")


@pytest.mark.parametrize("how", ["prompt_lookup", TINY])
def test_tokens_are_guessed_ahead_from_the_text_or_by_a_small_model(how):
    options = ("--max-new-tokens", "300", "--stats", "--json")
    result = run(TINY, "la la la la", "--speculation", how, *options)
    assert json.loads(result.stdout)["timings"]["drafted_tokens"] > 0
    assert re.search(r"tokens \(\d+ of \d+ guessed right\), ", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TINY], "There is no prompt: give one as an argument, or pipe one in. To talk with it: edgelm chat /"),
        ([TINY, " "], "There is no prompt"),
        ([TINY, "x", "--temperature", "-1"], "'--temperature': -1.0 is not in the range 0.0<=x<=100.0."),
        ([TINY, "x", "--top-k", "many"], "'many' is not a valid number."),
        ([TINY, "x", "--threads", "0"], "0 is not in the range 1<=x<=1024."),
        ([TINY, "x", "--threads", "1025"], "1025 is not in the range 1<=x<=1024."),
        (
            [TINY, "x", "--num-beams", "2", "--temperature", "0.7"],
            "num_beams is 2, and temperature is 0.7; beam search",
        ),
        ([], "Missing argument 'MODEL'"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(arguments, message):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_an_error_ends_with_1_and_says_why(tmp_path):
    for arguments, said in (
        (["nothing", "x"], ""),
        (["nothing"], ""),
        ([TINY, "x", "--speculation", "nothing"], "--speculation takes prompt_lookup, or a model. "),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {said}There is no model 'nothing'.")
    result = run(TINY, "word " * 2000)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "this model's maximum context length is 1024" in result.stderr
    broken = shutil.copytree(tiny_model_path(), tmp_path / "broken")
    Path(broken / "model.onnx.data").write_bytes(b"x")
    assert "model.onnx.data has 1 bytes" in run(str(broken), "x").stderr


def test_a_package_given_by_its_path_needs_no_home(monkeypatch):
    monkeypatch.setenv("EDGELM_HOME", "~nosuchuser/x")
    assert run(TINY, "Hello", "--max-new-tokens", "1").exit_code == 0
    assert run("nothing", "x").stderr.startswith("error: EDGELM_HOME is '~nosuchuser/x': ")


@pytest.mark.parametrize("command", ["run", "chat"])
@pytest.mark.parametrize(("on_terminal", "shown"), [(True, "[31mred\n"), (False, "\x1b[31mred\n")])
def test_an_answer_commands_no_terminal_and_goes_through_a_pipe_as_it_is(monkeypatch, command, on_terminal, shown):
    monkeypatch.setattr(loading, "load", lambda *_: scripted_model("\x1b[31mred"))
    module = importlib.import_module(f"edgelm.cli.{command}")
    monkeypatch.setattr(module, "is_terminal", lambda stream: on_terminal and stream is sys.stdout)
    assert invoke(command, TINY, stdin="Hello\n").stdout == shown


@pytest.mark.parametrize(("on_terminal", "shown"), [(True, "The sea\n"), (False, "The sea")])
def test_an_answer_that_is_stopped_leaves_a_terminal_in_a_new_line(monkeypatch, on_terminal, shown):
    model = scripted_model("The sea is blue.")
    stream = model.stream_chat

    def stopped(*arguments, **others):
        said = ""
        for chunk in stream(*arguments, **others):
            yield chunk
            said += chunk.text
            if said == "The sea":
                raise KeyboardInterrupt

    monkeypatch.setattr(model, "stream_chat", stopped)
    monkeypatch.setattr(loading, "load", lambda *_: model)
    module = importlib.import_module("edgelm.cli.run")
    monkeypatch.setattr(module, "is_terminal", lambda stream: on_terminal and stream is sys.stdout)
    result = invoke("run", TINY, stdin="Hello\n")
    assert (result.exit_code, result.stdout) == (130, shown)


def test_beam_search_and_context_shift_have_options():
    model = edgelm.load(TINY)
    config = edgelm.GenerationConfig(max_new_tokens=8, num_beams=3)
    assert run(TINY, "x", "--raw", "--num-beams", "3", "--max-new-tokens", "8").stdout.startswith(
        model.generate("x", config).text
    )
    long = "word " * 600
    assert "this model's maximum context length is 1024" in run(TINY, long, "--raw").stderr
    shifted = run(TINY, long, "--raw", "--context-shift", "4", "--max-new-tokens", "8").stdout
    expected = model.generate(long, edgelm.GenerationConfig(max_new_tokens=8, context_shift=4))
    assert shifted.startswith(expected.text)


def test_beam_search_needs_no_temperature_where_the_author_has_one_for_sampling(monkeypatch):
    model = edgelm.load(TINY)
    model.generation_config = edgelm.GenerationConfig(temperature=0.7)
    expected = model.generate("x", edgelm.GenerationConfig(max_new_tokens=8, num_beams=3)).text
    monkeypatch.setattr(loading, "load", lambda *_: model)
    result = invoke("run", TINY, "x", "--raw", "--num-beams", "3", "--max-new-tokens", "8")
    assert result.stdout.startswith(expected), result.stderr


def test_a_chat_through_a_pipe_goes_on_where_the_context_is_full():
    lines = "word " * 300 + "\n"
    result = invoke("chat", TINY, "--max-new-tokens", "2", stdin=lines * 3)
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) >= 5  # three answers, and what stands between them


def test_what_a_model_says_turns_no_code_around_on_a_terminal() -> None:
    code = "if is_admin:\u202e \u2066# begin\u2069 \u2066\u202c\x1b[1m"
    assert printable(code) == "if is_admin: # begin [1m"
    assert printable("שלום\u200f, سلام\u200e!") == "שלום\u200f, سلام\u200e!"
