"""SQLite's locks: taken at the start of a write, and never dropped by inspecting the file."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox, backlog, dead, doctor, drain, file, queue
from replica_platform.outbox.delivery.watch import _change_stamps
from replica_platform.outbox.errors import OutboxBusy

Ask = Callable[..., list[tuple[Any, ...]]]


def another_process_can_write(path: Path) -> bool:
    program = (
        "import sys\n"
        "from replica_platform.core.sqlite import sqlite3\n"
        "c = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
        "try:\n"
        "    c.execute('begin immediate'); c.execute('rollback'); print('free')\n"
        "except sqlite3.OperationalError: print('locked')\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True
    )
    return answer.stdout.strip() == "free"


def test_inspecting_a_file_keeps_its_locks(box: Outbox, path: Path, target: str) -> None:
    box.append("note", {})
    with closing(file.open_existing(path)) as writer, file.writing(writer):
        assert not another_process_can_write(path)
        backlog([path])
        dead(path)
        doctor([path])
        _change_stamps([path])
        assert not another_process_can_write(path)


def test_copying_beside_a_live_connection_drops_them(box: Outbox, path: Path) -> None:
    """The negative control: why nothing in the engine opens the file but SQLite."""
    box.append("note", {})
    with closing(file.open_existing(path)) as writer, file.writing(writer):
        path.with_name(path.name + "-shm").read_bytes()
        assert another_process_can_write(path)


def test_an_upgraded_read_fails_at_once_and_our_transaction_waits(path: Path) -> None:
    Outbox(path).close()
    with closing(file.open_existing(path)) as one, closing(file.open_existing(path)) as two:
        one.execute("begin")
        one.execute("select * from record").fetchall()
        file.set_meta(two, "x", "1")
        started = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            file.set_meta(one, "x", "2")
        assert time.monotonic() - started < 1  # though the busy timeout is ten seconds
        one.execute("rollback")
        two.execute("begin immediate")
        threading.Timer(0.3, lambda: two.execute("commit")).start()
        with file.writing(one):
            file.set_meta(one, "x", "3")
        assert file.get_meta(two, "x") == "3"


def test_a_lock_that_stays_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "BUSY_TIMEOUT_S", 0.1)
    with Outbox(path) as box, closing(file.open_existing(path)) as other:
        other.execute("begin immediate")
        with pytest.raises(OutboxBusy, match="not saved"):
            box.append("note", {})
        other.execute("rollback")
        box.append("note", {})


def test_order_does_not_follow_the_clock(
    box: Outbox, path: Path, target: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for moment in (2_000_000_000.0, 1_000_000_000.0, 1_500_000_000.0):
        monkeypatch.setattr("replica_platform.outbox.box.time.time", lambda moment=moment: moment)
        ids.append(box.append("note", {}))
    monkeypatch.undo()
    drain([path], target, batch_rows=1)
    assert [id for (id,) in ask("select id::text from outbox.record order by landed_at")] == ids
    assert backlog([path]).oldest_pending_age_s == 0


def test_a_seq_is_never_assigned_twice(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{}, {}])
    drain([path], target, keep_delivered_s=0)
    box.append("note", {})
    with closing(file.open_existing(path, read_only=True)) as local:
        assert local.execute("select seq from record").fetchall() == [(3,)]
        assert [row.seq for row in queue.next_batch(local, 10, 1000)] == [3]


def test_drains_without_the_lock_are_still_correct(
    box: Outbox, path: Path, target: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of the drains avoids duplicate work; correctness does not depend on it."""
    box.append_many("note", [{"n": n} for n in range(2000)])
    monkeypatch.setattr("replica_platform.outbox.slots.try_lock", lambda descriptor: True)
    reports = []
    threads = [
        threading.Thread(target=lambda: reports.append(drain([path], target, batch_rows=37)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.delivered for report in reports) == 2000
    assert ask("select count(*) from outbox.record") == [(2000,)]
    assert ask("select sum(landed) from outbox.chain") == [(2000,)]
    assert backlog([path]).pending == 0
    assert drain([path], target).files[0].reopened == 0
