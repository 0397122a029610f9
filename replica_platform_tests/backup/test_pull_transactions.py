"""A pull by rows holds no long read transaction on the other host, so that its WAL stays small."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.backup import pull
from replica_platform.backup.errors import Busy
from replica_platform.backup.remote import connection
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.ssh_server import Host, serving

# The agent takes long to compute each table's digests, as with many rows.
SLOW_DIGESTS = """
import time
quick_digests = Agent.digest_ranges
Agent.digest_ranges = lambda self, **given: (time.sleep(0.7), quick_digests(self, **given))[1]
"""
NO_SPACE = "Agent.has_space = lambda self: False\n"
TABLES = 4


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with serving(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    (tmp_path / "remote").mkdir()
    with closing(sqlite3.connect(tmp_path / "remote" / "pi.db", isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        for number in range(TABLES):
            db.execute(f"create table t{number} (id integer primary key, n int, v blob)")
            rows = [(0, bytes(1000))] * 100
            db.executemany(f"insert into t{number} (n, v) values (?, ?)", rows)
    return tmp_path / "remote" / "pi.db"


def install(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """Have the agent run these lines after it is loaded."""
    program = connection._program

    def changed(path: str) -> bytes:
        _, _, text = program(path).partition(b"\n")
        loaded, _, serve = text.rpartition(b"\n")
        text = loaded + b"\n" + lines.encode() + serve
        return b"%d\n%s" % (len(text), text)

    monkeypatch.setattr(connection, "_program", changed)


class Writer(threading.Thread):
    """A program that changes every table in each commit and folds its WAL in all the time."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.finished = file, threading.Event()
        self.written = self.largest_wal = 0

    def run(self) -> None:
        with closing(sqlite3.connect(self.file, isolation_level=None, timeout=10)) as db:
            db.execute("pragma synchronous=off")
            while not self.finished.wait(0.005):
                db.execute("begin immediate")
                for number in range(TABLES):
                    db.execute(f"update t{number} set n = n + 1")
                db.execute("commit")
                wal = self.file.with_name("pi.db-wal").stat().st_size
                self.largest_wal = max(self.largest_wal, wal)
                db.execute("pragma busy_timeout=0")
                db.execute("pragma wal_checkpoint(truncate)").fetchall()
                db.execute("pragma busy_timeout=10000")
                self.written += TABLES * 100 * 1000


def test_the_wal_of_the_other_host_does_not_grow_with_the_pull(
    host: Host, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, SLOW_DIGESTS)
    writer = Writer(remote)
    writer.start()
    try:
        pulled = pull(host.url(remote), tmp_path / "local.db", method="query", **host.access)
    finally:
        writer.finished.set()
        writer.join()
    assert pulled.verified
    with closing(sqlite3.connect(tmp_path / "local.db")) as db:
        counters = {
            n
            for number in range(TABLES)
            for (n,) in db.execute(f"select distinct n from t{number}")
        }
    assert len(counters) == 1  # one state of all tables
    assert writer.written > 30_000_000
    assert writer.largest_wal < writer.written / 5


def test_without_space_for_a_copy_a_quiet_file_is_pulled_and_a_busy_one_is_refused(
    host: Host, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, NO_SPACE + SLOW_DIGESTS.replace("0.7", "0.1"))
    local = tmp_path / "local.db"
    assert pull(host.url(remote), local, method="query", **host.access).verified
    before = local.read_bytes()
    writer = Writer(remote)
    writer.start()
    try:
        with pytest.raises(Busy, match="make room there"):
            pull(host.url(remote), local, method="query", **host.access)
    finally:
        writer.finished.set()
        writer.join()
    assert local.read_bytes() == before
