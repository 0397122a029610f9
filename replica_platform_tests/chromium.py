"""Debian's Chromium for tests of pages: a reason to skip where it is absent, unless required."""

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# `.ci/run` sets it, so that no test of a page is left out there without a word.
REQUIRED = os.environ.get("REPLICA_BROWSER") == "required"

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not REQUIRED,
    reason="There is no Chromium here (Debian: apt-get install chromium).",
)


def chromium() -> str:
    """Return the path of the browser.

    Raises:
        AssertionError: It is required and not there.
    """
    assert CHROMIUM, "REPLICA_BROWSER=required, but there is no Chromium: apt-get install chromium."
    return CHROMIUM
