"""What a model thinks before it answers, in the commands: never on standard output."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from scripted_chat import FakeScreen
from thinking_model import SAID, THOUGHT, thinking_model

from edgelm import loading
from edgelm.chat_session import ChatSession
from edgelm.cli import thinking
from edgelm.cli.conversation import Conversation
from edgelm.cli.kept_session import KeptSession
from edgelm.cli.main import main
from edgelm.cli.thinking import show_thinking
from edgelm.completion import Chunk
from edgelm.testing import tiny_model_path

TINY = str(tiny_model_path())


@pytest.fixture(autouse=True)
def thinks(monkeypatch, own_library):
    monkeypatch.setattr(loading, "load", lambda *_: thinking_model())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def on_terminal(monkeypatch):
    monkeypatch.setattr(thinking, "is_terminal", lambda _: True)


def call(*arguments: str, stdin: str = ""):
    return CliRunner().invoke(main, arguments, input=stdin, color=True)


def test_run_prints_the_answer_alone_where_nobody_looks():
    result = call("run", TINY, "Hello")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{SAID}\n", "")


def test_run_shows_the_thinking_dim_on_a_terminal(on_terminal):
    result = call("run", TINY, "Hello")
    assert result.stdout == f"{SAID}\n"
    assert "\x1b[2m" in result.stderr
    shown = result.stderr.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert shown == f"{THOUGHT}\n\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_run_labels_the_thinking_where_there_is_nothing_dim(on_terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert call("run", TINY, "Hello").stderr == f"Thinking: {THOUGHT}\n\n"


def test_a_thought_commands_no_terminal_and_ends_its_line_where_no_answer_comes(on_terminal, monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    pieces = [("a\x1b[2Jb", None), ("c", None), ("", "length")]
    chunks = [Chunk(text="", token_ids=(), reasoning=thought, finish_reason=reason) for thought, reason in pieces]
    assert list(show_thinking(iter(chunks))) == chunks
    assert capsys.readouterr().err == "Thinking: a[2Jbc\n\n"


def test_the_thinking_of_run_is_in_its_json(on_terminal):
    result = call("run", TINY, "Hello", "--json")
    answer = json.loads(result.stdout)
    assert (answer["text"], answer["reasoning"], result.stderr) == (SAID, THOUGHT, "")


def test_run_says_where_an_answer_was_cut_off_before_it_began():
    result = call("run", TINY, "Hello", "--max-new-tokens", "12")
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert result.stderr.startswith("The answer was cut off while the model thought: --max-new-tokens N")


def test_run_takes_nothing_out_of_a_raw_continuation():
    assert "<think>" in call("run", TINY, "--raw", "Hello").stdout


def test_a_chat_through_a_pipe_prints_the_answers_alone(on_terminal):
    result = call("chat", TINY, stdin="Hello\nAnd?\n")
    assert result.stdout == f"{SAID}\n\n{SAID}\n"
    assert result.stderr.count("\n\n") == 4  # one inside each, one behind each


def test_a_chat_shows_the_thinking_and_keeps_the_answer():
    screen = FakeScreen("Hello")
    chat = Conversation(ChatSession(thinking_model()), {}, screen, lambda _: thinking_model(), KeptSession())
    chat.run()
    assert (screen.thoughts, screen.answers) == (THOUGHT, [SAID])
    assert chat.session.messages[-1]["content"] == SAID
