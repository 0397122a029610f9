"""Progress bars on a pseudo-terminal: drawn for long work, and only for people."""

import os
import pty
import subprocess
import sys

import pytest

from replica_platform.cli.terminal import SHOWN_VALUES, figures

PROGRAM = """
import sys, time
from replica_platform.cli.terminal import bar
with bar("copying") as progress:
    for step in range(int(sys.argv[1])):
        time.sleep(0.1)
        progress(step + 1, int(sys.argv[1]), sys.argv[2])
"""


def shown(steps: int, *, terminal: bool, unit: str = "steps") -> str:
    """Return what a job of `steps` tenths of a second draws on its standard error."""
    if not terminal:
        command = [sys.executable, "-c", PROGRAM, str(steps), unit]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr
    here, there = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(steps), unit],
        stderr=there,
        env=os.environ | {"TERM": "xterm"},
    ) as process:
        os.close(there)
        pieces = []
        while True:
            try:
                piece = os.read(here, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            pieces.append(piece)
    os.close(here)
    assert process.returncode == 0
    return b"".join(pieces).decode()


@pytest.mark.parametrize(
    ("steps", "terminal", "drawn"), [(28, True, True), (3, True, False), (28, False, False)]
)
def test_a_bar_is_drawn_for_long_work_on_a_terminal(
    steps: int, terminal: bool, drawn: bool
) -> None:
    text = shown(steps, terminal=terminal)
    assert ("copying" in text and "%" in text) is drawn
    assert drawn or text == ""


@pytest.mark.parametrize(
    ("unit", "text"), [("tables", "copying: 28 of 28 tables"), ("bytes", "copying: 28 B of 28 B")]
)
def test_a_bar_says_how_many_of_how_many(unit: str, text: str) -> None:
    assert text in shown(28, terminal=True, unit=unit)


def test_of_a_long_list_the_first_values_are_shown() -> None:
    assert figures({"tables": ["a", "b"]}, {}) == "tables a, b"
    many = [f"t{number}" for number in range(SHOWN_VALUES + 113)]
    shown = figures({"tables": many}, {"tables": "synced"})
    assert shown == f"synced {', '.join(many[:SHOWN_VALUES])} and 113 more"
