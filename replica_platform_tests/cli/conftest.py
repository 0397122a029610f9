"""The command as people call it: a process of its own, its output and exit code."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Call `replica` with arguments; no setting of the tester's own is seen."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLICA_")}
    environment = {
        **kept,
        "REPLICA_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "COLUMNS": "200",
    }

    def call(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "replica_platform.cli", *map(str, arguments)],
            cwd=tmp_path,
            env=environment | settings,
            input=settings.pop("stdin", None),
            capture_output=True,
            text=True,
        )

    return call
