"""Whether something lies at a path, where "no" is known to be true."""

from pathlib import Path

_INVALID_NAME = 123  # of Windows: nothing can have that name, such as a URL


def is_there(path: Path) -> bool:
    """Tell whether something lies at a path.

    Path.exists, and what is like it, says no from Python 3.14 on where the system refuses to look.

    Raises:
        OSError: the system refuses to look: a name is too long, or a folder on the way may not be read.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if getattr(error, "winerror", None) == _INVALID_NAME:
            return False
        raise
    return True
