"""Where edgelm keeps its files on each operating system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edgelm.errors import ConfigError

HOME_VARIABLE = "EDGELM_HOME"


def data_folder() -> Path:
    """Return the folder of the model library: $EDGELM_HOME, else the system's place for a user's data.

    Raises:
        ConfigError: neither is set, and the user has no home folder.
    """
    return _folder("XDG_DATA_HOME", ".local/share")


def state_folder() -> Path:
    """Return the folder of what a session leaves behind, such as the history of the chat.

    Raises:
        ConfigError: as `data_folder`.
    """
    return _folder("XDG_STATE_HOME", ".local/state")


def config_folder() -> Path:
    """Return the folder of what a user has written down as settings.

    Raises:
        ConfigError: as `data_folder`.
    """
    return _folder("XDG_CONFIG_HOME", ".config")


def _folder(xdg_variable: str, below_home: str) -> Path:
    """Source: XDG Base Directory Specification 0.8, which has relative paths in its variables ignored."""
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError as error:  # pathlib's word for a `~` without a home folder behind it
            raise ConfigError(f"{HOME_VARIABLE} is {chosen!r}: {error} Set it to a folder of yours.") from error
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            return (Path(local) if local else _home() / "AppData" / "Local") / "edgelm"
        if sys.platform == "darwin":
            return _home() / "Library" / "Application Support" / "edgelm"
        xdg = os.environ.get(xdg_variable, "")
        return (Path(xdg) if os.path.isabs(xdg) else _home() / below_home) / "edgelm"
    except (RuntimeError, KeyError) as error:  # pathlib's and pwd's words for a user without a home folder
        raise ConfigError(
            f"There is no home folder to keep models in. Set {HOME_VARIABLE} to a folder of yours."
        ) from error


def _home() -> Path:
    """Return the user's home folder; an empty $HOME, which is `/` to pathlib, counts as none."""
    if sys.platform == "win32" or os.environ.get("HOME") != "":
        return Path.home()
    import pwd

    return Path(pwd.getpwuid(os.getuid()).pw_dir)
