"""The hub's client in this process, which reads its environment at its import, pointed at a hub of the tests."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Point `huggingface_hub` at `url`, by the hub's older transfer, and away from the user's own token and cache."""
    huggingface_hub.close_session()  # its connections are to another hub
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    settings = {
        "ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
        "HF_HOME": str(home), "HF_TOKEN_PATH": str(home / "token"), "HF_STORED_TOKENS_PATH": str(home / "tokens"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "")  # which edgelm sets: undone behind the test,
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")  # and not there before it
