"""What the acceptance tests share: a free port, and the pages of a real browser."""

import socket
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from replica_platform_tests.chromium import chromium

# Errors that Dagster's own pages print, by their exact text.
KNOWN: set[str] = set()
WITHIN_MS = 240_000


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port() -> int:
    """A port that nothing listens on."""
    return free_port()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Started by root, Chromium has no sandbox.
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--hide-scrollbars"]
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 800}, locale="en-US", timezone_id="UTC"
    )
    context.set_default_timeout(WITHIN_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that fails its test when an error is in its console."""
    page = context.new_page()
    errors = watched(page)
    yield page
    assert [error for error in errors if error not in KNOWN] == []


def watched(page: Page) -> list[str]:
    """Return the list that errors of a page are added to."""
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors
