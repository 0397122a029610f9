"""The ledger: one row of the target proves all that a file delivered, at a constant cost."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica_platform.core import postgres
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import (
    Outbox,
    backlog,
    breaker,
    drain,
    file,
    queue,
    reconcile,
    verify,
    watch,
)
from replica_platform.outbox.queue import batch_digest, next_batch

Ask = Callable[..., list[tuple[Any, ...]]]


class Crash(BaseException):
    """The death of the process."""


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that drains and dies before the file notes the first batch."""

    def die(*_: object) -> None:
        raise Crash

    def run(*arguments: Any, **options: Any) -> None:
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr("replica_platform.outbox.queue.mark_delivered", die)
            drain(*arguments, **options)

    return run


def file_uuid(path: Path) -> str:
    with closing(file.open_existing(path, read_only=True)) as local:
        return file.file_uuid(local)


def restore(ask: Ask, moment: str) -> None:
    """Bring back what `save` copied, as a restore to a point in time does."""
    for table in ("record", "chain", "conflict"):
        ask(f"truncate outbox.{table}")
        ask(f"insert into outbox.{table} table outbox.{moment}_{table}")


def save(ask: Ask, moment: str) -> None:
    for table in ("record", "chain", "conflict"):
        ask(f"create table outbox.{moment}_{table} as table outbox.{table}")


def test_one_row_proves_all_batches(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    with closing(file.open_existing(path)) as local:
        rows = next_batch(local, 100, 10**6)
    assert drain([path], target, batch_rows=4).files[0].batches == 3
    chain = b""
    for batch in (rows[:4], rows[4:8], rows[8:]):
        chain = hashlib.sha256(chain + batch_digest(batch)).digest()
    found = ask("select file_uuid::text, number, last_seq, landed, chain from outbox.chain")
    assert found == [(file_uuid(path), 3, 10, 10, chain)]
    assert ask("select to_regclass('outbox.batch')") == [(None,)]


def test_a_restore_to_any_batch_is_found(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    for moment in range(4):
        box.append_many("note", [{"n": n} for n in range(5)])
        assert drain([path], target, batch_rows=5).ok
        save(ask, f"m{moment}")
    for moment in (2, 0, 1):
        restore(ask, f"m{moment}")
        lost = 5 * (3 - moment)
        assert verify([path], target).batches_missing == 3 - moment
        report = drain([path], target, batch_rows=5).files[0]
        assert (report.reopened, report.delivered, report.absorbed) == (lost, lost, 0)
        assert ask("select count(*) from outbox.record") == [(20,)]
        assert drain([path], target).files[0].reopened == 0
        assert verify([path], target).ok


def test_another_history_of_the_target_resends_everything(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target, batch_rows=5)
    before = file_uuid(path)
    ask("update outbox.chain set number = 1, chain = '\\x00'")
    ask("delete from outbox.record where seq > 3")
    assert verify([path], target).batches_missing == 2
    report = drain([path], target)
    assert (report.files[0].reopened, report.delivered, report.absorbed) == (10, 7, 3)
    assert file_uuid(path) != before
    assert drain([path], target).files[0].reopened == 0
    assert verify([path], target).ok


def test_a_crash_before_the_note_resends_nothing_else(
    box: Outbox, path: Path, target: str, ask: Ask, crash: Callable[..., None]
) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target)
    before = file_uuid(path)
    box.append_many("note", [{"n": n} for n in range(10)])
    for size in (2, 3, 4):  # three drains in a row die after the commit in the target
        crash([path], target, batch_rows=size)
    report = drain([path], target)
    assert (report.files[0].reopened, report.delivered, report.absorbed) == (0, 6, 4)
    assert verify([path], target).ok
    assert file_uuid(path) == before
    assert ask("select number, landed from outbox.chain") == [(5, 20)]


def test_a_target_restored_during_a_drain_is_noticed(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    """A connection to a pooler may outlive the server behind it."""
    box.append_many("note", [{"n": n} for n in range(6)])
    drain([path], target, batch_rows=3)
    save(ask, "then")
    box.append_many("note", [{"n": n} for n in range(12)])

    def progress(done: int, total: int, unit: str) -> None:
        if done == 6:
            restore(ask, "then")

    report = drain([path], target, batch_rows=3, progress=progress)
    assert report.files[0].reopened == 6
    assert ask("select count(*) from outbox.record") == [(18,)]
    assert verify([path], target).ok


def test_lost_rows_are_resent_by_repair(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    ids = box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target, batch_rows=3)
    ask("delete from outbox.record where id = any(%s::uuid[])", [ids[2], ids[5]])
    assert drain([path], target).files[0].reopened == 0  # the chains agree
    assert drain([path], target, repair=True).delivered == 2
    assert reconcile([path], target).ok


def seed(path: Path, ask: Ask, batches: int) -> None:
    """Note `batches` delivered batches, as many drains would have done."""
    uuid, now = file_uuid(path), time.time()
    with closing(sqlite3.connect(path)) as local, local:
        local.execute(
            "with recursive n(n) as (select 2 union all select n + 1 from n where n < ?) "
            "insert into batch select ?, n, n, n, 1, zeroblob(32), ? from n",
            (batches, uuid, now),
        )
        local.execute("update meta set value = ? where key = 'mark'", (str(batches),))
        local.execute("update sqlite_sequence set seq = ? where name = 'record'", (batches,))
    ask("update outbox.chain set number = %s, last_seq = %s, chain = decode(repeat('00', 32), "
        "'hex')", batches, batches)  # fmt: skip


def test_a_drain_costs_the_same_after_many_batches(
    box: Outbox, path: Path, target: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [0]

    def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = open_existing(*arguments, **options)

        def count() -> int:
            steps[0] += 1
            return 0

        connection.set_progress_handler(count, 100)  # instructions of SQLite
        return connection

    box.append("note", {"n": 1})
    assert drain([path], target).ok
    open_existing = file.open_existing
    seed(path, ask, 20_000)
    drain([path], target)
    monkeypatch.setattr(file, "open_existing", counted)
    report = drain([path], target)
    assert (report.ok, report.files[0].reopened, steps[0]) == (True, 0, min(steps[0], 50))
    box.append("note", {"n": 2})
    report = drain([path], target)
    assert (report.delivered, steps[0]) == (1, min(steps[0], 100))
    # The negative control: one query that reads all batches exceeds the limit by far.
    with closing(counted(path, read_only=True)) as local:
        local.execute("select count(*) from batch where n > 0").fetchone()
    assert steps[0] > 500


OLD_SCHEMA = """
create table outbox.batch (
    file_uuid uuid not null, number bigint not null, first_seq bigint not null,
    last_seq bigint not null, n bigint not null, landed bigint not null, digest bytea not null,
    landed_at timestamptz not null default now(), primary key (file_uuid, number)
)
"""


@pytest.fixture
def old(box: Outbox, path: Path, target: str, ask: Ask) -> Iterator[str]:
    """An installation before the chain: four batches of five rows, a ledger row for each.

    The file and the target are as the former version left them, down to the missing index.
    """
    box.append_many("note", [{"n": n} for n in range(20)])
    drain([path], target, batch_rows=5)
    uuid = file_uuid(path)
    ask(OLD_SCHEMA)
    with closing(sqlite3.connect(path)) as local, local:
        local.execute("drop index if exists batch_by_seq")
        for number in range(1, 5):
            rows = [
                file.Row(*row)
                for row in local.execute(
                    f"select {queue._COLUMNS} from record where seq between ? and ?",
                    (number * 5 - 4, number * 5),
                )
            ]
            local.execute(
                "update batch set digest = ? where number = ?", (batch_digest(rows), number)
            )
            ask(
                "insert into outbox.batch values (%s, %s, %s, %s, 5, 5, %s)",
                *(uuid, number, number * 5 - 4, number * 5, batch_digest(rows)),
            )
    ask("drop table outbox.chain")
    yield uuid


def test_a_file_of_the_former_version_goes_on(
    old: str, box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    assert verify([path], target).ok
    box.append("note", {"n": 20})
    report = drain([path], target)
    assert (report.files[0].reopened, report.delivered, report.landed) == (0, 1, 21)
    assert ask("select file_uuid::text, number, landed from outbox.chain") == [(old, 5, 21)]
    assert ask("select count(*) from outbox.batch") == [(0,)]
    assert verify([path], target).ok
    report = drain([path], target)
    assert (report.files[0].reopened, report.ok, file_uuid(path)) == (0, True, old)


def test_batches_that_a_target_of_the_former_version_lost_are_resent(
    old: str, box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ask("delete from outbox.batch where number > 2")
    ask("delete from outbox.record where seq > 10")
    assert verify([path], target).batches_missing == 2
    report = drain([path], target)
    assert (report.files[0].reopened, report.delivered) == (10, 10)
    assert drain([path], target).files[0].reopened == 0
    assert verify([path], target).ok


def test_a_crash_of_the_former_version_before_its_note_is_absorbed(
    old: str, box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    with closing(sqlite3.connect(path)) as local, local:
        local.execute("delete from batch where number = 4")
        local.execute("update meta set value = '15' where key = 'mark'")
    report = drain([path], target)
    assert (report.files[0].reopened, report.absorbed, report.pending) == (0, 5, 0)
    assert (file_uuid(path), verify([path], target).ok) == (old, True)


def test_a_target_restored_to_before_the_chain_gets_its_rows_back(
    old: str, box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ask("create table saved as table outbox.batch")
    box.append_many("note", [{"n": n} for n in range(20, 25)])
    drain([path], target)
    ask("drop table outbox.chain")
    ask("insert into outbox.batch table saved")
    ask("delete from outbox.record where seq > 20")
    report = drain([path], target)
    assert (report.files[0].reopened, report.delivered) == (5, 5)
    assert ask("select number, landed from outbox.chain") == [(5, 25)]
    assert verify([path], target).ok


def test_a_removed_file_of_the_former_version_is_reported(
    old: str, box: Outbox, path: Path, target: str
) -> None:
    box.close()
    path.rename(path.with_name("elsewhere"))
    assert "delivered 20 rows" in verify([path.parent], target).sentence


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_watch_tries_again_when_the_breaker_lets_it(box: Outbox, path: Path, target: str) -> None:
    box.append("note", {"n": 0})
    with closing(file.open_existing(path)) as local:
        breaker.store(
            local, breaker.Breaker("waiting", 1, time.time() + 0.5, time.time(), "57P01", "test")
        )
    stop, reports = threading.Event(), list[Any]()
    thread = threading.Thread(
        target=watch,
        args=([path], target),
        kwargs={"stop": stop, "interval_s": 600, "on_report": reports.append},
    )
    thread.start()
    try:
        until(lambda: sum(report.delivered for report in reports) == 1)
    finally:
        stop.set()
        thread.join(10)
    assert reports[0].files[0].state == "waiting"
    assert 0 < reports[0].files[0].retry_s <= 0.5


def test_watch_keeps_its_connection(
    box: Outbox, path: Path, target: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    connect = postgres.connect

    def counted(*arguments: Any, **options: Any) -> psycopg.Connection:
        opened.append(1)
        return connect(*arguments, **options)

    monkeypatch.setattr(postgres, "connect", counted)
    stop, reports = threading.Event(), list[Any]()
    thread = threading.Thread(
        target=watch,
        args=([path], target),
        kwargs={"stop": stop, "interval_s": 600, "look_s": 0.01, "on_report": reports.append},
    )
    thread.start()
    delivered = lambda: sum(report.delivered for report in reports)  # noqa: E731
    try:
        for n in range(3):
            box.append("note", {"n": n})
            until(lambda n=n: delivered() == n + 1)
            # A delivery changes the file, so that one more drain follows. The server must not end
            # the connection while that one uses it.
            until(lambda: reports[-1].delivered == 0)
        assert len(opened) == 1
        # The server ends the idle connection: the next drain opens another and does not fail.
        ask(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'replica outbox drain'"
        )
        there = (
            "select count(*) from pg_stat_activity where application_name = 'replica outbox drain'"
        )
        until(lambda: ask(there) == [(0,)])
        box.append("note", {"n": 3})
        until(lambda: delivered() == 4)
    finally:
        stop.set()
        thread.join(10)
    assert len(opened) == 2
    assert all(report.ok for report in reports)
    assert backlog([path]).pending == 0
