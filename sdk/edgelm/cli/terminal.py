"""Terminal: the chat's screen, drawn with prompt-toolkit (the input) and rich (the answers)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.styles import Style
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from edgelm.cli.chat_commands import Suggestion
from edgelm.cli.conversation import QUOTES, Thought
from edgelm.cli.markdown_blocks import MarkdownBlocks
from edgelm.cli.markdown_parser import PARSER
from edgelm.cli.output import clean_text, is_dumb, printable
from edgelm.cli.thinking import LABEL
from edgelm.cli.typed_history import TypedHistory
from edgelm.errors import ConfigError
from edgelm.files.folders import state_folder

_PROMPT = ">>> "
_CONTINUED = " " * len(_PROMPT)
_CTRL_Z = "\x1a"  # what ends input on Windows, with Enter; elsewhere it stops the program
_STYLE = Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"})
# A paste is one message, also where it comes before the prompt does: without this, each of its lines would be one.
_BRACKETED_PASTE, _HIDDEN_CURSOR = "\x1b[?2004h", "\x1b[?25l"
_AS_SHELLS_HAVE_IT = "\x1b[?2004l\x1b[?25h"
# Ten pictures a second look smooth; more would take the processor from the model.
_REDRAW_SECONDS = 0.1
# The line between a table's head and its rows.
_BELOW_HEAD = re.compile(r"\s*\|?(\s*:?-+:?\s*\|)+\s*(:?-+:?\s*)?")

_Draw = Callable[[str], Markdown | Text]  # how a block is shown


class Terminal:
    """Ask with line editing, history and completion; show answers as Markdown while they are written."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._remarks = Console(stderr=True, highlight=False)
        # prompt-toolkit asks a dumb terminal in plain text, but shows it a cursor first.
        output = PlainTextOutput(sys.stdout) if is_dumb() else None
        with create_app_session(output=output):
            self._prompts: PromptSession[str] = PromptSession(
                history=self._history(),
                key_bindings=_key_bindings(lambda: self._prompts.default_buffer.text),
                prompt_continuation=_CONTINUED,
                style=_STYLE,
                input_processors=[TabsProcessor(char1=" ", char2=" ")],  # else a tab in pasted code is ^I
                enable_suspend=True,  # else Ctrl-Z is a character of the message
            )

    def _history(self) -> History:
        try:
            return TypedHistory(state_folder() / "chat_history.jsonl")
        except (OSError, ConfigError) as error:
            self.warn(f"The history of this chat is not kept: {error}.")
            return InMemoryHistory()

    def ask(self, suggest: Callable[[str], Iterable[Suggestion]], status: str) -> str:
        """Read one turn; Alt-Enter begins a new line in it, and so does Enter after an opening triple quote."""
        typed = self._prompts.prompt(
            _PROMPT,
            completer=_Completer(suggest),
            bottom_toolbar=printable(status),
            # Ctrl-C is a key here. While the terminal changes its mode it is a signal, which is the chat's: the prompt
            # would fail at one that comes when it is done.
            handle_sigint=False,
        )
        if typed == _CTRL_Z:
            raise EOFError
        while is_open(typed):  # a dumb terminal's prompt ends with each line
            typed += "\n" + self._prompts.prompt(_CONTINUED, handle_sigint=False)
        if self._was_taken_back():
            self.note("It was not sent. The arrow up brings it back.")
            raise KeyboardInterrupt
        return clean_text(typed)

    def _was_taken_back(self) -> bool:
        """Tell whether Ctrl-C came right behind Enter: as long as it is a key, the next prompt would get it."""
        keyboard = self._prompts.input
        keys = [*get_typeahead(keyboard), *keyboard.read_keys()]
        is_taken_back = bool(keys) and keys[0].key == Keys.ControlC
        store_typeahead(keyboard, keys[1:] if is_taken_back else keys)
        return is_taken_back

    def edit(self, text: str) -> str | None:
        """Open the user's editor.

        Raises:
            ConfigError: there is none, it fails, or it leaves no text.
        """
        # Ctrl-C is the editor's. A handler that does nothing is not passed on to it; SIG_IGN would be.
        previous = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            return click.edit(text, extension=".md")
        except UnicodeDecodeError as error:
            raise ConfigError("What the editor left is not a text in UTF-8.") from error
        except click.ClickException as error:
            raise ConfigError(f"{error.format_message().rstrip('.')}. Set EDITOR to one that is here.") from error
        finally:
            signal.signal(signal.SIGINT, previous)

    def note(self, text: str) -> None:
        """Show a remark."""
        # Where the terminal breaks a long line, a path or a command in it is still one line to copy.
        self._remarks.print(Text(printable(text), style="dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Show what went wrong."""
        self._remarks.print(Text(printable(text), style="yellow"))

    def show(self, texts: Iterable[str | Thought], status: Callable[[], str]) -> None:
        """Show an answer as it comes, and before it dim what the model thinks.

        A complete block is printed once and for all, so it scrolls up like any output; only the block that is being
        written is drawn again and again, with the status below, and never taller than the screen. So nothing flickers
        and nothing is lost.
        """
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            self._write(texts)
            return
        blocks, tail = MarkdownBlocks(), _Tail(status())  # which is shown while a long prompt is read
        draw: _Draw = _markdown
        printed = False
        drawn = 0.0
        with _unseen_typing(tail), Live(tail, console=self._console, auto_refresh=False, transient=True) as live:
            for piece in texts:
                text, draw_piece = (piece.text, _thought) if isinstance(piece, Thought) else (piece, _markdown)
                complete = [blocks.pending] if text and draw_piece != draw else []
                if complete:
                    printed = self._print_blocks(complete, draw, printed)
                    blocks, draw = MarkdownBlocks(), draw_piece
                more = blocks.push(printable(text))
                printed = self._print_blocks(more, draw, printed)
                if complete or more or time.monotonic() - drawn >= _REDRAW_SECONDS:
                    tail.update(blocks.pending, draw, printed, status())
                    live.refresh()
                    drawn = time.monotonic()
            live.update("", refresh=True)
        self._print_blocks([blocks.pending], draw, printed)

    def _write(self, texts: Iterable[str | Thought]) -> None:
        """Write an answer where nothing can be drawn; a label says what is thought, and what answered."""
        is_thinking = False
        for piece in texts:
            text = piece.text if isinstance(piece, Thought) else piece
            if text and isinstance(piece, Thought) != is_thinking:
                is_thinking = not is_thinking
                self._console.out(LABEL if is_thinking else "\n\nAnswer: ", end="")
            self._console.out(printable(text), end="")
        self._console.out()

    def _print_blocks(self, blocks: Iterable[str], draw: _Draw, follows_another: bool) -> bool:
        """Print blocks, an empty line between two; return whether another would follow one."""
        for block in blocks:
            if block.strip():
                if follows_another:
                    self._console.print()
                self._console.print(draw(block))
                follows_another = True
        return follows_another


class _Tail:
    """The last lines of a block that is being written, as many as the screen has, and the status below."""

    def __init__(self, status: str) -> None:
        self.height = 0  # as it was drawn last
        self.update("", _markdown, False, status)

    def update(self, text: str, draw: _Draw, follows_another: bool, status: str) -> None:
        """Let this be what is drawn next."""
        self._text, self._draw, self._follows_another, self._status = text, draw, follows_another, status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = max(1, console.size.height - 3)
        lines = console.render_lines(self._draw(_last_lines(self._text, height)), options, pad=False)
        if self._follows_another and self._text.strip():
            lines.insert(0, [])
        for number, line in enumerate(lines[-height:]):
            if number:
                yield Segment.line()
            yield from line
        if lines:
            yield Segment.line()
        yield Text(printable(self._status), style="dim", no_wrap=True, overflow="ellipsis")
        self.height = len(lines[-height:]) + 1


def _last_lines(text: str, count: int) -> str:
    """Leave out what the screen has no room for, before it is parsed again and again.

    What says how the rest is to be drawn stays: the opening of a block of code, the head of a table.
    """
    lines = text.split("\n")
    if len(lines) <= count:
        return text
    opening = 0
    if lines[0].lstrip().startswith(("```", "~~~")):
        opening = 1
    elif _BELOW_HEAD.fullmatch(lines[1]):
        opening = 2
    return "\n".join(lines[:opening] + lines[max(opening, len(lines) - count) :])


def _markdown(text: str) -> Markdown:
    markdown = Markdown("", hyperlinks=False)
    markdown.parsed = PARSER.parse(text)
    return markdown


def _thought(text: str) -> Text:
    return Text(text.strip("\n"), style="dim")


class _Completer(Completer):
    def __init__(self, suggest: Callable[[str], Iterable[Suggestion]]) -> None:
        self._suggest = suggest

    def get_completions(self, document: Document, _event: CompleteEvent) -> Iterator[Completion]:
        for suggestion in self._suggest(document.text_before_cursor):
            yield Completion(suggestion.text, start_position=-suggestion.replaces, display_meta=suggestion.meaning)


def _key_bindings(buffer_text: Callable[[], str]) -> KeyBindings:
    bindings = KeyBindings()

    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    bindings.add("escape", "enter")(begin_line)
    bindings.add("enter", filter=Condition(lambda: is_open(buffer_text())))(begin_line)
    return bindings


def is_open(text: str) -> bool:
    """Tell whether a text begins with triple quotes and does not end with others."""
    stripped = text.strip()
    return stripped.startswith(QUOTES) and not (len(stripped) >= 2 * len(QUOTES) and stripped.endswith(QUOTES))


@contextlib.contextmanager
def _unseen_typing(tail: _Tail) -> Iterator[None]:
    """Keep what is typed while an answer is shown for the next prompt, and out of the answer, which ends in `tail`."""
    if sys.platform == "win32":  # it shows no typing while nobody reads it
        yield
        return
    import termios

    try:
        before = termios.tcgetattr(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError, termios.error):  # no terminal to type at
        yield
        return
    quiet = list(before)
    # Not line by line either: the system would cut long lines.
    quiet[3] &= ~(termios.ECHO | termios.ICANON)

    def suspend(*_: object) -> None:
        """Stop at Ctrl-Z with the terminal as the shell had it, and take it anew when the shell gives it back."""
        _write_at_once(_AS_SHELLS_HAVE_IT)
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, before)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, suspend)
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, quiet)
        # What is drawn next is drawn over as many lines as were there before; those are the shell's now.
        _write_at_once(_BRACKETED_PASTE + _HIDDEN_CURSOR + "\n" * (tail.height - 1))

    at_ctrl_z = signal.getsignal(signal.SIGTSTP)
    if at_ctrl_z is not signal.SIG_IGN:  # as a shell without jobs leaves it
        signal.signal(signal.SIGTSTP, suspend)
    termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, quiet)
    sys.stdout.write(_BRACKETED_PASTE)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, before)
        signal.signal(signal.SIGTSTP, at_ctrl_z)


def _write_at_once(codes: str) -> None:
    # Not through the stream: a signal may have come while that writes.
    os.write(sys.stdout.fileno(), codes.encode())
