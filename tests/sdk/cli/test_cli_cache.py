"""What `edgelm cache` frees and deletes of the sessions of this user."""

from __future__ import annotations

import pytest
from command_line import invoke

import edgelm
from edgelm import ChatSession, GenerationConfig, SavedSessions
from edgelm.cli.output import megabytes
from edgelm.testing import tiny_model_path


@pytest.fixture
def session() -> ChatSession:
    session = ChatSession(edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1)))
    list(session.send("Hello", GenerationConfig(max_new_tokens=12, ignore_eos=True)))
    return session


def test_clear_frees_the_room_and_keeps_the_conversations(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, sessions = SavedSessions(), SavedSessions.sessions
    saved.save("one", session)
    saved.save("two", session)
    size = saved.describe("one").cache_size
    result = invoke("cache", "clear", "one", "one")
    assert (result.exit_code, result.stderr) == (0, f"Freed {megabytes(size)}.\n")
    assert {one.name: bool(one.cache_size) for one in saved.sessions()} == {"one": False, "two": True}
    assert invoke("cache", "clear").exit_code == 0
    assert not any(one.cache_size for one in saved.sessions())
    assert saved.load("one", session.model).messages == session.messages
    assert "There is no saved session 'three'" in invoke("cache", "clear", "three").stderr
    # Another process removes one meanwhile.
    monkeypatch.setattr(SavedSessions, "sessions", lambda self: [sessions(self), saved.remove("two")][0])
    assert invoke("cache", "clear").exit_code == 0


def test_rm_deletes_sessions_once_somebody_agreed(session: ChatSession) -> None:
    SavedSessions().save("one", session)
    refused = invoke("cache", "rm", "one")
    assert refused.exit_code == 2
    assert "add --yes to delete without asking" in refused.stderr
    missing = invoke("cache", "rm", "one", "two", "--yes")
    assert (missing.exit_code, missing.stderr) == (1, "error: There is no saved session 'two'. Saved: one.\n")
    result = invoke("cache", "rm", "one", "one", "--yes")
    assert (result.exit_code, result.stderr) == (0, "Deleted one.\n")
    assert SavedSessions().sessions() == []


@pytest.mark.parametrize(("answer", "left"), [("n\n", ["one"]), ("y\n", [])])
def test_rm_asks_on_a_terminal(session: ChatSession, monkeypatch: pytest.MonkeyPatch, answer: str, left: list) -> None:
    SavedSessions().save("one", session, with_cache=False)
    monkeypatch.setattr("edgelm.cli.output.is_terminal", lambda _: True)
    result = invoke("cache", "rm", "one", stdin=answer)
    assert "Delete one for good? [y/N]" in result.stderr
    assert [saved.name for saved in SavedSessions().sessions()] == left
