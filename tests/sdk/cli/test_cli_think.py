"""--think, --no-think and /set think: what the chat template is told, and which models cannot be told."""

from __future__ import annotations

import pytest
from command_line import invoke
from scripted_chat import FakeScreen
from thinking_template import system_message, thinking_model

from edgelm import loading
from edgelm.chat_session import ChatSession
from edgelm.cli.conversation import Conversation
from edgelm.cli.kept_session import KeptSession
from edgelm.language_model import LanguageModel
from edgelm.testing import scripted_model, tiny_model_path
from edgelm.text.chat_template import ChatTemplate

TINY = str(tiny_model_path())
CANNOT = "tiny-random cannot be told whether to think: its chat template does not read enable_thinking or thinking."
ON, OFF = "Thinking: on, effort: medium", "Thinking: off, effort: medium"


def listened(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of what the template says first, in the prompts that the model gets from now on."""
    said: list[str] = []
    answer = model.answer

    def listen(prompt, *others):
        said.append(system_message(model, prompt))
        return answer(prompt, *others)

    monkeypatch.setattr(model, "answer", listen)
    return said


@pytest.fixture
def said(monkeypatch) -> list[str]:
    model = thinking_model()
    monkeypatch.setattr(loading, "load", lambda *_: model)
    return listened(model, monkeypatch)


@pytest.mark.parametrize(("options", "told"), [([], ON), (["--think"], ON), (["--no-think"], OFF)])
@pytest.mark.parametrize("command", ["run", "chat"])
def test_the_option_reaches_the_template(said, command, options, told):
    result = invoke(command, TINY, *options, stdin="Hello")
    assert (result.exit_code, result.stdout) == (0, "The sea is blue.\n"), result.output
    assert said == [told]


@pytest.mark.parametrize("option", ["--think", "--no-think"])
@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_model_that_cannot_be_told_is_an_error(command, option):
    result = invoke(command, TINY, option, stdin="Hello")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: {CANNOT} Leave --think and --no-think out, or /set think null." in result.stderr


def test_a_raw_prompt_is_told_nothing(said):
    result = invoke("run", TINY, "--raw", "--no-think", "Hello")
    assert (result.exit_code, said) == (2, [])
    assert "--think and --no-think need the chat template; --raw leaves it out." in result.stderr


def converse(*script: str, model: LanguageModel, think: bool | None = None) -> FakeScreen:
    screen = FakeScreen(*script)
    screen.edit_to = "Why?"
    Conversation(ChatSession(model), {}, screen, lambda _: scripted_model("Yes."), KeptSession(), think).run()
    return screen


def test_a_chat_switches_from_turn_to_turn(monkeypatch):
    model = thinking_model()
    said = listened(model, monkeypatch)
    script = [
        "Hello",
        "/retry",
        "/edit",
        "/set think true",
        "Now?",
        "/set think false",
        "Now?",
        "/set think null",
        "Now?",
    ]
    screen = converse(*script, model=model, think=False)
    assert said == [OFF, OFF, OFF, ON, OFF, ON]
    switched = [note.removeprefix("think = ") for note in screen.notes if note.startswith("think = ")]
    assert switched == ["true", "false", "null"]
    assert not screen.warnings


def test_the_count_of_a_conversation_is_that_of_its_prompt():
    model = scripted_model("Yes.")
    model.chat_template = ChatTemplate("{{ 'deep ' * 9 if enable_thinking }}{{ messages[-1].content }}")
    counts = []
    for think in (True, False, None):
        chat = Conversation(ChatSession(model), {}, FakeScreen(), lambda _: model, KeptSession(), think)
        chat.session.restore([{"role": "user", "content": "Hello"}])
        counts.append(chat.conversation_tokens())
    assert counts[0] > counts[1] == counts[2] == len(model.tokenizer.encode("Hello"))


def test_a_word_is_no_way_to_switch():
    screen = converse("/set think high", "/set think", "/set think 1", model=thinking_model(), think=True)
    assert [warning.removeprefix("error: ") for warning in screen.warnings] == [
        "think is 'high'; it must be true, false or null.",
        "/set think needs a value; it is true now.",
        "think is 1; it must be true, false or null.",
    ]


def test_a_chat_with_a_model_that_cannot_be_told_says_so_and_goes_on():
    screen = converse("/set think true", "/set think null", "Hello", model=scripted_model("Yes."))
    assert [CANNOT in warning for warning in screen.warnings] == [True]
    assert screen.answers == ["Yes."]


def test_another_model_that_cannot_be_told_is_told_nothing():
    screen = converse("/model other", "Hello", model=thinking_model(), think=False)
    assert "think = null: this model cannot be told." in screen.notes
    assert (screen.answers, screen.warnings) == (["Yes."], [])
