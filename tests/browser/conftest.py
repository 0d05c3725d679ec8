"""Real Chromium on the night page, and installations for it to look at."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = find_library("atomic") and shutil.which("chromium")  # which playwright needs
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
# What the page may not do: run into its own policy, or meet an error that it does not catch.
WATCH = "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.blockedURI))"
T = TypeVar("T")
OpenPage = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory starts real servers and a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)
            item.add_marker(pytest.mark.timeout(180))
            if CHROMIUM is None and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason="no chromium or libatomic1 here"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run one Chromium; not for longer than a module, as its loop stays in this thread."""
    assert CHROMIUM, "apt-get install chromium libatomic1"
    with sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open a URL in a browser of its own: `open_page(url, **options of the context)`.

    Errors in the console fail the test, but for those that `allow`, a pattern, is about.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_(url: str, *, allow: str = "^$", token: str = "", **options: Any) -> Page:
        width, height = options.pop("size", (1440, 900))
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        context.add_init_script(WATCH)
        if token:  # as a tab keeps it that has been signed in before
            context.add_init_script(f"sessionStorage.setItem('koa-token', '{token}')")
        page = context.new_page()

        def hear(kind: str, text: str) -> None:
            if kind == "error" and not re.search(allow, text):
                errors.append(text)

        page.on("console", lambda said: hear(said.type, said.text))
        page.on("pageerror", lambda error: hear("error", str(error)))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not errors, errors


def names(page: Page) -> str:
    """Return the frame_ids of the rows as they stand below each other, of one letter each."""
    return "".join(
        page.evaluate(
            """[...document.querySelectorAll('.row')]
            .sort((a, b) => a.ariaRowIndex - b.ariaRowIndex).map((row) => row.dataset.id)"""
        )
    )


def query(page: Page) -> str:
    """Return what the URL says of the choice."""
    return unquote(urlsplit(page.url).query)


def until(page: Page, ask: Callable[[], T], what: str, seconds: float = 20) -> T:
    """Ask until the answer is true."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, what
        page.wait_for_timeout(20)
    return answer


def shows(page: Page, rows: str, what: str = "") -> None:
    """Wait until the list shows these rows."""
    end = time.monotonic() + 20
    while (found := names(page)) != rows:
        assert time.monotonic() < end, f"{what}: {found!r}, not {rows!r}"
        page.wait_for_timeout(20)


def in_thread(act: Callable[[], T]) -> T:
    """Do what needs an event loop: the browser's stays in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result()
