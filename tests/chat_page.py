"""The page of `edgelm serve` in a real browser: a model that says what a test wants, and a person who asks."""

from __future__ import annotations

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
Page, Route, expect = sync_api.Page, sync_api.Route, sync_api.expect
expect.set_options(timeout=20_000)  # milliseconds: other tests compute at the same time

SENTENCE = "The sea is **deep** and blue."
# For tests that look at an answer on its way: of the others, each would wait a second for each of its answers.
slowly = pytest.mark.parametrize("page", ["slow_scripted_server"], indirect=True)
# For tests that do something while an answer is on its way, and end or leave it: on a loaded machine a browser takes
# more than a second to that.
at_length = pytest.mark.parametrize("page", ["lengthy_scripted_server"], indirect=True)


def scripted(answer: str, *, seconds_per_token: float = 0.0) -> str:
    """Return a prelude that makes the server's model answer everything with `answer`."""
    return f"""
import time
from edgelm.decoding.sampling import Sampler
from edgelm import loading
from edgelm.testing import scripted_model
sample = Sampler.sample
Sampler.sample = lambda *arguments: (time.sleep({seconds_per_token}), sample(*arguments))[1]
loading.load = lambda *_: scripted_model({answer!r})
"""


def ask(page: Page, text: str = "What is the sea?") -> None:
    """Send a message, once no answer is on its way: until then the page leaves it where it is written."""
    done(page)
    page.fill("#question", text)
    page.press("#question", "Enter")


def done(page: Page) -> None:
    """Wait until the answer is over."""
    expect(page.locator("#send")).to_be_visible()
