"""Record a chat in a terminal, with a real model: python docs/tools/record_chat.py [MODEL [FOLDER]]

Types into `edgelm chat` in a pseudo-terminal, and writes chat.cast (asciinema's format, version 2) and chat.svg
(animated, for light and dark pages) to FOLDER, else to docs/pictures/. Needs pyte (in the dev extra). The seed is
fixed, so the same package says the same; pauses and speed are those of the machine.
"""

from __future__ import annotations

import html
import json
import os
import pty
import select
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

PICTURES = Path(__file__).parent.parent / "pictures"
COLUMNS, ROWS = 88, 24
TYPED = (
    "Write a Python function that tells whether a number is even.",
    "/retry",
    "Explain it in one sentence.",
    "/tokens",
)
OPTIONS = ("--temperature", "0.2", "--seed", "1", "--max-new-tokens", "110")

_KEY_SECONDS = 0.045
_QUIET_SECONDS = 0.7  # after a prompt, before the next key
_LONGEST_PAUSE = 1.2  # loading takes longer, and shows nothing
_MOST_SECONDS = 300.0
_MOST_FRAMES = 140
_CELL_WIDTH, _LINE_HEIGHT, _MARGIN = 8.4, 18, 14
_COLOURS = {  # names as pyte has them: on a light page, on a dark one
    "default": ("#1f2328", "#e6edf3"), "brightblack": ("#59636e", "#8b949e"), "black": ("#1f2328", "#8b949e"),
    "red": ("#cf222e", "#ff7b72"), "green": ("#116329", "#3fb950"), "brown": ("#7d4e00", "#d29922"),
    "blue": ("#0550ae", "#79c0ff"), "magenta": ("#8250df", "#d2a8ff"), "cyan": ("#1b7c83", "#39c5cf"),
    "paper": ("#f6f8fa", "#161b22"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a program wrote to a terminal, piece by piece: seconds from the start, and text."""

    columns: int
    rows: int
    events: tuple[tuple[float, str], ...]


class Screen(pyte.Screen):
    """A terminal's screen that answers the question for the cursor's position, and knows faint text."""

    def __init__(self, columns: int, rows: int, keyboard: int | None = None) -> None:
        super().__init__(columns, rows)
        self._keyboard = keyboard

    def write_process_input(self, data: str) -> None:
        """Answer the program."""
        if self._keyboard is not None:
            os.write(self._keyboard, data.encode())

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        """Set colours; faint text is grey."""
        if not private:
            super().select_graphic_rendition(*(90 if one == 2 else one for one in attributes))

    @property
    def is_at_prompt(self) -> bool:
        """Tell whether the program waits for the next question."""
        line = self.display[self.cursor.y]
        return line.startswith(">>>") and not line[3:].strip() and not self.cursor.hidden


def record(command: Sequence[str], typed: Sequence[str], columns: int = COLUMNS, rows: int = ROWS) -> Recording:
    """Run a command in a pseudo-terminal, type each text at its prompt, and leave by Ctrl-D."""
    process, terminal = pty.fork()
    if process == 0:
        try:
            os.environ["TERM"] = "xterm-256color"
            os.environ.pop("NO_COLOR", None)
            termios.tcsetwinsize(0, (rows, columns))
            os.execvp(command[0], list(command))
        finally:
            os._exit(127)
    screen = Screen(columns, rows, terminal)
    stream = pyte.ByteStream(screen)
    events: list[tuple[float, bytes]] = []

    def read(seconds: float) -> bool:
        if not select.select([terminal], [], [], seconds)[0]:
            return True
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            data = b""
        events.append((time.monotonic(), data))
        stream.feed(data)
        return bool(data)

    def wait_for_prompt() -> None:
        deadline, quiet_since = time.monotonic() + _MOST_SECONDS, time.monotonic()
        while not screen.is_at_prompt or time.monotonic() - quiet_since < _QUIET_SECONDS:
            before = len(events)
            if not read(0.05) or time.monotonic() > deadline:
                raise SystemExit(f"The prompt did not come, but:\n{chr(10).join(screen.display)}")
            if len(events) > before:
                quiet_since = time.monotonic()

    for text in typed:
        wait_for_prompt()
        for key in f"{text}\r":
            os.write(terminal, key.encode())
            until = time.monotonic() + _KEY_SECONDS
            while (left := until - time.monotonic()) > 0:
                read(left)
    wait_for_prompt()
    os.write(terminal, b"\x04")
    while read(_MOST_SECONDS):
        pass
    os.waitpid(process, 0)
    os.close(terminal)
    return Recording(columns=columns, rows=rows, events=tuple(_shortened(events)))


def _shortened(events: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, str]]:
    """Decode the pieces, none of which ends inside a character, and cut long pauses."""
    now, last, rest = 0.0, events[0][0] if events else 0.0, b""
    for at, data in events:
        now += min(at - last, _LONGEST_PAUSE)
        last, data = at, rest + data
        text = data.decode("utf-8", "ignore")
        rest = data[len(text.encode()) :]
        if text:
            yield now, text


def cast(recording: Recording) -> str:
    """Write a recording in asciinema's format, version 2."""
    header = {"version": 2, "width": recording.columns, "height": recording.rows, "env": {"TERM": "xterm-256color"}}
    lines = [header, *([round(at, 3), "o", text] for at, text in recording.events)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def frames(recording: Recording) -> list[tuple[float, tuple[str, ...]]]:
    """Replay a recording, and return its pictures: when each begins, and its rows as SVG."""
    screen = Screen(recording.columns, recording.rows)
    stream = pyte.Stream(screen)
    end = recording.events[-1][0]
    step = max(0.08, end / _MOST_FRAMES)
    found: list[tuple[float, tuple[str, ...]]] = []
    for number, (at, text) in enumerate(recording.events):
        stream.feed(text)
        is_last = number + 1 == len(recording.events)
        if not is_last and recording.events[number + 1][0] - at < 0.01:
            continue  # in the middle of being drawn
        rows = tuple(_row(screen, y) for y in range(recording.rows))
        if (not found or rows != found[-1][1]) and (is_last or not found or at - found[-1][0] >= step):
            found.append((at, rows))
    return found


def _row(screen: Screen, y: int) -> str:
    """Draw one row: its cursor, and its runs of equal style."""
    parts = []
    if screen.cursor.y == y and not screen.cursor.hidden:
        parts.append(f'<rect class="cursor" x="{screen.cursor.x * _CELL_WIDTH:g}" width="{_CELL_WIDTH}" height="16"/>')
    line = screen.buffer[y]
    start = 0
    while start < screen.columns:
        style = _style(line[start])
        stop = start + 1
        while stop < screen.columns and _style(line[stop]) == style:
            stop += 1
        text = "".join(line[x].data for x in range(start, stop)).rstrip()
        if text:
            text_class = f' class="{style}"' if style else ""
            shown = html.escape(text, quote=False)
            parts.append(f'<text x="{start * _CELL_WIDTH:g}" y="13"{text_class} xml:space="preserve">{shown}</text>')
        start = stop
    return "".join(parts)


def _style(cell: pyte.screens.Char) -> str:
    colour = cell.fg.removeprefix("bright") if cell.fg != "brightblack" else cell.fg
    words = [colour] if colour in _COLOURS and colour != "default" else []
    words += [name for name in ("bold", "italics") if getattr(cell, name)]
    return " ".join(words)


def draw(recording: Recording) -> str:
    """Draw a recording as an animated SVG: a strip of pictures behind a window. Who wants no motion sees the last."""
    pictures = frames(recording)
    pictures.append((pictures[-1][0] + 4.0, pictures[-1][1]))  # time to read
    total = pictures[-1][0] - pictures[0][0]
    height = recording.rows * _LINE_HEIGHT
    width = round(recording.columns * _CELL_WIDTH)
    rows = {row: f"r{number}" for number, row in enumerate(dict.fromkeys(row for _, p in pictures for row in p if row))}
    strip, steps = [], []
    for number, (at, picture) in enumerate(pictures):
        steps.append(f"{(at - pictures[0][0]) / total:.3%}{{transform:translateY({-number * height}px)}}")
        uses = (f'<use href="#{rows[row]}" y="{y * _LINE_HEIGHT}"/>' for y, row in enumerate(picture) if row)
        strip.append(f'<g transform="translate(0 {number * height})">{"".join(uses)}</g>')
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in _COLOURS.items()) for i in (0, 1))
    colours = "".join(f".{name}{{fill:var(--{name})}}" for name in _COLOURS)
    defined = "".join(f'<g id="{id_}">{row}</g>' for row, id_ in rows.items())
    outer_width, outer_height = width + 2 * _MARGIN, height + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {outer_width} {outer_height}" width="{outer_width}">'
        "<title>A chat in a terminal</title>"
        f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:var(--default)}"
        f"{colours}.bold{{font-weight:700}}.italics{{font-style:italic}}.cursor{{fill:var(--brightblack)}}"
        f"@keyframes play{{{''.join(steps)}}}"
        f".strip{{animation:play {total:.2f}s step-end infinite}}"
        f"@media (prefers-reduced-motion:reduce){{.strip{{animation:none;"
        f"transform:translateY({-(len(pictures) - 1) * height}px)}}}}</style>"
        f'<rect class="paper" width="{outer_width}" height="{outer_height}" rx="8"/>'
        f"<defs>{defined}</defs>"
        f'<svg x="{_MARGIN}" y="{_MARGIN}" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<g class="strip">{"".join(strip)}</g></svg></svg>\n'
    )


def main() -> None:
    """Record the chat and write both files."""
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"
    edgelm = str(Path(sys.executable).with_name("edgelm"))
    recording = record([edgelm, "chat", model, *OPTIONS], TYPED)
    pictures = Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURES
    pictures.mkdir(exist_ok=True)
    (pictures / "chat.cast").write_text(cast(recording), encoding="utf-8")
    (pictures / "chat.svg").write_text(draw(recording), encoding="utf-8")


if __name__ == "__main__":
    main()
