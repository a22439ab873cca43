from __future__ import annotations

from collections.abc import Iterator

import pytest
from edgelm_server import SHORT_LIMITS, SLOW, TINY, EdgelmServer

from edgelm.language_model import LanguageModel
from edgelm.loading import load


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return load(TINY)


@pytest.fixture(scope="session")
def serving() -> Iterator[EdgelmServer]:
    """`edgelm serve` with the tiny model; many tests use it, one after the other."""
    with EdgelmServer() as server:
        yield server


@pytest.fixture(scope="session")
def slow_serving() -> Iterator[EdgelmServer]:
    """A server whose model takes 20 ms a token."""
    with EdgelmServer((TINY, "--batch", "2", "--queue", "2"), prelude=SLOW) as server:
        yield server


@pytest.fixture(scope="session")
def hasty_serving() -> Iterator[EdgelmServer]:
    """A server that waits one second where another waits 10 or 30."""
    with EdgelmServer((TINY, "--quiet"), prelude=SHORT_LIMITS + SLOW) as server:
        yield server
