"""The chat in a real pseudo-terminal: typed into, interrupted, saved, left."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from edgelm_server import fork_on_terminal

from edgelm.saved_session import SavedSessions
from edgelm.testing import tiny_model_path

pytest.importorskip("prompt_toolkit")
pytest.importorskip("rich")

TINY = str(tiny_model_path())
# Of the real command: a scripted model that takes 5 ms a token.
SCRIPTED = """
import time
from edgelm import loading
from edgelm.testing import ScriptedDecoder, scripted_model

forward = ScriptedDecoder.forward
ScriptedDecoder.forward = lambda *a, **k: (time.sleep(0.005), forward(*a, **k))[1]
loading.load = lambda *_: scripted_model(ANSWER)
"""
MAIN = "from edgelm.cli.main import main; main(prog_name='edgelm')"
WHERE_IS_THE_CURSOR = "\x1b[6n"
SHORT = "The **sea** is blue."
LONG = " ".join(f"word{i}" for i in range(120))


class ChatProcess:
    """A process on a terminal of its own, and everything that it wrote there."""

    def __init__(self, *command: str, prelude: str | None = None) -> None:
        """Start a program with its arguments; where there is a prelude, `edgelm` with these, in a second less."""
        self.seen = ""
        self._terminal, other_end = pty.openpty()
        self.resize(24, 80)
        with pytest.MonkeyPatch.context() as changed:
            changed.setenv("TERM", "xterm-256color")
            if prelude is None:
                program = subprocess.Popen(command, preexec_fn=lambda: os.login_tty(other_end), pass_fds=[other_end])
                self.pid, self._poll = program.pid, program.poll
            else:
                process = fork_on_terminal(prelude, command, other_end)
                self.pid, self._poll = process.pid, lambda: process.exitcode
        os.close(other_end)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._terminal, (rows, columns))

    def type(self, keys: str, encoding: str = "utf-8") -> None:
        os.write(self._terminal, keys.encode(encoding))

    def paste(self, text: str) -> None:
        """Type as a terminal does what is pasted, while the screen is read."""
        keys = f"\x1b[200~{text}\x1b[201~".encode()
        while keys:
            readable, writable, _ = select.select([self._terminal], [self._terminal], [], 20)
            assert readable or writable
            if readable:
                self._read()
            if writable:
                keys = keys[os.write(self._terminal, keys[:1024]) :]

    def wait_for(self, text: str, seconds: float = 20.0) -> str:
        """Read until `text` comes, and return what came up to there."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not come, but {self.seen!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                self._read()
        before, _, self.seen = self.seen.partition(text)
        return before

    def _read(self) -> None:
        self.seen += os.read(self._terminal, 65536).decode("utf-8", "replace")
        if WHERE_IS_THE_CURSOR in self.seen:
            self.seen = self.seen.replace(WHERE_IS_THE_CURSOR, "")
            self.type("\x1b[1;1R")

    def wait_for_prompt(self) -> None:
        self.wait_for(">>>")
        self.wait_for("\x1b[?25h")  # the cursor is shown: what is typed now is read

    def leave(self) -> None:
        """Press Ctrl-D at the prompt."""
        self.wait_for_prompt()
        self.type("\x04")
        assert self.exit_code() == 0

    def exit_code(self) -> int:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if select.select([self._terminal], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):  # the other end may be closed
                    os.read(self._terminal, 65536)
            if (code := self._poll()) is not None:
                os.close(self._terminal)
                return code
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("the chat did not end")


def started_chat(answer: str, *options: str) -> ChatProcess:
    return ChatProcess("chat", TINY, *options, prelude=SCRIPTED.replace("ANSWER", repr(answer)))


def scripted_chat(answer: str, *options: str) -> ChatProcess:
    chat = started_chat(answer, *options)
    chat.wait_for("/help lists commands")
    chat.wait_for_prompt()
    return chat


def kept_messages(name: str) -> list[str]:
    """Return what was said in a session that was kept."""
    conversation = json.loads((SavedSessions().root / name / "conversation.json").read_text())
    return [turn["content"] for turn in conversation["messages"]]


def test_a_chat_is_answered_regenerated_saved_and_loaded(tmp_path: Path):
    path = tmp_path / "chat.json"
    chat = scripted_chat(SHORT)
    chat.type("Hello\r")
    shown = chat.wait_for("tokens/s")
    assert "\x1b[1msea\x1b[0m" in shown  # as Markdown
    assert "**" not in shown.split("\r\n")[-2]
    chat.wait_for("· stop")
    chat.wait_for(">>>")
    status = chat.wait_for("of 1024")
    assert "tiny-random · " in status
    assert "tokens/s · context " in status

    chat.type("/nonsense\r")
    chat.wait_for("There is no command /nonsense.")
    chat.wait_for_prompt()
    chat.type("/retry\r")
    chat.wait_for("· stop")
    chat.wait_for_prompt()
    chat.type(f"/save {path}\r")
    chat.wait_for("Saved 2 messages")
    chat.wait_for_prompt()
    assert json.loads(path.read_text())["messages"] == [
        {"role": "user", "content": "Hello"}, {"role": "assistant", "content": SHORT}
    ]  # fmt: skip

    chat.type("/clear\r")
    chat.wait_for_prompt()
    chat.type(f"/load {path}\r")
    chat.wait_for("Loaded 2 messages")
    chat.wait_for_prompt()
    chat.type("Again\r")
    chat.wait_for("· stop")
    chat.wait_for_prompt()
    chat.type("/stats\r")
    chat.wait_for("turns    4 messages")
    chat.leave()


def test_what_is_typed_pasted_and_edited_is_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "editor.py").write_text("import sys\nopen(sys.argv[1], 'a').write('and more')\n")
    monkeypatch.setenv("VISUAL", f"{sys.executable} {tmp_path / 'editor.py'}")
    chat = scripted_chat(SHORT)
    typed = {
        "Hel\x1alo\r": "Hello",  # Ctrl-Z: it is the leader of its session, which the system does not stop
        '"""\rone\r\rtwo\r"""\r': "one\n\ntwo",
        "last\r": "last\nand more",
    }
    for keys in typed:
        chat.type(keys)
        chat.wait_for("· stop")
        chat.wait_for_prompt()
    chat.type("/edit\r")
    chat.wait_for("· stop")
    chat.wait_for_prompt()
    pasted = "\n".join(f"line {i}" for i in range(10_000))
    for text in (pasted, "one\n\ttwo"):
        chat.paste(text)
        assert "^I" not in chat.wait_for(text[-3:])
        chat.type("\r")
        chat.wait_for("· stop")  # the model reads the end of it
        chat.wait_for_prompt()
    chat.type("\x04")
    assert chat.exit_code() == 0
    assert kept_messages("hello")[::2] == [*typed.values(), pasted, "one\n\ttwo"]


def test_ctrl_c_stops_no_more_than_answers_however_often_it_comes():
    chat = scripted_chat(LONG)
    chat.type("Count.\r")
    chat.wait_for("word3")
    chat.type("\x03")
    assert "word119" not in chat.wait_for("cancelled")
    chat.wait_for_prompt()
    chat.type("\x03")  # at the prompt it only clears the line
    chat.wait_for_prompt()
    chat.type("/stats\r")
    chat.wait_for("turns    2 messages")
    chat.wait_for_prompt()
    chat.type("/set max_new_tokens 100\r")  # an answer that none of the next meets ends by itself
    chat.wait_for("max_new_tokens = 100")
    chat.wait_for_prompt()
    for _ in range(4):
        chat.type("Count.\r")
        for _ in range(40):
            time.sleep(0.007)
            chat.type("\x03")
    chat.type("/stats\r")
    shown = chat.wait_for("kept as")
    assert "Traceback" not in shown
    chat.wait_for_prompt()
    chat.type("/bye\r")
    assert chat.exit_code() == 0


def test_the_last_line_is_a_command_that_goes_on_also_with_a_package_by_its_path(tmp_path: Path):
    package = shutil.copytree(TINY, tmp_path / "my package")
    assert len(str(package)) > 40  # the line is longer than the screen is wide, and is one line to copy all the same
    chat = ChatProcess(sys.executable, "-m", "edgelm", "chat", str(package), "--max-new-tokens", "2")
    chat.wait_for_prompt()
    chat.type("Hello\r")
    chat.wait_for("tokens/s · prompt")
    chat.wait_for_prompt()
    chat.type("\x04")
    chat.wait_for("Kept as hello: edgelm ")
    command = [*shlex.split(chat.wait_for(" hello")), "hello"]
    assert chat.exit_code() == 0
    again = [sys.executable, "-m", "edgelm", *command, "--max-new-tokens", "2"]
    subprocess.run(again, input="And?", text=True, check=True)
    assert kept_messages("hello")[::2] == ["Hello", "And?"]


def test_a_conversation_and_what_was_typed_are_there_in_the_next_chat():
    chat = scripted_chat(SHORT)
    chat.type("Tell me of the sea\r")
    chat.wait_for("· stop")
    chat.wait_for_prompt()
    chat.type("\x04")
    chat.wait_for("Kept as tell-me-of-the-sea")
    assert chat.exit_code() == 0
    chat = started_chat(SHORT, "--resume", "tell-me-of-the-sea")
    chat.wait_for("2 messages so far; the last of them:")
    chat.wait_for("Tell me of the sea")
    chat.wait_for("is blue.")
    chat.wait_for_prompt()
    chat.type("\x1b[A")  # up
    chat.wait_for("Tell me of the sea")
    chat.type("\x15And?\r")
    chat.wait_for("· stop")
    chat.wait_for_prompt()
    os.kill(chat.pid, signal.SIGKILL)  # what was answered is kept, however the chat ends
    assert chat.exit_code() == -signal.SIGKILL
    assert kept_messages("tell-me-of-the-sea") == ["Tell me of the sea", SHORT, "And?", SHORT]


def test_what_is_typed_is_read_as_the_terminal_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    chat = scripted_chat(SHORT)
    chat.type("Où est le café ?\r", "latin-1")
    chat.wait_for("stop")
    chat.wait_for_prompt()
    chat.type(f"/save {tmp_path}/chat.json\r")
    chat.wait_for("Saved 2 messages")
    chat.leave()
    assert json.loads((tmp_path / "chat.json").read_text())["messages"][0]["content"] == "Où est le café ?"


def test_ctrl_z_during_an_answer_gives_the_shell_its_terminal_and_fg_goes_on():
    code = SCRIPTED.replace("ANSWER", repr(LONG)) + MAIN
    command = shlex.join([sys.executable, "-c", code, "chat", TINY])
    chat = ChatProcess("/bin/sh", "-c", f"set -m; {command}; echo STOP''PED; stty -a; echo AG''AIN; fg")
    chat.wait_for_prompt()
    chat.type("Count\r")
    chat.wait_for("word3 ")
    chat.type("\x1a")
    assert "\x1b[?2004l\x1b[?25h" in chat.wait_for("STOPPED")
    assert not {"-echo", "-icanon"} & set(chat.wait_for("AGAIN").replace(";", " ").split())
    chat.wait_for("\x1b[?2004h\x1b[?25l")  # before it has the terminal back, that shows what is typed
    redrawn = chat.wait_for("word")
    assert redrawn.count("\n") == redrawn.count("\x1b[1A") > 0  # over lines of its own, not over the shell's
    chat.type("typed while it answers")
    answered = chat.wait_for("tokens/s · prompt")
    assert "word119" in answered
    assert "typed while" not in answered
    chat.wait_for(">>>")
    chat.wait_for("typed while it answers")
    chat.type("\x15\x04")
    assert chat.exit_code() == 0


def test_what_is_typed_and_pasted_during_an_answer_waits_for_the_prompt():
    answer = " ".join(f"word{i}" for i in range(40))
    chat = scripted_chat(answer)
    chat.type("Count.\r")
    chat.wait_for("word3 ")
    chat.paste("typed\nahead")
    chat.type("\r")
    shown = chat.wait_for("· stop")
    assert "typed" not in shown
    chat.wait_for("· stop")
    chat.leave()
    assert kept_messages("count") == ["Count.", answer, "typed\nahead", answer]


def test_a_terminal_may_change_its_size_at_any_moment():
    chat = scripted_chat(LONG)
    chat.type("Cou")
    chat.resize(10, 40)
    chat.type("nt.\r")
    chat.wait_for("word9 ")
    chat.resize(30, 100)
    chat.wait_for("word39 ")
    chat.resize(3, 20)
    chat.wait_for("word119")
    chat.wait_for("stop")  # at this width the line with it breaks here or there, as its numbers are long
    chat.resize(24, 80)
    chat.wait_for(">>>")
    chat.type("/tokens\r")
    chat.wait_for("with the chat template's marks")  # the line of status has the figures too
    chat.leave()
    assert kept_messages("count") == ["Count.", LONG]


def test_without_the_extra_a_terminal_gets_the_pip_line():
    hide = "import importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'prompt_toolkit' else f(name, *a)\n"
    chat = ChatProcess(sys.executable, "-c", hide + MAIN, "chat", TINY)
    chat.wait_for("needs 'prompt_toolkit', which is not installed: pip install \"edgelm[chat]\"")
    assert chat.exit_code() == 1
