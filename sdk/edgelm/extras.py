"""Optional dependencies: import one, or say which pip line adds it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from edgelm.errors import MissingExtraError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, which the optional extra `extra` brings.

    Raises:
        MissingExtraError: the module is not installed; the message is the pip line. An ImportError from inside an
            installed module passes through as it is.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise MissingExtraError(f'{purpose} needs {module!r}, which is not installed: pip install "edgelm[{extra}]"')
    return importlib.import_module(module)


def entry_point(group: str, name: str, *, extra: str, purpose: str) -> Any:
    """Load what another part of edgelm offers under a name, without knowing that part.

    Raises:
        MissingExtraError: a module that it needs is not installed; or edgelm's metadata does not have the name yet, or
            has another module's, as in a clone that was updated.
    """
    from importlib import metadata  # 20 ms, which an app that asks for nothing does not pay

    found = tuple(metadata.entry_points(group=group, name=name))
    if not found:
        raise older_metadata(purpose)
    try:
        return found[0].load()
    except ModuleNotFoundError as error:
        if has_moved(found[0].module, error):
            raise older_metadata(purpose) from error
        raise MissingExtraError(
            f'{purpose} needs {error.name!r}, which is not installed: pip install "edgelm[{extra}]"'
        ) from error


def has_moved(module: str, error: ModuleNotFoundError) -> bool:
    """Tell whether what is missing is a module that metadata names, in a package that is there."""
    return "." in (error.name or "") and f"{module}.".startswith(f"{error.name}.")


def older_metadata(purpose: str) -> MissingExtraError:
    """Return the error of a clone that was updated, and not installed again."""
    return MissingExtraError(
        f"{purpose} needs edgelm installed again: its metadata is older than its code. In the clone: pip install -e ."
    )
