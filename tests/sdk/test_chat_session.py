import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm import ChatSession, ConfigError, GenerationConfig
from edgelm.testing import ScriptedDecoder, scripted_model, tiny_model_path

TURNS = [edgelm.Message(role="user", content="a"), edgelm.Message(role="assistant", content="b")]


def say(session: ChatSession, text: str) -> str:
    return "".join(chunk.text for chunk in session.send(text))


def test_the_second_turn_computes_only_what_is_new() -> None:
    model = scripted_model("I am well.")
    session = ChatSession(model, system="Be kind.")
    say(session, "How are you?")
    usage = list(session.send("And now?"))[-1].usage
    assert usage is not None
    first = model.encode_chat([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How are you?"}])
    assert usage.cached_tokens >= len(first)
    assert isinstance(model.session, ScriptedDecoder)
    assert (
        sum(map(len, model.session.forwarded)) < usage.prompt_tokens + 2 * len(model.tokenizer.encode("I am well.")) + 2
    )


def test_the_cache_changes_no_answer() -> None:
    model = edgelm.load(tiny_model_path())
    config = GenerationConfig(max_new_tokens=10)
    session = ChatSession(model)
    for question in ("Hello", "What is the sea?", "Why?"):
        answer = "".join(chunk.text for chunk in session.send(question, config))
        fresh = model.chat(session.messages[:-1], config)
        assert answer == fresh.text


def test_the_conversation_is_recorded() -> None:
    session = ChatSession(scripted_model("Fine."))
    say(session, "How are you?")
    assert session.messages == [
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "Fine."},
    ]
    assert session.context_used > 0


def test_regenerate_answers_the_last_question_again() -> None:
    session = ChatSession(scripted_model("Fine."))
    say(session, "How are you?")
    assert "".join(chunk.text for chunk in session.regenerate()) == "Fine."
    assert len(session.messages) == 2


def test_what_is_said_has_to_be_a_text() -> None:
    session = ChatSession(scripted_model("x"))
    with pytest.raises(edgelm.ConfigError, match=r"The message is None; it must be a text\."):
        session.send(None)  # type: ignore[arg-type]


def test_an_empty_system_message_is_none() -> None:
    prompts = [list(ChatSession(scripted_model("x"), system).send("Hi"))[-1].usage for system in (None, "")]
    assert prompts[0] == prompts[1]


def test_regenerate_needs_a_question() -> None:
    with pytest.raises(edgelm.ConfigError, match="no question to answer again"):
        ChatSession(scripted_model("x")).regenerate()


def test_a_cancelled_answer_stays_in_the_conversation_as_far_as_it_was_shown() -> None:
    session = ChatSession(scripted_model("one two three four"))
    cancel = threading.Event()
    shown = ""
    for chunk in session.send("count", cancel=cancel):
        shown += chunk.text
        if len(shown) > 4:
            cancel.set()
    assert 0 < len(shown) < len("one two three four")
    assert session.messages[-1] == {"role": "assistant", "content": shown}


def test_an_answer_that_is_not_read_to_its_end_stays_as_far_as_it_was_read() -> None:
    session = ChatSession(scripted_model("one two three"))
    chunks = session.send("count")
    read = next(chunks).text
    chunks.close()
    assert session.messages[-1] == {"role": "assistant", "content": read}


def test_a_turn_that_is_broken_off_before_its_answer_leaves_the_conversation_as_it_was() -> None:
    session = ChatSession(scripted_model("Fine."))
    say(session, "How are you?")
    before, cancel = session.messages, threading.Event()
    cancel.set()
    for ask in (lambda: session.send("A long text", cancel=cancel), lambda: session.regenerate(cancel=cancel)):
        assert [chunk.finish_reason for chunk in ask()] == ["cancelled"]
        assert session.messages == before


def test_what_was_read_of_a_question_that_is_broken_off_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    session, cancel = ChatSession(scripted_model("Fine.")), threading.Event()
    say(session, "How are you?")
    before = session.context_used
    forward = ScriptedDecoder.forward

    def cancelled_meanwhile(*arguments: Any, **named: Any) -> Any:
        cancel.set()
        return forward(*arguments, **named)

    monkeypatch.setattr(ScriptedDecoder, "forward", cancelled_meanwhile)
    (chunk,) = session.send("A long text " * 60, cancel=cancel)  # of more than one piece
    assert chunk.finish_reason == "cancelled"
    assert 0 < session.context_used <= before


def test_an_empty_answer_is_part_of_the_conversation() -> None:
    session = ChatSession(scripted_model(""))
    say(session, "How are you?")
    assert session.messages[-1] == {"role": "assistant", "content": ""}


def test_the_next_turn_ends_and_keeps_an_answer_that_is_still_held() -> None:
    session = ChatSession(scripted_model("I am well."))
    first = session.send("one")
    shown = next(first).text
    second = session.send("two")
    list(second)
    assert [turn["content"] for turn in session.messages[:3]] == ["one", shown, "two"]
    assert list(first) == []
    third = session.regenerate()
    next(third)
    fourth = session.regenerate()
    assert [turn["content"] for turn in session.messages[:3]] == ["one", shown, "two"]
    assert list(third) == []
    list(fourth)
    assert len(session.messages) == 4
    fifth = session.send("three")
    next(fifth)
    list(session.edit(0, "other"))
    assert list(fifth) == []
    assert [turn["content"] for turn in session.messages] == ["other", "I am well."]


def test_a_session_and_its_model_are_gone_with_the_last_reference_also_after_half_an_answer() -> None:
    model = scripted_model("I am well.")
    session, left = ChatSession(model), weakref.ref(model.session)
    answer = session.send("one")
    next(answer)
    gc.disable()  # which would find them by itself, sooner or later
    try:
        del model, session, answer
        assert left() is None
    finally:
        gc.enable()


def test_saving_ends_and_keeps_an_answer_that_is_still_held(tmp_path: Path) -> None:
    session = ChatSession(edgelm.load(tiny_model_path()))
    answer = session.send("one", GenerationConfig(max_new_tokens=10))
    shown = next(chunk.text for chunk in answer if chunk.text)
    session.save(tmp_path / "chat")
    assert list(answer) == []
    saved = ChatSession.load(session.model, tmp_path / "chat").messages
    assert saved == session.messages
    assert [turn["content"] for turn in saved] == ["one", shown]


def test_clear_and_restore_end_an_answer_that_is_still_held() -> None:
    session = ChatSession(scripted_model("I am well."))
    for change, turns in ((session.clear, []), (lambda: session.restore(TURNS), TURNS)):
        answer = session.send("one")
        next(answer)
        change()
        assert list(answer) == []
        assert session.messages == turns


def test_a_turn_that_does_not_fit_leaves_the_conversation_as_it_was() -> None:
    session = ChatSession(scripted_model("Fine."))
    say(session, "Hi")
    before = session.messages
    with pytest.raises(edgelm.ContextLengthError):
        session.send("word " * 2000)
    assert session.messages == before


def test_clear_forgets_the_turns_and_keeps_the_system_message() -> None:
    session = ChatSession(scripted_model("Fine."), system="Be kind.")
    say(session, "Hi")
    session.clear()
    assert (session.messages, session.context_used, session.system) == ([], 0, "Be kind.")


def test_restore_takes_the_turns_of_a_saved_conversation() -> None:
    session = ChatSession(scripted_model("c"))
    session.restore(TURNS)
    say(session, "next")
    assert [turn["content"] for turn in session.messages] == ["a", "b", "next", "c"]


@pytest.mark.parametrize("turn", [{"role": "robot", "content": "x"}, {"role": "user", "content": 5}, {}, "x"])
def test_restore_refuses_what_is_no_turn(turn: object) -> None:
    with pytest.raises(edgelm.ConfigError, match=r"Turn 1 is .*; each has a role"):
        ChatSession(scripted_model("c")).restore([turn])  # type: ignore[list-item]


@pytest.mark.parametrize("turns", [None, TURNS[0], "x"])
def test_restore_refuses_what_is_no_list(turns: Any) -> None:
    with pytest.raises(edgelm.ConfigError, match="restore takes a list of turns"):
        ChatSession(scripted_model("c")).restore(turns)


@pytest.mark.parametrize("system", [5, ["Be brief."], [{"type": "text", "text": "Be brief."}]])
def test_a_system_message_is_a_text(system: Any) -> None:
    # What is saved with another one cannot be loaded again.
    model = scripted_model("hi")
    with pytest.raises(ConfigError, match=r"system is .*; it must be a text, or None"):
        ChatSession(model, system)
    session = ChatSession(model, "Be brief.")
    with pytest.raises(ConfigError, match=r"system is .*; it must be a text, or None"):
        session.system = system
    assert session.system == "Be brief."


def test_edit_says_something_else_in_place_of_a_message() -> None:
    session = ChatSession(scripted_model("c"))
    session.restore([*TURNS, *TURNS])
    assert "".join(chunk.text for chunk in session.edit(2, "new")) == "c"
    assert [turn["content"] for turn in session.messages] == ["a", "b", "new", "c"]
    assert session.model.name == "tiny-random"


@pytest.mark.parametrize("index", [-2, -1, 1, 2, "0"])
def test_edit_refuses_what_is_no_message_of_the_user(index: Any) -> None:
    session = ChatSession(scripted_model("c"))
    session.restore(TURNS)
    with pytest.raises(
        edgelm.ConfigError, match=rf"The message at {index!r} is none of the user's; those are at \[0\]"
    ):
        session.edit(index, "x")


def test_an_answer_that_another_thread_reads_is_not_ended_under_it() -> None:
    session, reading, go_on = ChatSession(scripted_model("I am well.")), threading.Event(), threading.Event()

    def hold(logits_V: object, token_ids: object) -> None:
        reading.set()
        assert go_on.wait(60)

    answer = session.send("one", GenerationConfig(processors=[hold]))
    reader = threading.Thread(target=list, args=(answer,))
    reader.start()
    assert reading.wait(60)
    for end in (lambda: session.send("two"), session.regenerate, session.clear):
        with pytest.raises(edgelm.EdgeLMError, match=r"Another thread is reading an answer .* Cancel that one first"):
            end()
    go_on.set()
    reader.join()
    assert [turn["content"] for turn in session.messages] == ["one", "I am well."]
    say(session, "two")


@pytest.mark.parametrize("copy_of", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_copy_would_share_the_cache_and_is_refused(copy_of: Callable[[object], object]) -> None:
    with pytest.raises(edgelm.EdgeLMError, match=r"both would write into one cache\. .* and restore\(messages\); "):
        copy_of(ChatSession(scripted_model("c")))
