"""The chat's loop and its slash commands, on a scripted model and a screen that remembers."""

from __future__ import annotations

import itertools
import json
import ntpath
import os
import signal

import pytest
from scripted_chat import FakeScreen, converse, load
from tiny_adapter import write_tiny_adapter

import edgelm
from edgelm.chat_session import ChatSession
from edgelm.cli.chat_commands import ALIASES, COMMANDS, SETTINGS, suggestions
from edgelm.cli.conversation import Conversation, unquoted
from edgelm.cli.kept_session import KeptSession
from edgelm.generation_config import RANGES, GenerationConfig
from edgelm.testing import scripted_model, tiny_model_path


def test_a_turn_is_answered_and_its_speed_shown():
    chat = converse("  Hello ", "")
    assert chat.screen.answers == ["The sea is blue."]
    assert "tokens/s" in chat.screen.notes[-1]
    assert chat.session.messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "The sea is blue."},
    ]
    first = chat.screen.notes[0]
    assert first.endswith(" tokens of context · /help lists commands")
    assert len(first.replace("tiny-random · fp32 · 1024", "smollm2-135m-instruct · int8 · 8192")) <= 80


def test_an_interrupt_at_the_prompt_asks_again_and_an_end_leaves():
    assert converse(KeyboardInterrupt, "Hello", EOFError, "never said").screen.answers == ["The sea is blue."]


def test_bye_leaves():
    assert converse("/bye", "never said").screen.answers == []


def interrupted(*pieces: int) -> Conversation:
    """Hold a chat of two turns; Ctrl-C comes with these pieces of the first answer."""
    model = scripted_model("The sea is blue.")
    screen = FakeScreen("Hello", "Again")
    chat = Conversation(ChatSession(model), {}, screen, load, KeptSession())
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
    assert interrupted(0, 1).screen.warnings == ["It was broken off."]


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


def test_any_white_space_ends_the_name_of_a_command():
    chat = converse("/system\nBe brief.\nBe kind.", "/set\ttop_k 3")
    assert chat.session.system == "Be brief.\nBe kind."
    assert chat.screen.notes[-1] == "top_k = 3"


def test_null_takes_the_system_message_back():
    chat = converse("/system Be brief.", "/system null")
    assert chat.screen.notes[1:] == ["system: Be brief.", "system: (none)"]
    assert chat.session.system is None


def test_set_changes_and_shows_settings():
    chat = converse(
        "/set temperature 0.7", "/set stop END", '/set stop ["a", "\\n"]', "/set parameter max_new_tokens null", "/set"
    )
    assert chat.config() == GenerationConfig(temperature=0.7, stop=("a", "\n"))
    assert chat.screen.notes[1:3] == ["temperature = 0.7", 'stop = ["END"]']
    assert len(chat.screen.notes[-1].splitlines()) == len(SETTINGS)


def test_every_number_of_a_config_that_an_answer_shows_can_be_set():
    assert set(RANGES) - {"logprobs"} <= set(SETTINGS)
    chat = converse("/set num_beams 1", "/set top_n_sigma 1.5", temperature=0.0, num_beams=4)
    assert chat.screen.notes[1:] == ["num_beams = 1", "top_n_sigma = 1.5"]
    assert chat.config() == GenerationConfig(top_n_sigma=1.5)


def test_a_setting_that_another_one_shuts_out_is_refused_and_the_chat_goes_on():
    chat = converse("/set mirostat_tau 5", "/set temperature 0", "Hello", "/set mirostat_tau 0", temperature=0.7)
    assert [warning.partition(",")[0] for warning in chat.screen.warnings] == ["error: mirostat_tau is 5"]
    assert chat.config() == GenerationConfig(temperature=0.7)
    assert chat.screen.answers == ["The sea is blue."]


def test_null_takes_a_setting_back():
    chat = converse("/set stop END", "/set seed 3", "/set stop null", "/set seed null")
    assert chat.config() == GenerationConfig()
    assert chat.screen.warnings == []


def test_set_reaches_the_answer():
    chat = converse("/set max_new_tokens 3", "Hello")
    assert chat.screen.answers == ["The se"]
    assert chat.screen.warnings == ["The answer was cut off: /set max_new_tokens N allows longer ones."]


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("/etc/passwd is what?", "There is no command /etc/passwd. /help lists them; a space before / says it to"),
        ("/sett temperature 1", "There is no command /sett. Did you mean /set? /help lists them; "),
        ("/save", "/save needs FILE."),
        ("/load  ", "/load needs FILE."),
        ("/retry in French", "/retry stands alone. Nothing was done; say the rest as a message of its own."),
        ("/quit smoking: how?", "/quit stands alone. "),
        ("/set heat 3", "There is no setting 'heat'. There are max_new_tokens, min_new_tokens, context_shift"),
        ("/set top-k 3", "There is no setting 'top-k'. Did you mean top_k?"),
        ("/set parameter heat 3", "There is no setting 'heat'. There are max_new_tokens"),
        ("/set parameter num_predict 9", "There is no setting 'num_predict'. It is max_new_tokens here."),
        ("/set verbose", "There is no setting 'verbose'. The line below each answer has the speed."),
        ("/show info", "There is no command /show. /set, /system and /stats show what is in force, and `edgelm show"),
        ("/read /nowhere/at/all", "Cannot add /nowhere/at/all: "),
        ("/regen", "There is no question to answer again yet."),
        ("/set top_k", "/set top_k needs a value; it is 0 now."),
        ("/set stop", "/set stop needs a value; it is [] now."),
        ("/set seed", "/set seed needs a value; it is null now."),
        ("/set top_k many", "top_k is 'many'; it must be a number"),
        ("/set seed [1]", "seed is [1]; it must be a number"),
        ("/set adapter poet", "tiny-random has no adapter 'poet'; loaded: none. Load it: load_adapter, --adapter."),
        ("/regenerate", "There is no question to answer again yet."),
        ("/save /nowhere/at/all.json", "Cannot write /nowhere/at/all.json: "),
        ("/load /nowhere/at/all.json", "Cannot read /nowhere/at/all.json: "),
        ("/save /", "Cannot write /: "),
        ("/save ~nosuchuser/x", "Cannot write ~nosuchuser/x: "),
        ("/save a\0b", "Cannot write a\0b: "),
        ("/load ~nosuchuser/x", "Cannot read ~nosuchuser/x: "),
        ("/load /dev/zero", "Cannot read /dev/zero: it is not a regular file."),
        ("/load a\0b", "Cannot read a\0b: "),
        ("/set seed " + "[" * 100_000, "/set seed takes no value that is nested so deeply."),
        ("word " * 2000, "this model's maximum context length is 1024"),
    ],
)
def test_a_mistake_is_a_warning_and_the_chat_goes_on(typed, message):
    chat = converse(typed, "Hello")
    assert chat.screen.warnings[0].startswith("error: ")
    assert message in chat.screen.warnings[0]
    assert chat.screen.answers[-1] == "The sea is blue."


def test_a_line_that_begins_with_a_space_is_said_to_the_model():
    assert converse(" /etc/passwd is what?").session.messages[0]["content"] == "/etc/passwd is what?"


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


def test_a_chat_takes_the_place_of_an_older_one_and_of_nothing_else(tmp_path):
    notes, old = tmp_path / "notes.md", tmp_path / "old.json"
    notes.write_text("Mine.\n")
    old.touch()
    chat = converse(f"/save {old}", "Hello", f"/save {old}", f"/save {notes}")
    assert len(json.loads(old.read_text())["messages"]) == 2
    assert chat.screen.warnings == [
        f"error: {notes} exists and is no chat that /save wrote; it is left alone. Choose another file."
    ]
    assert notes.read_text() == "Mine.\n"


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not a chat that /save wrote."),
        ("[]", "is not a chat that /save wrote."),
        ('{"messages": 3}', "is not a chat that /save wrote."),
        ('{"messages": ["x"]}', "is not a chat that /save wrote."),
        ('{"messages": [], "system": 3}', "is not a chat that /save wrote."),
        ('{"messages": [{"role": "system", "content": "x"}]}', "chat.json is not a chat that /save wrote: Turn 1 is"),
        ('{"messages": ' + "[" * 100_000, "is not a chat that /save wrote."),
        ("\udcff", "is not a chat that /save wrote."),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "is not a chat that /save wrote."),
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
    while len(encode(text)) < 850:  # 0.83 of it
        text += "x"
    assert converse(text).screen.warnings == []
    while len(encode(text)) < 960:
        text += "x"
    chat = converse(text)
    assert "of 1024 tokens of context are used: /clear starts a new conversation." in chat.screen.warnings[0]
    assert converse(text, context_shift=0).screen.warnings == []  # it goes on


def test_a_conversation_that_moves_through_the_context_has_no_warning_and_a_remark_once_it_has_outgrown_it():
    chat = converse("word " * 190, "word " * 190, context_shift=0)
    remarks = [note for note in chat.screen.notes if "The model reads the newest part" in note]
    assert chat.screen.warnings == []
    assert remarks == [f"The model reads the newest part of this conversation's {chat.conversation_tokens()} tokens."]


def test_retry_and_the_other_names_do_the_same():
    for again, leave in (("/retry", "/exit"), ("/regenerate", "/quit")):
        chat = converse("Hello", again, leave, "never said")
        assert chat.screen.answers == ["The sea is blue."] * 2
        assert len(chat.session.messages) == 2
    assert "leave; also /exit; also /quit" in converse("/?").screen.notes[-1]
    assert set(ALIASES.values()) <= set(COMMANDS)
    assert not set(ALIASES) & set(COMMANDS)


def test_edit_answers_a_changed_message_and_drops_what_came_after():
    chat = converse("One", "Two", "Three", "/edit 3", edit_to="Second\n")
    assert chat.screen.edited == ["Two"]
    assert [turn["content"] for turn in chat.session.messages] == [
        "One", "The sea is blue.", "Second", "The sea is blue.",
    ]  # fmt: skip


def test_edit_without_a_number_changes_the_last_message():
    assert converse("One", "Two", "/edit", edit_to="Second").screen.edited == ["Two"]


@pytest.mark.parametrize("edit_to", [None, " \n"])
def test_an_edit_that_changes_nothing_asks_nothing(edit_to):
    chat = converse("One", "/edit", edit_to=edit_to)
    assert (chat.screen.edited, len(chat.screen.answers)) == (["One"], 1)
    assert chat.screen.notes[-1] == "Nothing was changed."


def test_an_edit_that_does_not_fit_leaves_the_conversation_as_it_was():
    chat = converse("One", "/edit", edit_to="word " * 2000)
    assert "this model's maximum context length is 1024" in chat.screen.warnings[0]
    assert [turn["content"] for turn in chat.session.messages] == ["One", "The sea is blue."]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("/edit",), "There is no message to edit yet."),
        (("One", "/edit 2"), "There is no message 2 of yours; yours are 1 (/tokens)."),
        (("One", "/edit x"), "There is no message x of yours; yours are 1 (/tokens)."),
        (("One", "/edit " + "9" * 5000), "9 of yours; yours are 1 (/tokens)."),  # more than int() takes
        (("One", "Two", "/edit 2"), "There is no message 2 of yours; yours are 1, 3 (/tokens)."),
        (("/model nothing",), "There is no model 'nothing'."),
        (("/resume",), "There is no other session to go on with."),
        (("/resume nothing",), "There is no saved session 'nothing'. Saved: none."),
        (("/file /nowhere",), "Cannot add /nowhere: there is no such file."),
        (("/file /",), "Cannot add /: it is not a regular file."),
        (("/file ~nosuchuser/x",), "Cannot add ~nosuchuser/x: "),
        (("/file a\0b",), "Cannot add a\0b: "),
    ],
)
def test_a_wrong_argument_is_a_warning(typed, message):
    assert message in converse(*typed).screen.warnings[0]


def test_a_file_goes_with_the_next_message_alone(tmp_path):
    path = tmp_path / "notes.md"
    path.write_bytes(b"Salt:\r\n```\n3.5 %\n```\n")
    chat = converse(f"/file {path}", "How much?", "And now?")
    assert "notes.md (" in chat.screen.notes[1]
    assert chat.screen.statuses[1].endswith("· with notes.md")
    said = [turn["content"] for turn in chat.session.messages if turn["role"] == "user"]
    assert said == ["File notes.md:\n````\nSalt:\n```\n3.5 %\n```\n````\n\nHow much?", "And now?"]


def test_a_file_stays_until_a_message_is_answered_or_it_is_left_out(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("word " * 2000)
    chat = converse(f"/file {path}", "Too long", "/tokens", "/file", "Fine")
    assert "this model's maximum context length is 1024" in chat.screen.warnings[0]
    assert any("long.txt, goes with your next message" in note for note in chat.screen.notes)
    assert [turn["content"] for turn in chat.session.messages] == ["Fine", "The sea is blue."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PNG\0\1", "it is a binary file, not a text."),
        (b"\xff\xfe", "it is not a text in UTF-8."),
        (b"x" * (1 << 20) + b"x", "bytes, and at most "),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    chat = converse(f"/file {path}", "Hello")
    (warning,) = chat.screen.warnings
    assert warning.startswith(f"error: Cannot add {path}: it ")
    assert message in warning
    assert chat.session.messages[0]["content"] == "Hello"


def test_tokens_are_counted_for_each_message():
    chat = converse("/system Be kind.", "Hello", "/tokens")
    count = lambda text: len(chat.model.tokenizer.encode(text))  # noqa: E731
    system, user, assistant, context = (line.split() for line in chat.screen.notes[-1].splitlines())
    assert system == ["system", str(count("Be kind.")), "Be", "kind."]
    assert user == ["1", "user", str(count("Hello")), "Hello"]
    assert assistant[:3] == ["2", "assistant", str(count("The sea is blue."))]
    assert context[:4] == ["context", str(chat.session.context_used), "of", "1024,"]


@pytest.mark.parametrize("width", [30, 80])
def test_the_lines_of_tokens_fit_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    chat = converse("a long question " * 10, "/tokens")
    lines = chat.screen.notes[-1].splitlines()
    assert len(lines[0]) == width
    assert lines[0].endswith("…")


def test_characters_that_take_two_columns_fit_the_terminal_and_are_shown_as_they_are(monkeypatch):
    wcswidth = pytest.importorskip("wcwidth").wcswidth
    monkeypatch.setenv("COLUMNS", "80")
    chat = converse("很长的问题" * 20, "/tokens", "/set stop 。")
    assert wcswidth(chat.screen.notes[-2].splitlines()[0]) == 79  # the column that is left has no room for another
    assert chat.screen.notes[-1] == 'stop = ["。"]'


def test_another_model_goes_on_with_the_conversation_and_the_settings():
    chat = converse("/system Be kind.", "Hello", "/set temperature 0.5", "/model other", "And you?", "/model")
    assert chat.screen.answers == ["The sea is blue.", "I am another."]
    assert (len(chat.session.messages), chat.session.system) == (4, "Be kind.")
    assert chat.config().temperature == 0.5
    assert not any(note.startswith(("think = ", "adapter = ")) for note in chat.screen.notes)  # nobody had set them
    assert "it reads the conversation with its next answer" in chat.screen.notes[-3]
    assert chat.screen.notes[-1] == "model: tiny-random. In the library: none"


def test_an_adapter_that_was_set_stays_behind_where_another_model_has_none_of_its_name(tmp_path):
    model = edgelm.load(tiny_model_path())
    model.load_adapter(write_tiny_adapter(tmp_path / "mine"))
    screen = FakeScreen("/set adapter mine", "/model other", "Hello")
    chat = Conversation(ChatSession(model), {}, screen, load, KeptSession())
    chat.run()
    assert (chat.screen.warnings, chat.screen.answers) == ([], ["I am another."])
    assert "adapter = null: this model has none of that name." in chat.screen.notes


def test_a_draft_of_another_tokenizer_than_the_next_models_stays_behind(monkeypatch):
    draft = scripted_model("The sea")
    monkeypatch.setattr(draft.tokenizer, "control_token_ids", frozenset())
    chat = converse("/model other", "Hello", speculation=draft)
    assert (chat.screen.warnings, chat.screen.answers) == ([], ["I am another."])
    assert any(note.startswith("Nothing is guessed ahead any more: tiny-random cannot") for note in chat.screen.notes)


def test_the_status_shows_model_speed_and_context():
    chat = converse("Hello", "Again")
    assert chat.screen.statuses[:2] == [
        "tiny-random · context 0 of 1024",
        "tiny-random · reading … · context 0 of 1024",
    ]
    assert "tokens/s" in chat.screen.statuses[-1]
    assert chat.screen.statuses[-1].endswith(f"· context {chat.session.context_used} of 1024")
    assert "tokens/s" not in converse("Hello", "/model other").screen.statuses[-1]  # that was another model's


def test_triple_quotes_hold_a_text_as_it_stands():
    assert unquoted('"""\n  /one\n  two \n"""') == "  /one\n  two "
    assert unquoted('""""""') == unquoted('"""\n \n"""') == ""
    assert unquoted('  """open ') == '"""open'
    chat = converse('"""\n/help me\n"""')
    assert chat.session.messages[0]["content"] == "/help me"


def test_what_is_typed_is_completed(tmp_path, own_library):
    def texts(typed: str) -> list[str]:
        return [typed[: len(typed) - one.replaces] + one.text for one in suggestions(typed)]

    converse("Hello", "/clear", "Help")
    (own_library / "models" / "small").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden").touch()
    assert texts("/se") == ["/set", "/sessions"]
    assert texts("hello") == texts("/nothing x") == texts("/help x") == []
    assert sorted(texts("/resume hel")) == ["/resume hello", "/resume help"]
    assert texts("/model s") == ["/model small"]
    assert texts("/set top_") == ["/set top_k", "/set top_p", "/set top_n_sigma"]
    assert texts(f"/file {tmp_path}/n") == [f"/file {tmp_path}/notes.txt"]
    assert texts(f"/load {tmp_path}/m") == [f"/load {tmp_path}/more/"]
    assert texts(f"/file {tmp_path}/") == [f"/file {tmp_path}/{name}" for name in ("more/", "notes.txt")]
    assert texts(f"/file {tmp_path}/.") == [f"/file {tmp_path}/.hidden"]
    assert texts("/file ~nosuchuser/") == []
    assert next(iter(suggestions("/help"))).meaning == "show this list"


def test_a_path_is_completed_behind_the_separator_of_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "basename", ntpath.basename)
    (tmp_path / "notes\\").mkdir()
    (tmp_path / "notes\\" / "sea.txt").touch()
    (found,) = suggestions(f"/file {tmp_path}/notes\\s")
    assert found.text == f"{tmp_path}/notes\\sea.txt"


def test_what_cannot_be_listed_is_not_completed(own_library):
    own_library.write_text("a file where the folder should be")
    assert list(suggestions("/resume x")) == list(suggestions("/model x")) == []


def test_ctrl_c_between_two_steps_ends_nothing():
    model = scripted_model("The sea is blue.")
    screen = FakeScreen("Hello", "/stats")
    note = screen.note
    screen.note = lambda text: (signal.raise_signal(signal.SIGINT), note(text))[1]
    warn = screen.warn
    screen.warn = lambda text: (signal.raise_signal(signal.SIGINT), warn(text))[1]
    Conversation(ChatSession(model), {}, screen, load, KeptSession()).run()
    assert screen.answers == ["The sea is blue."]
    assert screen.warnings == ["It was broken off."]  # /stats, where it was about to show them
