"""Real Chromium on the night page, and installations for it to look at."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
# What the page may not do: run into its own policy, or meet an error that it does not catch.
WATCH = "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.blockedURI))"
OpenPage = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory starts real servers and a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)
            item.add_marker(pytest.mark.timeout(180))
            if CHROMIUM is None and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason="no chromium here"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run one Chromium; not for longer than a module, as its loop stays in this thread."""
    assert CHROMIUM, "apt-get install chromium"
    with sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open a URL in a browser of its own: `open_page(url, **options of the context)`.

    Errors in the console fail the test; `offline=True` allows those of the network.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_(url: str, *, offline: bool = False, token: str = "", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        context.add_init_script(WATCH)
        if token:  # as a tab keeps it that has been signed in before
            context.add_init_script(f"sessionStorage.setItem('koa-token', '{token}')")
        page = context.new_page()

        def hear(text: str) -> None:
            if not (offline and text.startswith("Failed to load resource")):
                errors.append(text)

        page.on("console", lambda said: said.type == "error" and hear(said.text))
        page.on("pageerror", lambda error: hear(str(error)))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not errors, errors
