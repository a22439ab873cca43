"""The user's token for the hub; it is never shown, and sent to no other server that the hub redirects to."""

from __future__ import annotations

import os
from pathlib import Path

from edgelm.errors import ConfigError


def hub_token(file: Path | None) -> str | None:
    """Read the token from `file`; without one, take HF_TOKEN or what `hf auth login` left, if anything.

    Raises:
        ConfigError: the file cannot be read, or there is more than a token; or the hub's client cannot read its
            settings, HF_ENDPOINT among them.
    """
    # Read at its import: without it the hub would also learn which other libraries are installed here.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import get_token
    except ValueError as error:  # it reads the environment at its import
        raise ConfigError(
            f"The hub's client cannot read the environment: {error}. Set HF_ENDPOINT to an address such as "
            f"https://hub.example, or not at all (it is {os.environ.get('HF_ENDPOINT')!r}), and each HF_HUB_…_TIMEOUT "
            "to a number of seconds."
        ) from error
    if file is None:
        place, token = "HF_TOKEN, or the file that `hf auth login` left,", get_token()
    else:
        try:
            place, token = str(file), file.read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"Cannot read the hub's token from {file}: {error}.") from error
    # Anything else, such as a whole file of secrets, would be shown in errors of the libraries that send it.
    if token is not None and not (token.isascii() and token.isprintable() and len(token.split()) == 1):
        raise ConfigError(f"{place} holds no token: one word of letters, digits and _ is expected, and nothing else.")
    return token
