"""The process of `program`, which waits for its file, and afterwards for the next one.

Python with DuckDB takes longer to start than most publications take to write. So the process starts
before its file exists, and one that answered is kept for the next publication of this process.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from replica_platform.replica.probe import program
from replica_platform.replica.store.manifest import NO_MASTER, TableContent


class ProbeFailed(Exception):
    """The file cannot be read; the text is DuckDB's reason."""


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        tables: Rows and schema of each table, by name.
        broken_views: Why each view that cannot be opened fails, by name.
    """

    tables: dict[str, TableContent]
    broken_views: dict[str, str]


class Probe:
    """A process that reads files, to use in a `with`; one that answered is kept for the next."""

    def __init__(self) -> None:
        idle = _take_idle()
        self._child = idle or _start()
        self._waited = idle is not None
        self._ends = False

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ends or not _keep_idle(self._child):
            _end(self._child)

    def read_tables(self, path: Path, catalog: str, scan: list[str]) -> Content:
        """Return the file's content; tables in `scan` are read to the end, `*` for all.

        Raises:
            ProbeFailed: The file is damaged, or a table in `scan` is missing.
        """
        answer = self._ask(path, catalog, scan)
        tables = {name: TableContent(**table) for name, table in answer["tables"].items()}
        return Content(tables, answer["broken_views"])

    def list_columns(self, path: Path) -> program.Columns:
        """Return schema, table, name and type of every column of the file's tables.

        Raises:
            ProbeFailed: The file is damaged.
        """
        return [tuple(column) for column in self._ask(path, NO_MASTER, None)]

    def _ask(self, path: Path, catalog: str, scan: list[str] | None) -> Any:
        request = json.dumps({"path": str(path), "catalog": catalog, "scan": scan})
        self._ends = True
        answer, problem = _exchange(self._child, request)
        if answer is None and self._waited and not self._child.returncode:
            # It had waited for too long.
            _end(self._child)
            self._child, self._waited = _start(), False
            answer, problem = _exchange(self._child, request)
        if answer is None:
            raise ProbeFailed(problem or f"the process ended with code {self._child.returncode}")
        content, self._ends = json.loads(answer)
        return content


def _exchange(child: subprocess.Popen[str], request: str) -> tuple[str | None, str]:
    """Return the child's answer; if it ended without one, None and what it said."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(BrokenPipeError):
        child.stdin.write(f"{request}\n")
        child.stdin.flush()
        answer = child.stdout.readline()
        if answer.endswith("\n"):
            return answer, ""
    with suppress(BrokenPipeError):
        child.stdin.close()
    problem = child.stderr.read() if child.stderr else ""
    child.wait()
    return None, " ".join(problem.split())


_idle: list[subprocess.Popen[str]] = []
_idle_lock = threading.Lock()
# Of the process that forked this one.
_inherited: list[subprocess.Popen[str]] = []


def _start() -> subprocess.Popen[str]:
    # By its path, not as a module: the child must not import this package, only DuckDB.
    return subprocess.Popen(
        [sys.executable, "-I", program.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _take_idle() -> subprocess.Popen[str] | None:
    """Return the process that is kept, if it still waits."""
    with _idle_lock:
        child = _idle.pop() if _idle else None
    if child is not None and child.poll() is not None:
        _end(child)
        return None
    return child


def _keep_idle(child: subprocess.Popen[str]) -> bool:
    """Keep a process for the next publication; return whether it is the only one that is kept."""
    with _idle_lock:
        if _idle or child.poll() is not None:
            return False
        _idle.append(child)
        return True


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()
    child.wait()


def _end_idle() -> None:
    while child := _take_idle():
        _end(child)


def _forget_idle() -> None:
    """Leave the process to the parent of a fork."""
    global _idle_lock
    _idle_lock = threading.Lock()
    _inherited.extend(_idle)
    _idle.clear()


atexit.register(_end_idle)
os.register_at_fork(after_in_child=_forget_idle)
