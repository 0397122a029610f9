"""The process of `program`, started before its file exists.

Python with DuckDB takes longer to start than most publications take to write, so the process
starts first and waits for the name of its file.
"""

import json
import subprocess
import sys
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
    """A process that reads one file; it ends with the `with`."""

    def __init__(self) -> None:
        # By its path, not as a module: the child must not import this package, only DuckDB.
        self._child = subprocess.Popen(
            [sys.executable, "-I", program.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.returncode is None:
            self._child.kill()
            self._child.communicate()

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
        answer, problem = self._child.communicate(request)
        if self._child.returncode != 0:
            reason = " ".join(problem.split())
            raise ProbeFailed(reason or f"the process ended with code {self._child.returncode}")
        return json.loads(answer)
