"""The trial of a tokenizer.json: one that this user has not opened yet is opened in a limited child process first.

The tokenizers library is trusted with too much: some files make it panic, two kinds abort the whole process, and others
take all memory. Nothing inside of the process can catch that. So an unknown file is first opened, and used, in a child
with limits of memory and time. One that passes is remembered by its hash in the model library, and costs one hash from
then on. Files inside of edgelm itself are as trusted as its code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import tokenizers

from edgelm.errors import ConfigError, TokenizerError
from edgelm.files.folders import data_folder

MAX_BYTES = 64 << 20  # twice the largest in use, which has 262,000 tokens

_OWN_FOLDER = Path(__file__).resolve().parents[1]
_KNOWN_FOLDER = "known-tokenizers"
# What a child may take: a fixed part for the libraries, and what a whole tokenizer takes for each byte of its file.
_MEMORY, _MEMORY_OF_BYTE = 512 << 20, 40
_SECONDS, _SECONDS_OF_MEGABYTE = 10, 2
# The limit is of the processor's time; an honest file on a busy machine may wait for it this many times as long.
_PATIENCE = 1 if sys.platform == "win32" else 6
_STARTED, _BROKEN = b"started\n", 3
_PROGRAM = "import sys; sys.path[:] = {path!r}; from edgelm.text.tokenizer_trial import child; child()"
_SAMPLE = "The sea, 1984: it's wïde.\n\n\tdef f(x):  return <x>  漢字 😀 \x00 \U0010ffff ▁▁"

_known: set[str] = set()  # by this process; also where the library cannot be written


def try_tokenizer(data: bytes, path: Path) -> None:
    """Open a tokenizer.json in a child process, unless it is known.

    Where no child can be started (a program that has Python inside of it), the file is not tried.

    Raises:
        TokenizerError: the child found it broken, crashed, or needed more memory or time than its size explains.
    """
    if _OWN_FOLDER in path.resolve().parents:
        return
    # Another version of the library may fail where this one does not.
    name = f"{hashlib.sha256(data).hexdigest()}-{tokenizers.__version__}"
    if name in _known or _is_recorded(name):
        return
    if _passes(data, path):
        _known.add(name)
        _record(name)


def _passes(data: bytes, path: Path) -> bool:
    """Try a file; False where no child could be started."""
    if getattr(sys, "frozen", False) or not sys.executable:  # the executable is somebody's program, not Python
        return False
    megabytes = len(data) >> 20
    seconds = _SECONDS + _SECONDS_OF_MEGABYTE * megabytes
    memory = _MEMORY + _MEMORY_OF_BYTE * len(data)
    limits = [str(memory), str(seconds), str(path)]
    texts = [entry for entry in sys.path if isinstance(entry, str)]  # Python passes over what else is there, too
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM.format(path=texts), *limits]
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    try:
        result = subprocess.run(
            command,
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds * _PATIENCE,
            env={**kept, "RAYON_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TokenizerError(
            f"Cannot read {path}: the tokenizers library does not come to an end with it within "
            f"{seconds * _PATIENCE} s. The file is damaged or hostile."
        ) from error
    except (OSError, ValueError):
        return False
    if not result.stdout.startswith(_STARTED):
        return False
    if result.returncode == _BROKEN:
        raise TokenizerError(result.stdout[len(_STARTED) :].decode("utf-8", "replace")[:2000])
    if result.returncode:
        raise TokenizerError(
            f"Cannot read {path}: it crashes the tokenizers library, or takes more than {memory >> 20} MB of memory or "
            f"{seconds} s (exit status {result.returncode}). The file is damaged or hostile."
        )
    return True


def child() -> None:
    """Be the child: limit this process, then open and use the file that comes on standard input."""
    from edgelm.text.tokenizer import Tokenizer

    memory, seconds, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    if sys.platform != "win32":  # there the parent's clock is the one limit
        import resource

        for kind, limit in (("RLIMIT_AS", memory), ("RLIMIT_CPU", seconds), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0)):
            with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS has no limit of memory
                resource.setrlimit(getattr(resource, kind), (limit, limit))
    output = sys.stdout.buffer
    output.write(_STARTED)
    output.flush()
    problem = ""
    try:
        tokenizer = Tokenizer.parse(sys.stdin.buffer.read(), path)
        problem = f"{path} is broken: "  # from here on it is open, and fails when it is used
        tokenizer.decode(tokenizer.encode(_SAMPLE))
        tokenizer.decode(range(min(tokenizer.vocab_size, 1000)))
    except TokenizerError as error:
        output.write(f"{problem}{error}".encode("utf-8", "replace"))
        output.flush()
        os._exit(_BROKEN)
    os._exit(0)  # at once: nothing here needs to be put away


def _is_recorded(name: str) -> bool:
    try:
        return (data_folder() / _KNOWN_FOLDER / name).is_file()
    except (ConfigError, OSError):
        return False


def _record(name: str) -> None:
    # A file without content, so there is nothing that a crash could cut off. No library, no record: the next process
    # tries again.
    with contextlib.suppress(ConfigError, OSError):
        folder = data_folder() / _KNOWN_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
