"""Progress bars in a pseudo-terminal: one line, however narrow it is."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios

import pyte
import pytest

DRAWN = """
from edgelm.cli.progress import progress_line

with progress_line() as progress:
    for label in ("weights", "Down\x1b[1;1H\x9b2Jloading smollm2-135m-instruct", "\u8bfb" * 90):
        for done in range(4):
            progress(label, done, 3)
"""
PASSING = """
from edgelm.cli.progress import status

with status("Loading /home/ada/" + "models/读/" * 20):
    pass
"""


def drawn(program: str, term: str = "xterm") -> str:
    """Return what a program draws on a terminal."""
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", program], stderr=theirs, env=os.environ | {"TERM": term}, check=True)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    return text


@pytest.mark.parametrize("columns", [30, 45, 60, 100])
def test_bars_stay_on_one_line_and_what_passes_on_none_where_standard_output_is_a_pipe(columns: int) -> None:
    screen, (ours, theirs) = pyte.Screen(columns, 12), pty.openpty()
    termios.tcsetwinsize(theirs, (12, columns))
    environment = os.environ | {"TERM": "xterm"}
    command = [sys.executable, "-c", PASSING + DRAWN]
    subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True)
    pyte.ByteStream(screen).feed(os.read(ours, 1 << 16))
    os.close(ours)
    os.close(theirs)
    lines = [line.rstrip() for line in screen.display if line.strip()]
    assert [line[0] for line in lines] == ["w", "D", "读"]
    assert all("100%" in line for line in lines)


STILL = """
from edgelm.cli.progress import progress_line

with progress_line() as progress:
    progress("nobody knows how many", 5, None)
    progress("nothing", 0, 0)
    for done in (60, 60, 80):  # a connection may bring nothing for a while
        progress("weights", done, 100)
"""


def test_a_bar_that_stands_still_goes_on_and_none_is_drawn_where_nobody_knows_the_whole() -> None:
    text = drawn(STILL)
    assert "nobody" not in text
    assert "nothing" not in text
    assert "80%" in text


STATUS = """
from edgelm.cli.progress import status

with status("Loading"):
    pass
"""


def test_what_a_program_does_is_shown_for_as_long_as_it_does_it() -> None:
    assert drawn(STATUS) == "Loading …\r\x1b[K"


WITHOUT_COLOURS = """
import click

with click.Context(click.Command("edgelm"), color=False):
    exec(program)
"""


def test_what_a_program_does_is_taken_away_without_colours_too() -> None:
    """NO_COLOR makes click drop all codes: an answer would stand in the rest of the line."""
    assert drawn(f"program = {STATUS!r}{WITHOUT_COLOURS}") == "Loading …\r\x1b[K"


def test_what_a_program_does_is_told_in_lines_where_none_can_be_drawn_anew() -> None:
    assert drawn(STATUS, "dumb") == "Loading …\r\n"
    text = drawn(DRAWN, "dumb").split("\r\n")
    assert text[:4] == ["weights: 0 %", "weights: 25 %", "weights: 50 %", "weights: 100 %"]
    assert text[4].endswith("loading smollm2-135m-instruct: 0 %")
    assert "\x1b" not in "".join(text)
    assert drawn(STILL, "dumb") == "weights: 50 %\r\nweights: 75 %\r\n"


RESUMED = """
import time
now, time.time = 0.0, lambda: now

from edgelm.cli.progress import progress_line

with progress_line() as progress:
    for done in (60, 70, 80):
        progress("calibrate", done, 100)
        now += 30.0
"""


def test_the_time_that_is_left_is_told_by_what_this_run_did() -> None:
    """30 s for each 10: 20 more take a minute, though 80 of 100 are done after one."""
    text = drawn(RESUMED)
    assert re.findall(r"(\d+)%  (\d\d:\d\d:\d\d)", text)[-2:] == [("70", "00:01:30"), ("80", "00:01:00")]
