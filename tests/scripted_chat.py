"""A chat on a scripted model, and a screen that says what a script says and remembers what was shown."""

from __future__ import annotations

from collections.abc import Iterator

from edgelm.chat_session import ChatSession
from edgelm.cli.conversation import Conversation, Thought
from edgelm.cli.kept_session import KeptSession
from edgelm.errors import ModelNotFoundError
from edgelm.language_model import LanguageModel
from edgelm.testing import scripted_model


class FakeScreen:
    """Say what the script says, then leave; remember what was shown."""

    def __init__(self, *script: str | type[BaseException]) -> None:
        self.script = list(script)
        self.answers: list[str] = []
        self.thoughts = ""
        self.notes: list[str] = []
        self.kept_as: str | None = None  # the last line of all
        self.warnings: list[str] = []
        self.statuses: list[str] = []
        self.edited: list[str] = []
        self.edit_to: str | None = None
        self.when_shown = lambda: None

    def ask(self, suggest, status: str) -> str:
        self.statuses.append(status)
        said = self.script.pop(0) if self.script else EOFError
        if isinstance(said, str):
            return said
        raise said

    def show(self, texts: Iterator[str | Thought], status) -> None:
        self.answers.append("")
        self.statuses.append(status())
        for text in texts:
            if isinstance(text, Thought):
                self.thoughts += text.text
            else:
                self.answers[-1] += text
            self.statuses.append(status())
            self.when_shown()

    def edit(self, text: str) -> str | None:
        self.edited.append(text)
        return self.edit_to

    def note(self, text: str) -> None:
        if text.startswith("Kept as "):
            self.kept_as = text
        else:
            self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def converse(
    *script: str | type[BaseException], answer: str = "The sea is blue.", edit_to: str | None = None, **settings
) -> Conversation:
    model = scripted_model(answer)
    screen = FakeScreen(*script)
    screen.edit_to = edit_to
    chat = Conversation(ChatSession(model), settings, screen, load, KeptSession())
    chat.run()
    return chat


def load(name: str) -> LanguageModel:
    """Open another model, which says another thing."""
    if name != "other":
        raise ModelNotFoundError(f"There is no model {name!r}.")
    return scripted_model("I am another.")
