"""Answers on the screen: drawn while they are written, whole at the end, also where they are taller than the screen."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("prompt_toolkit")
pytest.importorskip("rich")

from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import DummyInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from edgelm.cli import terminal as terminal_module
from edgelm.cli.chat_commands import Suggestion
from edgelm.cli.conversation import Thought
from edgelm.cli.terminal import Terminal, _Completer, _last_lines, is_open
from edgelm.cli.typed_history import TypedHistory
from edgelm.errors import ConfigError
from edgelm.files.file_lock import file_lock

HEIGHT, WIDTH = 12, 60
STATUS = "9.5 tokens/s"


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
    screen.show((text[i : i + 3] for i in range(0, len(text), 3)), lambda: STATUS)
    return screen.emulator.text


def test_an_answer_taller_than_the_screen_is_whole_and_each_line_stands_once(screen):
    sentences = [f"Sentence number {i} is here." for i in range(2 * HEIGHT)]
    shown = show(screen, "\n\n".join(sentences))
    assert re.findall(r"Sentence number \d+ is here\.", shown) == sentences


def test_a_block_taller_than_the_screen_is_whole_and_each_line_stands_once(screen):
    code = [f"line_{i} = {i}" for i in range(2 * HEIGHT)]
    shown = show(screen, "Code:\n\n```python\n" + "\n".join(code) + "\n```\n\nThat is all.")
    assert re.findall(r"line_\d+ = \d+", shown) == code
    assert shown.rstrip().endswith("That is all.")


def test_one_long_paragraph_is_whole(screen):
    words = [f"word{i}" for i in range(150)]  # twice the screen
    assert show(screen, " ".join(words)).split() == words


def test_markdown_is_drawn(screen):
    shown = show(screen, "## Seas\n\n- the **Baltic**\n- the `North`\n\n1. one\n\n2. two\n")
    assert "**" not in shown
    assert "`" not in shown
    assert " • the Baltic\n • the North\n" in shown
    assert " 2 two" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**注意：**请勿关闭。", "注意：请勿关闭。"),
        ("これは**「重要」**です。", "これは「重要」です。"),
        ("**한국어(Korean)**는 *「말」*이다.", "한국어(Korean)는 「말」이다."),
        ("他说：**“你好”**，然后~~（删）~~走了。", "他说：“你好”，然后（删）走了。"),
        ("**a:**b 变量_甲_乙 中 * 3 * 中", "**a:**b 变量_甲_乙 中 * 3 * 中"),
    ],
)
def test_emphasis_needs_no_spaces_around_it_where_words_have_none(screen, text, shown):
    assert show(screen, text).strip() == shown


def test_where_a_link_leads_is_shown(screen):
    shown = show(screen, "See [the sea](https://example.org/deep) today.")
    assert shown.strip() == "See the sea (https://example.org/deep) today."


def test_what_looks_like_html_or_a_link_definition_is_not_swallowed(screen):
    shown = show(screen, "Use <div> and <b>bold</b>.\n\n<think>\nhm\n</think>\n\n[note]: nothing\n\nEnd &amp; done.\n")
    for part in ("<div>", "<b>bold</b>", "<think>", "</think>", "[note]: nothing", "End & done."):
        assert part in shown


def test_an_answer_cannot_command_the_terminal(screen):
    screen.show(["a\x1b]0;title\x07b\x1b[2Jc\x9b31m\rd"], lambda: "\x1b[2J")
    assert "a]0;titleb[2Jc31md" in screen.emulator.text


def test_a_remark_cannot_command_the_terminal(screen):
    screen._remarks = Console(file=(remarks := io.StringIO()))
    screen.note("a\x1b[2Jb")
    screen.warn("c\x1b[2Jd")
    assert remarks.getvalue() == "a[2Jb\nc[2Jd\n"


@pytest.mark.parametrize("console", [{"force_terminal": True, "_environ": {"TERM": "dumb"}}, {"force_terminal": False}])
def test_nothing_is_drawn_in_place_where_the_terminal_cannot(screen, console):
    screen._console = Console(file=(written := io.StringIO()), width=WIDTH, **console)
    show(screen, "**plain**\n\n\x1b[2Jtext")
    assert written.getvalue() == "**plain**\n\n[2Jtext\n"


def test_an_empty_answer_leaves_no_lines(screen):
    assert show(screen, "").strip() == ""


def test_the_history_is_kept_for_its_user_alone(screen, own_library):
    mode = (own_library / "chat_history.jsonl").stat().st_mode
    assert mode & 0o077 == 0


def test_a_history_that_cannot_be_kept_is_a_warning(monkeypatch, own_library, capsys):
    monkeypatch.setattr(terminal_module, "PromptSession", lambda **_: None)
    own_library.write_text("a file where the folder should be")
    Terminal()
    assert "The history of this chat is not kept:" in capsys.readouterr().err


def test_suggestions_complete_the_end_of_what_is_typed():
    completer = _Completer(lambda typed: [Suggestion(text="/save", replaces=len(typed), meaning="write")])
    (found,) = completer.get_completions(Document("/sa"), CompleteEvent())
    assert (found.text, found.start_position, found.display_meta_text) == ("/save", -3, "write")


def test_the_status_stands_below_the_answer_while_it_is_written(screen):
    shown = []
    texts = (shown.append(screen.emulator.text) or f"word{i} " for i in range(5))
    screen.show(texts, lambda: STATUS)
    assert shown[-1].splitlines()[-2:] == ["word0 word1 word2 word3", STATUS]
    assert screen.emulator.text.split() == [f"word{i}" for i in range(5)]


def test_the_status_stands_there_before_the_first_word(screen):
    def texts():
        assert screen.emulator.text.split("\n") == [STATUS]
        yield "word"

    screen.show(texts(), lambda: STATUS)
    assert screen.emulator.text.split() == ["word"]


def test_a_status_takes_one_line(screen):
    def texts():
        assert screen.emulator.text == "s" * (WIDTH - 1) + "…"
        yield "word"

    screen.show(texts(), lambda: "s" * 2 * WIDTH)


def test_what_is_thought_stands_dim_before_the_answer_and_is_no_markdown(screen):
    screen._console = Console(file=(plain := io.StringIO()), force_terminal=True, width=WIDTH, _environ={})
    pieces = [Thought("What is **it**?\n\nWa"), Thought("ter\n"), "The sea", "", " is **blue**."]
    screen.show(pieces, lambda: STATUS)
    assert "\x1b[2mWhat is **it**?\x1b[0m" in plain.getvalue()
    assert "\x1b[2mWater\x1b[0m" in plain.getvalue()
    screen._console = Console(file=screen.emulator, force_terminal=True, width=WIDTH, height=HEIGHT)
    screen.show(pieces, lambda: STATUS)
    assert screen.emulator.text.strip().split("\n\n") == ["What is **it**?", "Water", "The sea is blue."]


def test_what_is_thought_is_whole_and_each_line_stands_once(screen):
    thoughts = [f"Thought number {i} is here." for i in range(40)]
    screen.show([*(Thought(f"{text}\n\n") for text in thoughts), "Answer."], lambda: STATUS)
    assert re.findall(r"Thought number \d+ is here\.", screen.emulator.text) == thoughts
    assert screen.emulator.text.rstrip().endswith("\n\nAnswer.")


def test_what_is_thought_has_a_label_where_nothing_is_drawn(screen):
    screen._console = Console(file=screen.emulator, force_terminal=True, width=WIDTH, _environ={"TERM": "dumb"})
    screen.show([Thought("Wa"), "", Thought("ter."), "", "The sea", " is blue."], lambda: STATUS)
    assert screen.emulator.text == "Thinking: Water.\n\nAnswer: The sea is blue.\n"


def test_a_dumb_terminal_gets_text_alone(tmp_path):
    """As a program has it that reads aloud what another adds to the screen."""
    import pty

    ours, theirs = pty.openpty()
    program = "from edgelm.cli.terminal import Terminal; Terminal().note('Hello')"
    environment = os.environ | {"TERM": "dumb", "XDG_STATE_HOME": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, check=True
    )
    assert os.read(ours, 1 << 16) == b"Hello\r\n"
    os.close(ours)
    os.close(theirs)


def test_a_text_of_several_lines_is_asked_for_line_by_line_where_a_prompt_ends_with_each(screen, monkeypatch):
    lines = iter(['"""a', "b", 'c"""'])
    monkeypatch.setattr(screen, "_prompts", SimpleNamespace(prompt=lambda *_, **__: next(lines), input=DummyInput()))
    assert screen.ask(lambda _: [], STATUS) == '"""a\nb\nc"""'


def test_ctrl_c_right_behind_enter_takes_the_message_back():
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        screen = Terminal()
        keyboard.send_text("Hello\r\x03Again\r")
        with pytest.raises(KeyboardInterrupt):
            screen.ask(lambda _: [], STATUS)
        assert screen.ask(lambda _: [], STATUS) == "Again"


def test_ctrl_z_and_enter_leave_as_on_windows(screen, monkeypatch):
    monkeypatch.setattr(screen, "_prompts", SimpleNamespace(prompt=lambda *_, **__: "\x1a"))
    with pytest.raises(EOFError):
        screen.ask(lambda _: [], STATUS)


@pytest.mark.parametrize("head", ["| Fruit | Price |\n|:--|--:|\n", "Fruit | Price\n--- | ---\n"])
def test_a_table_taller_than_the_screen_is_a_table_while_it_is_written(screen, head):
    drawn = []
    texts = [head, *(f"| fruit{i} | ${i} |\n" for i in range(3 * HEIGHT))]
    screen.show((drawn.append(screen.emulator.text) or text for text in texts), lambda: STATUS)
    last = drawn[-1].splitlines()
    assert "|" not in drawn[-1]
    assert last[-1] == STATUS
    assert [f"fruit{3 * HEIGHT - 2}", f"${3 * HEIGHT - 2}"] in [line.split() for line in last]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("1\n2\n3\n4", "3\n4"),
        ("```\n2\n3\n4", "```\n3\n4"),
        ("~~~\n2\n3\n4", "~~~\n3\n4"),
        ("| a |\n|---|\n| 3 |\n| 4 |", "| a |\n|---|\n| 3 |\n| 4 |"),
        ("| a |\n|---|\n| 3 |", "| a |\n|---|\n| 3 |"),
    ],
)
def test_what_says_how_the_rest_is_drawn_stays_where_the_screen_has_no_room(text, left):
    assert _last_lines(text, 2) == left


def test_triple_quotes_keep_a_text_open():
    assert is_open('"""')
    assert is_open('  """one\ntwo')
    assert is_open('""" ""')
    assert not is_open('"""one\ntwo"""  ')
    assert not is_open('one """')


def test_history_comes_back_newest_first_and_several_chats_share_it(tmp_path):
    path = tmp_path / "state" / "history.jsonl"
    here, there = TypedHistory(path), TypedHistory(path)
    for history, text in ((here, "one\ntwo"), (there, "漢字 \udcff"), (here, "x" * 20_000)):
        history.store_string(text)
    assert list(TypedHistory(path).load_history_strings()) == ["漢字 \udcff", "one\ntwo"]


def test_a_history_waits_for_another_chat_that_writes_it(tmp_path, monkeypatch):
    history = TypedHistory(tmp_path / "history.jsonl")

    def wait(_seconds):
        raise RuntimeError("it waits")

    with file_lock(tmp_path / "history.jsonl.lock"), monkeypatch.context() as patched:
        patched.setattr(time, "sleep", wait)
        with pytest.raises(RuntimeError, match="it waits"):
            history.store_string("mine")
    history.store_string("mine")
    assert list(history.load_history_strings()) == ["mine"]


def test_a_history_that_cannot_be_read_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'"first"\n')  # by root, say, for whom no other may read it

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(type(path), "read_bytes", refuse)
        with pytest.raises(PermissionError):
            TypedHistory(path)
    assert list(TypedHistory(path).load_history_strings()) == ["first"]


def test_history_is_bounded_and_passes_over_what_is_no_entry(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"not json\n5\n" + b"[" * 100_010 + b'\n"first"\n' + b'"%s"\n' % (b"x" * 100) * 9_209)
    assert "first" in list(TypedHistory(path).load_history_strings())
    TypedHistory(path).store_string("the last entry of all")
    entries = list(TypedHistory(path).load_history_strings())
    assert entries[0] == "the last entry of all"
    assert "first" not in entries
    assert set(entries[1:]) == {"x" * 100}
    assert path.stat().st_size <= 1 << 20


def test_a_history_that_the_disk_refuses_later_stays_in_this_chat(tmp_path, monkeypatch):
    history = TypedHistory(tmp_path / "history.jsonl")
    monkeypatch.setattr(history, "_path", tmp_path / "gone" / "history.jsonl")
    history.append_string("kept here")
    assert history.get_strings() == ["kept here"]


def test_an_editor_changes_a_text_and_one_that_fails_is_an_error(screen, monkeypatch, tmp_path):
    def with_editor(program: str) -> str | None:
        (tmp_path / "editor.py").write_text(f"import pathlib, sys\npath = pathlib.Path(sys.argv[1])\n{program}\n")
        monkeypatch.setenv("EDITOR", f"{sys.executable} {tmp_path / 'editor.py'}")
        return screen.edit("some")

    monkeypatch.delenv("VISUAL", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    ctrl_c = f"import os, signal\nos.kill({os.getpid()}, signal.SIGINT)"  # which is the editor's
    assert with_editor(f"{ctrl_c}\npath.write_text(path.read_text() + 'more')") == "some\nmore"
    assert signal.getsignal(signal.SIGINT) is handler
    assert with_editor("") is None
    with pytest.raises(ConfigError, match=r"What the editor left is not a text in UTF-8\."):
        with_editor("path.write_bytes(b'\\xff')")
    with pytest.raises(ConfigError, match=r"Editing failed\. Set EDITOR to one that is here\."):
        with_editor("sys.exit(1)")


def test_a_history_without_a_home_is_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(terminal_module, "PromptSession", lambda **_: None)
    monkeypatch.setenv("EDGELM_HOME", "~nosuchuser/x")
    Terminal()
    assert "The history of this chat is not kept: EDGELM_HOME is '~nosuchuser/x'" in capsys.readouterr().err
