"""The command's first and last moments, in which Ctrl-C would otherwise end in a traceback."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing's, which takes a while to import
if TYPE_CHECKING:
    from types import TracebackType


def main() -> None:
    """Import the command and run it.

    While Python imports, and when it takes everything down again, an interrupt ends the process as the system does it:
    with no word, and as 130 in a shell. In between it is a KeyboardInterrupt, which cleans up. Where it is ignored from
    the start, it stays so.
    """
    sys.excepthook = _say_nothing_of_interrupts
    import signal  # takes a moment itself

    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edgelm.cli.main import main as run

    _replace_closed_streams()
    try:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if sys.platform == "win32":
            sys.argv[1:] = with_home(sys.argv[1:])
        # On Windows click would take `~`, `$NAME`, `%NAME%` and `*` in a prompt for what a shell replaces.
        run(windows_expand_args=False)
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _replace_closed_streams() -> None:
    """Let an output that is closed refuse what is written: Python has None for it, which drops that.

    The descriptors of all three streams are open then: no file of ours takes the number of one, and with it what others
    print there.
    """
    import os

    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    if sys.stdout is None:
        sys.stdout = os.fdopen(descriptor, "w", encoding="utf-8")
    else:
        os.close(descriptor)


def with_home(words: list[str]) -> list[str]:
    """Write the user's home where a word begins as a path in it: the shells of Windows leave `~` to the programs."""
    import os

    return [os.path.expanduser(word) if word.startswith(("~/", "~\\")) else word for word in words]


def _say_nothing_of_interrupts(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, traceback)
