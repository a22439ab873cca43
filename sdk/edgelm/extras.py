"""Optional dependencies: import one, or say which pip line adds it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

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
