"""What a person watches on a terminal: `status --watch`, and the steps of `run` and `sync`."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from replica_platform.outbox import Outbox
from replica_platform_tests.conftest import Cli

WITHIN_S = 60
OUTBOXES = """
type: replica_platform.components.WorkerOutboxes
attributes: {nodes: {web: outbox}}
"""


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: str) -> None:
        self.here, there = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "replica_platform.cli.main", *arguments],
            cwd=folder,
            stdout=there,
            stderr=there,
            env=environment | {"TERM": "xterm", "COLUMNS": "200"},
        )
        os.close(there)
        self.text = ""

    def wait_for(self, pattern: str) -> None:
        """Read until the pattern is shown in what was not read before."""
        until, begin = time.monotonic() + WITHIN_S, len(self.text)
        while not re.search(pattern, self.text[begin:]):
            assert time.monotonic() < until, self.text[begin:]
            self._read()

    def _read(self) -> None:
        if select.select([self.here], [], [], 0.2)[0]:
            self.text += os.read(self.here, 65536).decode(errors="replace")

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WITHIN_S)


@pytest.fixture
def environment(tmp_path: Path, entries: Path, source: str, target: str) -> dict[str, str]:
    (entries / "outbox").mkdir()
    (entries / "outbox" / "defs.yaml").write_text(OUTBOXES)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLICA_")}
    return kept | {
        "REPLICA_DATA_DIR": str(tmp_path),
        "REPLICA_SOURCE_DSN": source,
        "REPLICA_TARGET_DSN": target,
        "REPLICA_DAGSTER_DSN": source,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


def test_a_change_is_shown_in_place(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "outbox").mkdir()
    shown = Terminal(tmp_path, environment, "status", "--watch", "--every", "0.5")
    shown.wait_for(r"RED.*outbox.*There is no outbox")
    shown.wait_for(r"\d\d:\d\d:\d\d, every 0.5 s; Ctrl-C ends")
    Outbox(tmp_path / "outbox" / "worker.db").close()
    # The cursor goes up: the new lines take the place of the old ones.
    shown.wait_for(r"\x1b\[1A")
    shown.wait_for(r"ok.{0,10}outbox")
    assert shown.end() == 0


def test_the_steps_of_a_run_are_shown_as_they_end(
    environment: dict[str, str], tmp_path: Path, target: str
) -> None:
    with Outbox(tmp_path / "outbox" / "worker.db") as outbox:
        outbox.append("note", {"n": 1})
    shown = Terminal(tmp_path, environment | {"REPLICA_DAGSTER_DSN": target}, "run")
    shown.wait_for(r"ok.{0,12}conversations .*\d s")
    shown.wait_for("1 records delivered")
    assert shown.process.wait(WITHIN_S) == 0


def test_watching_is_for_people(cli: Cli) -> None:
    refused = cli("status", "--watch", "--json")
    assert refused.returncode == 2
    assert "--watch is for people" in refused.stderr


def test_a_sync_shows_how_many_tables_are_committed(
    environment: dict[str, str], tmp_path: Path, source: str, target: str
) -> None:
    names = ("a", "b", "c")
    with psycopg.connect(source, autocommit=True) as connection:
        for name in names:
            connection.execute(f"create table {name} (id int primary key)")  # type: ignore[arg-type]
    sync = ("sync", *names, "--source", source, "--target", target, "--into", "copy")
    first = Terminal(tmp_path, environment, *sync)
    first.wait_for(r"copy\.c")
    assert first.process.wait(WITHIN_S) == 0
    assert "tables" not in first.text  # shorter work shows no bar
    with psycopg.connect(source, autocommit=True) as connection:
        for name in names:
            connection.execute(f"insert into {name} values (1)")  # type: ignore[arg-type]
    with psycopg.connect(target) as other:
        other.execute("lock table copy.b")
        shown = Terminal(tmp_path, environment, *sync)
        time.sleep(4)
        assert shown.process.poll() is None
    shown.wait_for(r"syncing: [23] of 3 tables")
    shown.wait_for(r"copy\.c")
    assert shown.process.wait(WITHIN_S) == 0
