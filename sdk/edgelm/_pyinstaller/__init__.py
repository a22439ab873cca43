"""What PyInstaller cannot see in a program that embeds edgelm: it finds these hooks itself, where edgelm is installed.

Source: https://pyinstaller.org/en/stable/hooks.html#provide-hooks-with-package.
"""

from __future__ import annotations

from pathlib import Path


def hook_folders() -> list[str]:
    """Return the folder of the hooks; each is named for the module whose import calls for it."""
    return [str(Path(__file__).parent)]
