"""Answers on the screen: drawn while they are written, whole at the end, also where they are taller than the screen."""

from __future__ import annotations

import io
import re

import pytest

pytest.importorskip("prompt_toolkit")
pytest.importorskip("rich")

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console

from edgelm.cli import terminal as terminal_module
from edgelm.cli.terminal import Terminal, _SlashCompleter

HEIGHT, WIDTH = 12, 60


class Emulator(io.StringIO):
    """As much of a terminal as rich writes to: lines that scroll up for good; a cursor on the last HEIGHT of them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [""]
        self.row = self.column = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", text):
            if part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
                self.column = 0
            elif part == "\r":
                self.column = 0
            elif part.startswith("\x1b["):
                self._obey(part[2:-1], part[-1])
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
                self.column += len(part)
        return len(text)

    def _obey(self, number: str, letter: str) -> None:
        if letter == "A":  # up, but never above the screen's first line
            self.row = max(len(self.lines) - HEIGHT, 0, self.row - int(number or 1))
        elif letter == "K":
            self.lines[self.row] = "" if number == "2" else self.lines[self.row][: self.column]
        else:
            assert letter in "mhl", letter

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


@pytest.fixture
def screen(monkeypatch, own_library):
    """Return a Terminal on an emulator of its own; nothing is asked, so no real terminal is needed."""
    monkeypatch.setattr(terminal_module, "PromptSession", lambda **_: None)
    monkeypatch.setattr(terminal_module, "_REDRAW_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    emulator = Emulator()
    terminal._console = Console(file=emulator, force_terminal=True, width=WIDTH, height=HEIGHT, legacy_windows=False)
    terminal.emulator = emulator
    return terminal


def show(screen, text: str) -> str:
    """Show `text` in small pieces, and return everything that is on the screen and above it."""
    screen.show(text[i : i + 3] for i in range(0, len(text), 3))
    return screen.emulator.text


def test_an_answer_taller_than_the_screen_is_whole_and_each_line_stands_once(screen):
    sentences = [f"Sentence number {i} is here." for i in range(40)]
    shown = show(screen, "\n\n".join(sentences))
    assert re.findall(r"Sentence number \d+ is here\.", shown) == sentences


def test_a_block_taller_than_the_screen_is_whole_and_each_line_stands_once(screen):
    code = [f"line_{i} = {i}" for i in range(40)]
    shown = show(screen, "Code:\n\n```python\n" + "\n".join(code) + "\n```\n\nThat is all.")
    assert re.findall(r"line_\d+ = \d+", shown) == code
    assert shown.rstrip().endswith("That is all.")


def test_one_long_paragraph_is_whole(screen):
    words = [f"word{i}" for i in range(400)]
    assert show(screen, " ".join(words)).split() == words


def test_markdown_is_drawn(screen):
    shown = show(screen, "## Seas\n\n- the **Baltic**\n- the `North`\n\n1. one\n\n2. two\n")
    assert "**" not in shown
    assert "`" not in shown
    assert " • the Baltic\n • the North\n" in shown
    assert " 2 two" in shown


def test_what_looks_like_html_or_a_link_definition_is_not_swallowed(screen):
    shown = show(screen, "Use <div> and <b>bold</b>.\n\n<think>\nhm\n</think>\n\n[note]: nothing\n\nEnd &amp; done.\n")
    for part in ("<div>", "<b>bold</b>", "<think>", "</think>", "[note]: nothing", "End & done."):
        assert part in shown


def test_an_answer_cannot_command_the_terminal(screen):
    screen.show(["a\x1b]0;title\x07b\x1b[2Jc\x9b31m\rd"])
    assert "a]0;titleb[2Jc31md" in screen.emulator.text


def test_nothing_is_drawn_in_place_where_the_terminal_cannot(screen, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    screen._console = Console(file=screen.emulator, force_terminal=True, width=WIDTH, _environ={"TERM": "dumb"})
    assert show(screen, "**plain**\n\ntext") == "**plain**\n\ntext\n"


def test_an_empty_answer_leaves_no_lines(screen):
    assert show(screen, "").strip() == ""


def test_the_history_is_kept_for_its_user_alone(screen, own_library):
    mode = (own_library / "chat_history").stat().st_mode
    assert mode & 0o077 == 0


def test_a_history_that_cannot_be_kept_is_a_warning(monkeypatch, own_library, capsys):
    monkeypatch.setattr(terminal_module, "PromptSession", lambda **_: None)
    own_library.write_text("a file where the folder should be")
    Terminal()
    assert "The history of this chat is not kept:" in capsys.readouterr().err


def test_slash_commands_are_completed_and_texts_are_not():
    completer = _SlashCompleter({"/save": "write", "/set": "change"})

    def completions(text: str) -> list[str]:
        return [found.text for found in completer.get_completions(Document(text), CompleteEvent())]

    assert completions("/s") == ["/save", "/set"]
    assert completions("/sa") == ["/save"]
    assert completions("so") == []


def test_a_history_without_a_home_is_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(terminal_module, "PromptSession", lambda **_: None)
    monkeypatch.setenv("EDGELM_HOME", "~nosuchuser/x")
    Terminal()
    assert "The history of this chat is not kept: EDGELM_HOME is '~nosuchuser/x'" in capsys.readouterr().err
