"""Chromium in the hands of Playwright."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@contextlib.contextmanager
def started(program: str) -> Iterator[Browser]:
    """Start a browser; a start is as much processor time as five pages.

    Playwright keeps an event loop running in this thread, beside which no other can: it must end before tests that
    have one.
    """
    playwright_api = pytest.importorskip("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root. A process for a GPU that is not there would draw in vain.
        arguments = ["--no-sandbox", "--in-process-gpu"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()
