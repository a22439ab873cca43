"""`edgelm` as other programs meet it: pipes, exit codes, signals, a reader that leaves, no terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from command_line import invoke

from edgelm.library.library import Library
from edgelm.testing import tiny_model_path

EDGELM = str(Path(sysconfig.get_path("scripts")) / "edgelm")
TINY = str(tiny_model_path())
# A model that takes its time: the real command, and a scripted answer of 2,000 words at 10 ms a token.
SLOW = """
import time
from edgelm import loading
from edgelm.cli.main import main
from edgelm.testing import ScriptedDecoder, scripted_model

forward = ScriptedDecoder.forward
ScriptedDecoder.forward = lambda *a, **k: (time.sleep(0.01), forward(*a, **k))[1]
loading.load = lambda *_: scripted_model(" ".join(f"word{i}" for i in range(300)))
main(prog_name="edgelm")
"""


@pytest.fixture(autouse=True)
def _with_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python hold what it writes, as users have it: without, nothing is left that can fail at exit."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def edgelm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EDGELM, *arguments], input=stdin, capture_output=True, encoding="utf-8", timeout=60, check=False
    )


def test_an_answer_goes_through_pipes_without_colour_or_noise():
    result = edgelm("run", TINY, "Summarize:", "--max-new-tokens", "4", stdin="some notes\n")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert result.stdout.endswith("\n")


def test_errors_are_plain_where_nobody_sees_colours():
    result = edgelm("run", "nothing", "x")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: There is no model 'nothing'.")


def test_a_reader_that_leaves_early_ends_the_answer_quietly():
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "run", TINY, "go"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(5) == b"word0"
    process.stdout.close()
    assert process.wait(timeout=10) == 141
    assert process.stderr.read() == b""


def test_an_answer_streams_and_an_interrupt_ends_it_with_130():
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "run", TINY, "go"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(5) == b"word0"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors == b""
    assert b"word299" not in output


def test_a_piped_chat_answers_each_line_and_keeps_the_conversation():
    result = edgelm("chat", TINY, "--max-new-tokens", "5", stdin="My name is Ada.\n\n  What is my name?  \n")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    first, fresh = (
        invoke("chat", TINY, "--max-new-tokens", "5", stdin=line)
        for line in ("My name is Ada.\n", "What is my name?\n")
    )
    assert result.stdout.startswith(first.stdout + "\n")
    assert result.stdout != f"{first.stdout}\n{fresh.stdout}"


def test_a_chat_without_a_model_says_how_to_get_one():
    result = invoke("chat", stdin="hello\n")
    assert result.exit_code == 1
    advice = "Fetch a small model: edgelm pull smollm2-135m-instruct"
    assert result.stderr == f"error: The library {Library().root} is empty. {advice}\n"


def test_a_locale_without_unicode_shows_question_marks():
    result = subprocess.run(
        [EDGELM, "run", TINY, "x", "--temperature", "1", "--seed", "3", "--max-new-tokens", "100"],
        stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert b"?" in result.stdout


@pytest.mark.parametrize(  # an empty NO_COLOR says nothing (no-color.org)
    ("no_colour", "term", "coloured"), [("1", "xterm", False), ("", "xterm", True), ("", "dumb", False)]
)
def test_colour_is_for_terminals_that_want_it(no_colour, term, coloured):
    import pty

    main_end, terminal = pty.openpty()
    environment = os.environ | {"NO_COLOR": no_colour, "TERM": term}
    subprocess.run([EDGELM, "show", "x"], env=environment, stderr=terminal, check=False, timeout=60)
    os.close(terminal)
    shown = os.read(main_end, 65536)
    os.close(main_end)
    assert (b"\x1b[31m" in shown) is coloured


@pytest.mark.parametrize(
    ("command", "code", "errors"),
    [
        (f"run '{TINY}' hi --max-new-tokens 2 <&- >&-", 1, "error: Cannot write the output: "),
        ("list --json >&-", 1, "error: Cannot write the output: "),
        ("--help >&-", 1, "error: Cannot write the output: "),
        ("rm foo <&- >&-", 0, "Removed foo."),
        (f"run '{TINY}' hi --max-new-tokens 2 </dev/null 2>&-", 0, ""),
        (f"chat '{TINY}' <&- >&-", 0, ""),
        (f"run '{TINY}' hi --max-new-tokens 2 0>/dev/null", 0, ""),  # as nohup does
        (f"chat '{TINY}' 0>/dev/null", 0, ""),
        ("rm foo <&-", 0, "Removed foo."),
        ("list --json >/dev/full", 1, "error: Cannot write the output: "),
        ("--help >/dev/full", 1, "error: Cannot write the output: "),
        ("--version >/dev/full", 1, "error: Cannot write the output: "),
        (f"run '{TINY}' hi --max-new-tokens 2 </dev/null >/dev/full", 1, "error: Cannot write the output: "),
    ],
)
def test_a_stream_that_is_closed_or_full_is_no_crash(command, code, errors):
    source = Library().root / "sources" / "foo"
    source.mkdir(parents=True)
    (source / "model.gguf").touch()
    result = subprocess.run(f"'{EDGELM}' {command}", shell=True, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith(errors)
    assert len(result.stderr.splitlines()) <= 1


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_number_of_a_stream_that_is_closed(closed):
    """What others print would be written into it."""
    code = "from edgelm.cli import start; start._replace_closed_streams(); raise SystemExit(open('/dev/null').fileno())"
    assert subprocess.run(f"'{sys.executable}' -c \"{code}\" {closed}", shell=True, check=False).returncode > 2


# Ctrl-C, as soon as Python looks for a module.
INTERRUPTED = """
import _signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == MODULE:
            _signal.raise_signal(_signal.SIGINT)

sys.modules.pop(MODULE, None)
sys.meta_path.insert(0, Finder())
from edgelm.cli.start import main
main()
"""


@pytest.mark.parametrize("module", ["signal", "click", "edgelm.library.library"])
def test_an_interrupt_while_the_command_starts_says_nothing(module):
    code = INTERRUPTED.replace("MODULE", repr(module))
    result = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("", "")
    assert result.returncode in (-signal.SIGINT, 130)


def test_the_command_is_a_module_too():
    result = subprocess.run([sys.executable, "-m", "edgelm", "run"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: python -m edgelm run [OPTIONS] MODEL [PROMPT]...\n")


def test_an_error_that_is_no_interrupt_keeps_its_traceback():
    code = INTERRUPTED.replace("MODULE", "'click'").replace("_signal.raise_signal(_signal.SIGINT)", "1 / 0")
    result = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, check=False)
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_an_interrupt_that_is_ignored_from_outside_stays_ignored():
    code = INTERRUPTED.replace("MODULE", "'click'")
    result = subprocess.run(
        ["bash", "-c", f"trap '' INT; exec '{sys.executable}' -c \"$0\" --version", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.startswith("edgelm, version"), result.stderr


# Each command, as if its module were not installed.
WITHOUT_EXTRAS = """
import sys
from edgelm.cli.main import main

for command, module in COMMANDS:
    sys.modules[module] = None
    try:
        main(command)
    except SystemExit as exit:
        print(exit.code)
"""


def test_a_command_without_its_extra_names_the_line_that_adds_it():
    commands = [
        (["train", "--data", "shards/"], "torch", "train"),
        (["finetune", "ckpt/", "--data", "chats.jsonl"], "torch", "train"),
        (["inspect", TINY, "hi"], "torch", "train"),
        (["merge", "run/", "-o", "merged/"], "torch", "train"),
        (["serve", TINY], "uvicorn", "serve"),
    ]
    program = WITHOUT_EXTRAS.replace("COMMANDS", repr([(command, module) for command, module, _ in commands]))
    result = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["1"] * len(commands), result.stderr
    assert result.stderr.splitlines() == [
        f'error: `edgelm {command[0]}` needs {module!r}, which is not installed: pip install "edgelm[{extra}]"'
        for command, module, extra in commands
    ]
