"""The child process that looks inside a candidate, started before the candidate is there.

A corrupt file can kill DuckDB, so never in this process; and Python with DuckDB takes longer to
start than most publications to write, so it waits for its file instead of us for it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Self

from replica_platform.replica.errors import MasterDamaged
from replica_platform.replica.store import probe
from replica_platform.replica.store.manifest import Table


class Probe:
    """A child that waits for one file to look into; it ends with the `with`, or with us."""

    def __init__(self) -> None:
        # By its path, not as a module: the child must not import this package, only DuckDB.
        self._child = subprocess.Popen(
            [sys.executable, "-I", probe.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.returncode is None:
            self._child.kill()
            self._child.communicate()

    def look(self, path: Path, scan: list[str]) -> dict[str, Table]:
        """The file's tables, those in `scan` read to the end. Errors: `MasterDamaged`."""
        said, trouble = self._child.communicate(json.dumps([str(path), scan]))
        if self._child.returncode != 0:
            why = " ".join(trouble.split()) or f"it died with code {self._child.returncode}"
            raise MasterDamaged(
                f"The master cannot be read to the end ({why}); nothing was published and readers "
                "keep their generation. Repair or restore the master, and publish again."
            )
        return {name: Table(**table) for name, table in json.loads(said).items()}
