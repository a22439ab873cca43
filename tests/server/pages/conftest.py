"""One browser, and its servers, for all tests of this folder, which one process runs (tests/conftest.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from chromium import started
from edgelm_server import TINY, EdgelmServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    """A browser for all tests; each opens a context of its own."""
    with started(chromium) as browser:
        yield browser


@pytest.fixture(scope="package")
def scripted_server() -> Iterator[EdgelmServer]:
    """A server whose model says one sentence."""
    from chat_page import SENTENCE, scripted

    with EdgelmServer((TINY,), prelude=scripted(SENTENCE)) as server:
        yield server


@pytest.fixture(scope="package")
def slow_scripted_server() -> Iterator[EdgelmServer]:
    """The same, 50 ms a token: slowly enough to be seen on its way."""
    from chat_page import SENTENCE, scripted

    with EdgelmServer((TINY,), prelude=scripted(SENTENCE, seconds_per_token=0.05)) as server:
        yield server


@pytest.fixture(scope="package")
def lengthy_scripted_server() -> Iterator[EdgelmServer]:
    """The same, whose answer is the sentence 40 times: it takes 40 seconds."""
    from chat_page import SENTENCE, scripted

    with EdgelmServer((TINY,), prelude=scripted(f"{SENTENCE} " * 40, seconds_per_token=0.05)) as server:
        yield server


@contextlib.contextmanager
def pages(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page of a server in a browser that knows nothing yet; nothing may go wrong in it unseen."""
    contexts, errors = [], []

    def open_(server: EdgelmServer, **options: object) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    with pages(browser) as open_:
        yield open_


@pytest.fixture(scope="module")
def drawing_page(browser: Browser, scripted_server: EdgelmServer) -> Iterator[Page]:
    """A page for all the tests of a file that draw in it, each in the place of the one before."""
    with pages(browser) as open_:
        yield open_(scripted_server)


@pytest.fixture
def page(open_page: Callable[..., Page], request: pytest.FixtureRequest) -> Page:
    """The page of the scripted server, or of the one that a mark of chat_page's names."""
    from chat_page import expect

    page = open_page(request.getfixturevalue(getattr(request, "param", "scripted_server")))
    expect(page.locator("#model option")).to_have_count(1)
    return page
