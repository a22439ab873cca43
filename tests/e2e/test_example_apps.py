"""The examples that stay alive until somebody ends them: a server and a window, used as their users use them."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import debian_packages
import pytest

from edgelm.testing import tiny_model_path

EXAMPLES = Path(__file__).parents[2] / "examples"

# In place of the window's last line: print what it shows once the second answer is complete, and close it.
TELL_AND_CLOSE = """
def close_after_both_answers():
    shown = conversation.get("1.0", "end")
    if "> Again\\n" in shown and shown.endswith("\\n\\n\\n"):
        print(shown)
        window.destroy()
    else:
        window.after(100, close_after_both_answers)

close_after_both_answers()
window.mainloop()
"""


def until(deadline_seconds: float = 60) -> Iterator[None]:
    end = time.monotonic() + deadline_seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.1)
    raise TimeoutError


def test_the_fastapi_app_streams_an_answer() -> None:
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app", "--port", "0"]
    environment = {**os.environ, "MODEL": str(tiny_model_path())}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            assert server.stderr is not None
            said = next(line for line in server.stderr if "running on" in line)
            url = said.partition("running on ")[2].split()[0]
            assert urllib.request.urlopen(f"{url}/answer?question=What+is+a+wave%3F", timeout=60).read()
        finally:
            server.terminate()


@pytest.fixture
def display() -> Iterator[str]:
    """Start a display that nobody sees."""
    pytest.importorskip("tkinter", reason="Python was built without Tk")
    programs = ("Xvfb", "xdotool")
    if not all(map(shutil.which, programs)):
        debian_packages.install("xvfb", "xdotool")
    if not all(map(shutil.which, programs)):
        pytest.skip("needs Xvfb and xdotool")
    readable, writable = os.pipe()
    with subprocess.Popen(["Xvfb", "-displayfd", str(writable)], pass_fds=[writable], stderr=subprocess.DEVNULL) as x:
        os.close(writable)
        with os.fdopen(readable) as pipe:
            yield f":{pipe.readline().strip()}"
        x.terminate()


def test_the_tk_window_answers_questions_that_are_typed_one_while_another_is_answered(display: str) -> None:
    environment = {**os.environ, "DISPLAY": display}

    def xdotool(*arguments: str) -> str:
        done = subprocess.run(["xdotool", *arguments], env=environment, capture_output=True, text=True)
        return done.stdout.strip()

    program = (EXAMPLES / "tk_window.py").read_text()
    told = program.replace("window.mainloop()", TELL_AND_CLOSE)
    command = [sys.executable, "-c", told, str(tiny_model_path())]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as window:
        for _ in until():
            assert window.poll() is None
            if found := xdotool("search", "--onlyvisible", "--name", "tk"):
                break
        xdotool("windowfocus", "--sync", found.split()[0])
        for text in ("Hello", "Again"):
            xdotool("type", text)
            xdotool("key", "Return")
        shown, _ = window.communicate(timeout=60)
    first, second = shown.removeprefix("> Hello\n").split("\n\n> Again\n")
    assert first.strip()
    assert second.strip()
