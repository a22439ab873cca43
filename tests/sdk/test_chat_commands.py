"""The chat's loop and its slash commands, on a scripted model and a screen that remembers."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator

import pytest

from edgelm.chat_session import ChatSession
from edgelm.cli.chat_commands import COMMANDS, SETTINGS
from edgelm.cli.conversation import Conversation
from edgelm.generation_config import GenerationConfig
from edgelm.testing import scripted_model


class FakeScreen:
    """Say what the script says, then leave; remember what was shown."""

    def __init__(self, *script: str | type[BaseException]) -> None:
        self.script = list(script)
        self.answers: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.when_shown = lambda: None

    def ask(self, commands: dict[str, str]) -> str:
        assert list(commands) == list(COMMANDS)
        said = self.script.pop(0) if self.script else EOFError
        if isinstance(said, str):
            return said
        raise said

    def show(self, texts: Iterator[str]) -> None:
        self.answers.append("")
        for text in texts:
            self.answers[-1] += text
            self.when_shown()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def converse(*script: str | type[BaseException], answer: str = "The sea is blue.", **settings) -> Conversation:
    model = scripted_model(answer)
    chat = Conversation(model, ChatSession(model), GenerationConfig(**settings), FakeScreen(*script))
    chat.run()
    return chat


def test_a_turn_is_answered_and_its_speed_shown():
    chat = converse("  Hello ", "")
    assert chat.screen.answers == ["The sea is blue."]
    assert "tokens/s" in chat.screen.notes[-1]
    assert chat.session.messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "The sea is blue."},
    ]
    assert "/help shows what you can type" in chat.screen.notes[0]


def test_an_interrupt_at_the_prompt_asks_again_and_an_end_leaves():
    assert converse(KeyboardInterrupt, "Hello", EOFError, "never said").screen.answers == ["The sea is blue."]


def test_bye_leaves():
    assert converse("/bye", "never said").screen.answers == []


def interrupted(*pieces: int) -> Conversation:
    """Hold a chat of two turns; Ctrl-C comes with these pieces of the first answer."""
    model = scripted_model("The sea is blue.")
    screen = FakeScreen("Hello", "Again")
    chat = Conversation(model, ChatSession(model), GenerationConfig(), screen)
    shown = itertools.count()
    screen.when_shown = lambda: signal.raise_signal(signal.SIGINT) if next(shown) in pieces else None
    before = signal.getsignal(signal.SIGINT)
    chat.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert screen.answers[1] == "The sea is blue."
    return chat


def test_an_interrupt_stops_the_answer_and_keeps_what_was_said():
    chat = interrupted(0)
    assert "cancelled" in chat.screen.notes[1]
    assert chat.screen.answers[0] == "The"
    assert chat.session.messages[1]["content"] == "The"


def test_a_second_interrupt_breaks_the_answer_off_and_the_chat_goes_on():
    assert interrupted(0, 1).screen.warnings == ["The answer was broken off."]


def test_help_lists_every_command():
    note = converse("/help").screen.notes[-1]
    for name, command in COMMANDS.items():
        assert f"{name} {command.argument}".rstrip() in note
        assert command.help in note


def test_clear_forgets_the_conversation():
    chat = converse("Hello", "/clear")
    assert chat.session.messages == []
    assert chat.screen.notes[-1] == "A new conversation begins."


def test_system_is_set_and_shown():
    chat = converse("/system", "/system Be brief.", "/system")
    assert chat.screen.notes[1:] == ["system: (none)", "system: Be brief.", "system: Be brief."]
    assert chat.session.system == "Be brief."


def test_set_changes_and_shows_settings():
    chat = converse(
        "/set temperature 0.7", "/set stop END", '/set stop ["a", "\\n"]', "/set max_new_tokens null", "/set"
    )
    assert chat.config == GenerationConfig(temperature=0.7, stop=("a", "\n"))
    assert chat.screen.notes[1:3] == ["temperature = 0.7", 'stop = ["END"]']
    assert len(chat.screen.notes[-1].splitlines()) == len(SETTINGS)


def test_set_reaches_the_answer():
    chat = converse("/set max_new_tokens 3", "Hello")
    assert chat.screen.answers == ["The se"]
    assert chat.screen.warnings == ["The answer was cut off: /set max_new_tokens N allows longer ones."]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("/etc/passwd is what?", "There is no command /etc/passwd. /help lists them; a space before / says it to"),
        ("/save", "/save needs FILE."),
        ("/load  ", "/load needs FILE."),
        ("/set heat 3", "There is no setting 'heat'; there are max_new_tokens, temperature"),
        ("/set top_k", "/set top_k needs a value; it is 0 now."),
        ("/set top_k many", "top_k is 'many'; it must be a number"),
        ("/set seed [1]", "seed is [1]; it must be a number"),
        ("/regenerate", "There is no question to answer again yet."),
        ("/save /nowhere/at/all.json", "Cannot write /nowhere/at/all.json: "),
        ("/load /nowhere/at/all.json", "Cannot read /nowhere/at/all.json: "),
        ("/save /", "Cannot write /: "),
        ("/save ~nosuchuser/x", "Cannot write ~nosuchuser/x: "),
        ("/save a\0b", "Cannot write a\0b: "),
        ("/load ~nosuchuser/x", "Cannot read ~nosuchuser/x: "),
        ("/load a\0b", "Cannot read a\0b: "),
        ("/set seed " + "[" * 100_000, "/set seed takes no value that is nested so deeply."),
        ("word " * 2000, "the model's context holds 1024"),
    ],
)
def test_a_mistake_is_a_warning_and_the_chat_goes_on(typed, message):
    chat = converse(typed, "Hello")
    assert chat.screen.warnings[0].startswith("error: ")
    assert message in chat.screen.warnings[0]
    assert chat.screen.answers[-1] == "The sea is blue."


def test_a_line_that_begins_with_a_space_is_said_to_the_model():
    assert converse(" /etc/passwd is what?").session.messages[0]["content"] == "/etc/passwd is what?"


def test_regenerate_answers_the_last_question_again():
    chat = converse("Hello", "/regenerate")
    assert chat.screen.answers == ["The sea is blue."] * 2
    assert len(chat.session.messages) == 2


def test_a_saved_chat_is_loaded_whole(tmp_path):
    path = tmp_path / "a chat.json"
    saved = converse("/system Be brief.", "Hello", f"/save {path}")
    assert saved.screen.notes[-1] == f"Saved 2 messages to {path}."
    assert json.loads(path.read_text()) == {
        "model": "tiny-random",
        "system": "Be brief.",
        "messages": saved.session.messages,
    }
    loaded = converse(f"/load {path}", "And now?")
    assert loaded.screen.notes[1] == f"Loaded 2 messages from {path}."
    assert loaded.session.system == "Be brief."
    assert [turn["content"] for turn in loaded.session.messages] == [
        "Hello",
        "The sea is blue.",
        "And now?",
        "The sea is blue.",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not a chat that /save wrote."),
        ("[]", "is not a chat that /save wrote."),
        ('{"messages": 3}', "is not a chat that /save wrote."),
        ('{"messages": ["x"]}', "is not a chat that /save wrote."),
        ('{"messages": [], "system": 3}', "is not a chat that /save wrote."),
        ('{"messages": [{"role": "system", "content": "x"}]}', "A turn has a role"),
        ('{"messages": ' + "[" * 100_000, "is not a chat that /save wrote."),
        ("\udcff", "is not a chat that /save wrote."),
    ],
)
def test_a_file_that_is_no_chat_changes_nothing(tmp_path, content, message):
    path = tmp_path / "chat.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    chat = converse("Hello", f"/load {path}")
    assert message in chat.screen.warnings[0]
    assert len(chat.session.messages) == 2


def test_stats_show_context_turns_and_speed():
    before, after = (note for note in converse("/stats", "Hello", "/stats").screen.notes if note.startswith("model"))
    assert "context  0 of 1024 tokens" in before
    assert "last" not in before
    assert "turns    2 messages" in after
    assert "last     " in after


def test_a_context_that_is_nearly_full_is_a_warning():
    text = "x" * 800
    encode = scripted_model("x").tokenizer.encode
    while len(encode(text)) < 960:
        text += "x"
    chat = converse(text)
    assert "of 1024 tokens of context are used: /clear starts a new conversation." in chat.screen.warnings[0]
