"""Terminal: the chat's screen, drawn with prompt-toolkit (the input) and rich (the answers)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

from markdown_it import MarkdownIt
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from edgelm.cli.markdown_blocks import MarkdownBlocks
from edgelm.cli.output import printable
from edgelm.errors import ConfigError
from edgelm.folders import state_folder

_PROMPT = ">>> "
# Ten pictures a second look smooth; more would take the processor from the model.
_REDRAW_SECONDS = 0.1
# Without HTML and link definitions nothing of an answer is invisible: rich draws neither.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("reference")


class Terminal:
    """Ask with line editing, history and completion; show answers as Markdown while they are written."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._remarks = Console(stderr=True, highlight=False)
        self._prompts: PromptSession[str] = PromptSession(history=self._history(), key_bindings=_key_bindings())

    def _history(self) -> History:
        try:
            path = state_folder() / "chat_history"
            path.parent.mkdir(parents=True, exist_ok=True)
            # What one says to a model is for nobody else's eyes.
            os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        except (OSError, ConfigError) as error:
            self.warn(f"The history of this chat is not kept: {error}.")
            return InMemoryHistory()
        return FileHistory(str(path))

    def ask(self, commands: dict[str, str]) -> str:
        """Read one turn; Alt-Enter begins a new line in it."""
        return self._prompts.prompt(_PROMPT, completer=_SlashCompleter(commands))

    def note(self, text: str) -> None:
        """Show a remark."""
        self._remarks.print(Text(printable(text), style="dim"))

    def warn(self, text: str) -> None:
        """Show what went wrong."""
        self._remarks.print(Text(printable(text), style="yellow"))

    def show(self, texts: Iterable[str]) -> None:
        """Show an answer as it comes.

        A complete block is printed once and for all, so it scrolls up like any output; only the block that is being
        written is drawn again and again, and never taller than the screen. So nothing flickers and nothing is lost.
        """
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            for text in texts:
                self._console.out(printable(text), end="")
            self._console.out()
            return
        blocks = MarkdownBlocks()
        printed = False
        drawn = 0.0
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            for text in texts:
                complete = blocks.push(printable(text))
                for block in complete:
                    self._print_block(block, printed)
                    printed = True
                if complete or time.monotonic() - drawn >= _REDRAW_SECONDS:
                    live.update(_Tail(blocks.pending, printed), refresh=True)
                    drawn = time.monotonic()
            live.update("", refresh=True)
        self._print_block(blocks.pending, printed)

    def _print_block(self, block: str, follows_another: bool) -> None:
        if block.strip():
            if follows_another:
                self._console.print()
            self._console.print(_markdown(block))


class _Tail:
    """The last lines of a block that is being written, as many as the screen has."""

    def __init__(self, text: str, follows_another: bool) -> None:
        self._text, self._follows_another = text, follows_another

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = max(1, console.size.height - 2)
        lines = console.render_lines(_markdown(_last_lines(self._text, height)), options, pad=False)
        if self._follows_another and self._text.strip():
            lines.insert(0, [])
        for number, line in enumerate(lines[-height:]):
            if number:
                yield Segment.line()
            yield from line


def _last_lines(text: str, count: int) -> str:
    """Leave out what the screen has no room for, before it is parsed again and again; a code fence stays open."""
    lines = text.split("\n")
    if len(lines) <= count:
        return text
    opening = [lines[0]] if lines[0].lstrip().startswith(("```", "~~~")) else []
    return "\n".join(opening + lines[-count:])


def _markdown(text: str) -> Markdown:
    markdown = Markdown("", hyperlinks=False)
    markdown.parsed = _PARSER.parse(text)
    return markdown


class _SlashCompleter(Completer):
    def __init__(self, commands: dict[str, str]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, _event: CompleteEvent) -> Iterator[Completion]:
        typed = document.text_before_cursor
        if typed.startswith("/"):
            for name, meaning in self._commands.items():
                if name.startswith(typed):
                    yield Completion(name, start_position=-len(typed), display_meta=meaning)


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
