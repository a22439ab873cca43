"""Conversations that are kept after each answer, and resumed: in the chat, and in a pipe."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from command_line import invoke
from forked_processes import exit_status, fork
from scripted_chat import FakeScreen, converse, load

import edgelm
from edgelm.chat_session import ChatSession
from edgelm.cli import chat as chat_module
from edgelm.cli.conversation import Conversation
from edgelm.cli.kept_session import KeptSession
from edgelm.cli.termination import unwinding
from edgelm.errors import ConfigError
from edgelm.saved_session import SavedSessions
from edgelm.testing import scripted_model, tiny_model_path
from edgelm.text.chat_template import ChatTemplate


def test_a_conversation_is_kept_after_each_answer():
    kept = []
    model = scripted_model("The sea is blue.")
    screen = FakeScreen("Why is the sea blue?", "Really?")
    ask = screen.ask

    def ask_and_look(*arguments):
        kept.append([(one.name, one.messages, one.cache_size) for one in SavedSessions().sessions()])
        return ask(*arguments)

    screen.ask = ask_and_look
    Conversation(ChatSession(model), {}, screen, load, KeptSession()).run()
    name = "why-is-the-sea-blue"
    assert kept == [[], [(name, 2, 0)], [(name, 4, 0)]]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no such signal")
@pytest.mark.usefixtures("hangups_heard")
def test_what_was_answered_is_kept_where_the_terminal_closes():
    model, screen = scripted_model("The sea is blue."), FakeScreen("Hello")
    screen.when_shown = lambda: signal.raise_signal(signal.SIGHUP)
    with pytest.raises(SystemExit), unwinding():
        Conversation(ChatSession(model), {}, screen, load, KeptSession()).run()
    assert [turn["content"] for turn in SavedSessions().load("hello", model).messages] == ["Hello", "The"]


def test_the_cache_is_kept_where_it_is_wanted():
    model = scripted_model("The sea is blue.")
    chat = Conversation(ChatSession(model), {}, FakeScreen("Hello"), load, KeptSession(with_cache=True))
    chat.run()
    assert SavedSessions().describe("hello").cache_size > 0
    assert KeptSession().resume("hello", model).context_used == chat.session.context_used


def test_sessions_are_listed_and_resumed():
    converse("First question")
    chat = converse("Second question", "/sessions", "/resume", "And now?", "/sessions", "/resume second-question")
    before, after = (note for note in chat.screen.notes if "messages with" in note)
    assert before.splitlines()[0].startswith("* second-question  ")
    assert "  first-question   " in before
    assert after.splitlines()[0].startswith("* first-question   ")
    assert "4 messages with tiny-random" in after
    assert chat.kept.name == "second-question"
    assert [turn["content"] for turn in chat.session.messages] == ["Second question", "The sea is blue."]
    assert any(note.endswith("the last of them:\nFirst question") for note in chat.screen.notes)
    assert int(chat.screen.statuses[-1].split()[-3]) > 0  # counted, though the model has not read it yet


def test_a_resumed_conversation_shows_its_last_turn():
    converse("First question", "Second question")
    chat = converse("/resume first-question")
    assert chat.screen.notes[-1] == "4 messages so far; the last of them:\nSecond question"
    assert chat.screen.answers == ["The sea is blue."]


def test_a_conversation_that_the_template_refuses_can_be_resumed():
    converse("Hello")
    model = scripted_model("x")
    model.chat_template = ChatTemplate("{{ raise_exception('no') }}")
    screen = FakeScreen("/resume hello", "/stats")
    Conversation(ChatSession(model), {}, screen, load, KeptSession()).run()
    assert screen.warnings == []
    assert "context  0 of 1024 tokens" in screen.notes[-1]


def test_no_session_is_an_answer_too():
    assert converse("/sessions").screen.notes[-1] == "No sessions are saved yet."


def test_a_new_conversation_is_another_session():
    converse("Hello", "/clear", "Hello", "/clear")
    assert sorted(one.name for one in SavedSessions().sessions()) == ["hello", "hello-2"]


def test_a_conversation_from_a_file_is_another_session(tmp_path):
    converse("Hello", f"/save {tmp_path / 'chat.json'}", "And?", f"/load {tmp_path / 'chat.json'}")
    kept = {one.name: one.messages for one in SavedSessions().sessions()}
    assert kept == {"hello": 4, "hello-2": 2}


@pytest.mark.parametrize("command", ["/clear", "/resume first", "/load PATH"])
def test_a_conversation_that_is_left_keeps_its_cache_and_takes_no_file_along(tmp_path, command):
    path = tmp_path / "chat.json"
    converse("First", f"/save {path}")
    (tmp_path / "notes.txt").write_text("Salt")
    model = scripted_model("The sea is blue.")
    typed = "Second", f"/file {tmp_path / 'notes.txt'}", command.replace("PATH", str(path)), "Third"
    chat = Conversation(ChatSession(model), {}, FakeScreen(*typed), load, KeptSession(with_cache=True))
    chat.run()
    assert chat.screen.warnings == []
    assert SavedSessions().describe("second").cache_size > 0
    assert chat.session.messages[-2]["content"] == "Third"


def test_two_chats_that_resume_one_session_lose_nothing_of_each_other():
    converse("Hello")
    model = scripted_model("Yes.")
    mine, theirs = KeptSession(), KeptSession()
    here, there = mine.resume("hello", model), theirs.resume("hello", model)
    list(there.send("They said this"))
    assert theirs.keep(there) is None
    list(here.send("I said that"))
    assert mine.keep(here) == "hello was changed by another chat; this one is kept as hello-2."
    assert theirs.resume("hello", model).messages[2]["content"] == "They said this"
    assert theirs.resume("hello-2", model).messages[2]["content"] == "I said that"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_chats_that_begin_with_the_same_words_at_once_lose_nothing_of_each_other(own_library):
    session = ChatSession(scripted_model("Yes."))
    list(session.send("Hello"))
    children = [fork(lambda: KeptSession().keep(session)) for _ in range(4)]
    assert [exit_status(child) for child in children] == [0] * 4
    assert sorted(os.listdir(SavedSessions().root)) == ["hello", "hello-2", "hello-3", "hello-4"]


def test_a_session_that_was_deleted_meanwhile_is_written_again():
    chat = converse("Hello")
    SavedSessions().remove("hello")
    chat.keep()
    assert SavedSessions().describe("hello").messages == 2
    assert not any("changed by another chat" in note for note in chat.screen.notes)


def test_a_disk_that_refuses_the_session_is_a_warning_once(own_library):
    own_library.write_text("a file where the folder should be")
    chat = converse("Hello", "Again")
    assert [warning for warning in chat.screen.warnings if warning.startswith("This conversation is not kept: ")] == (
        chat.screen.warnings
    )
    assert len(chat.screen.answers) == 2
    assert len(chat.screen.warnings) == 1
    assert chat.screen.kept_as is None


def test_the_last_line_names_what_is_on_the_disk(monkeypatch):
    saves = [SavedSessions.save, refusing_disk, SavedSessions.save]
    monkeypatch.setattr(SavedSessions, "save", lambda *arguments, **options: saves.pop(0)(*arguments, **options))
    assert converse("Hello").screen.kept_as == "Kept as hello: edgelm chat --resume hello"
    chat = converse("/resume", "Again")
    assert chat.screen.kept_as == "Kept as hello, but for what was said last: edgelm chat --resume hello"
    assert SavedSessions().describe("hello").messages == 2
    chat.keep()
    assert chat.kept.is_whole
    saves.append(refusing_disk)
    new = converse("/resume", "/clear", "Another")
    assert (new.kept.name, new.screen.kept_as, len(new.screen.warnings)) == (None, None, 1)


def test_the_last_line_names_the_model_that_was_changed_to():
    assert converse("Hello", "/model other").screen.kept_as == "Kept as hello: edgelm chat other --resume hello"


def refusing_disk(*_arguments, **_options):
    raise ConfigError("There is no space left.")


def test_the_cache_of_a_session_that_cannot_be_written_is_a_warning(own_library):
    own_library.write_text("a file where the folder should be")
    screen = FakeScreen("Hello")
    Conversation(ChatSession(scripted_model("x")), {}, screen, load, KeptSession(with_cache=True)).run()
    assert screen.warnings[-1].startswith("This conversation's keys and values are not kept: ")


def chat_command(*arguments: str, stdin: str = ""):
    return invoke("chat", *arguments, stdin=stdin)


def kept_by_the_tiny_model() -> None:
    session = ChatSession(edgelm.load(tiny_model_path()))
    session.restore([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}])
    SavedSessions().save("hello", session, with_cache=False)


def test_a_pipe_goes_on_with_a_kept_conversation_and_keeps_it():
    kept_by_the_tiny_model()
    result = chat_command(str(tiny_model_path()), "--resume", "--max-new-tokens", "3", "--keep-cache", stdin="And?\n")
    assert result.exit_code == 0, result.output
    session = SavedSessions().describe("hello")
    assert (session.messages, session.cache_size > 0) == (4, True)


def test_a_pipe_says_by_which_name_it_keeps_what_another_chat_went_on_with(monkeypatch):
    def while_another_speaks(*arguments, answer=chat_module._answer_lines):
        kept_by_the_tiny_model()
        yield from answer(*arguments)

    kept_by_the_tiny_model()
    monkeypatch.setattr(chat_module, "_answer_lines", while_another_speaks)
    result = chat_command(str(tiny_model_path()), "--resume", "--max-new-tokens", "3", stdin="And?\n")
    assert result.stderr == "hello was changed by another chat; this one is kept as hello-2.\n"


def test_in_a_pipe_a_command_is_said_as_it_stands():
    kept_by_the_tiny_model()
    lines = "/help\n/set temperature 5\n"
    result = chat_command(str(tiny_model_path()), "--resume", "--max-new-tokens", "3", stdin=lines)
    assert (result.exit_code, result.stderr) == (0, "")
    messages = SavedSessions().load("hello", edgelm.load(tiny_model_path())).messages
    assert [message["content"] for message in messages[2::2]] == lines.split("\n")[:2]


def test_a_pipe_keeps_nothing_by_itself():
    assert chat_command(str(tiny_model_path()), "--max-new-tokens", "3", stdin="And?\n").exit_code == 0
    assert SavedSessions().sessions() == []


def test_a_kept_conversation_brings_its_model(own_library):
    kept_by_the_tiny_model()
    result = chat_command("--resume", "hello")
    assert result.stderr == (
        "error: The conversation 'hello' was held with 'tiny-random', which is not in the library. "
        "Name a model: edgelm chat MODEL --resume hello\n"
    )
    another = own_library / "models" / "tiny-random"
    shutil.copytree(tiny_model_path(), another)
    assert chat_command("--resume", "hello").exit_code == 0
    shutil.copytree(another, own_library / "models" / "mine")  # as `pull --name mine` brings what was pushed
    (another / "edgelm.json").unlink()  # broken, or another model
    assert chat_command("--resume", "hello").exit_code == 0


def test_a_conversation_that_is_not_there_or_broken_is_not_resumed():
    assert chat_command("--resume").stderr == "error: No conversation is kept yet. Begin one: edgelm chat\n"
    kept_by_the_tiny_model()
    assert "There is no saved session 'other'. Saved: hello." in chat_command("--resume", "other").stderr
    (SavedSessions().root / "hello" / "conversation.json").write_text("{}")
    assert "error: Cannot read the saved session" in chat_command("--resume").stderr
