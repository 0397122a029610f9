"""A sync killed at any point leaves whole tables, and the next one completes the work."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg
import pytest

from replica_platform.core.errors import TransientError
from replica_platform.xmin import TableSpec, sync_group
from replica_platform_tests.faults.test_xmin_oracle import differences
from replica_platform_tests.faults.xmin_servers import kill_9, own_server
from replica_platform_tests.faults.xmin_writers import SETUP, TABLES, Writers, change
from replica_platform_tests.xmin.helpers import execute, rows

SPECS = [TableSpec(table) for table in TABLES]


def killed_after(seconds: float, source: str, target: str) -> bool:
    """Run a sync in another process and kill it; return whether it was still running."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            sync_group(source, target, SPECS, workers=2, batch_bytes=65536)
        os._exit(0)
    time.sleep(seconds)
    running = os.waitpid(child, os.WNOHANG)[0] == 0
    if running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return running


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_kill_9_of_the_sync(database: Callable[[str], str], torture: bool) -> None:
    source, target = database("kill_source"), database("kill_target")
    execute(source, *SETUP)
    dice = random.Random(7)
    # Kills are spread over as long as a whole sync takes on this machine.
    elsewhere = [TableSpec(table, into="elsewhere") for table in TABLES]
    longest = 1.2 * sync_group(source, target, elsewhere, workers=2, batch_bytes=65536).seconds
    execute(target, "drop schema elsewhere cascade", "truncate replica_platform.mark")
    killed = whole = syncs = 0
    while killed < (100 if torture else 25):
        syncs += 1
        with psycopg.connect(source, autocommit=True) as writer:
            for _ in range(30):
                with suppress(psycopg.errors.IntegrityError):
                    change(writer, dice)
        killed += killed_after(dice.random() * longest, source, target)
        # Readers see the whole work of a committed sync, never a part of it.
        if rows(target, "select to_regclass('replica_platform.mark') is not null")[0][0]:
            for name, count in rows(target, "select target_table, rows from replica_platform.mark"):
                assert rows(target, f"select count(*) from {name}") == [(count,)]
                whole += 1
    assert sync_group(source, target, SPECS).ok
    found = {table: differences(source, target, table) for table in TABLES}
    left = rows(target, "select relname from pg_class where relname like 'stage_%'")
    print(
        f"\n{syncs} syncs, {killed} killed within {longest:.2f} s, {whole} tables seen whole "
        f"between, then {found}"
    )
    assert not any(any(counts.values()) for counts in found.values())
    assert left == []


@pytest.mark.timeout(300)
def test_kill_9_of_the_source(database: Callable[[str], str], torture: bool) -> None:
    """Its xids are given out again after the crash, some below a W read without the barrier."""
    target = database("crash_target")
    crashes = 6 if torture else 2
    reused = syncs = 0
    with own_server() as server:
        source = server.dsn("src")
        execute(source, *SETUP, "alter system set wal_writer_delay = '10s'")
        execute(source, "select pg_reload_conf()")
        for crash in range(crashes):
            with Writers(source, count=4, ddl=False, seed=crash * 100):
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    sync_group(source, target, SPECS)
                    syncs += 1
            naive_w = burn_and_read_w(source)
            kill_9(server)
            with pytest.raises(TransientError):
                sync_group(source, target, SPECS)
            server.start()
            after = next_xid(source)
            reused += max(0, naive_w - after)
            marks = rows(target, "select max(w) from replica_platform.mark")
            assert after >= marks[0][0], "an xid below W would be given out again"
            execute(source, f"insert into ledger values ({9000 + crash}, 'after', 0)")
            assert sync_group(source, target, SPECS).ok
        found = {table: differences(source, target, table) for table in TABLES}
    print(
        f"\n{crashes} crashes, {syncs} syncs, {reused} xids given out again below a W "
        f"that was read without the barrier, then {found}"
    )
    assert reused > 0, "the control: without the barrier W lies above xids that come again"
    assert not any(any(counts.values()) for counts in found.values())


def burn_and_read_w(dsn: str) -> int:
    """Run transactions that never reach the disk; return the W that a naive sync would keep."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(300):
            with connection.transaction(force_rollback=True):
                connection.execute("select pg_current_xact_id()")
        query = "select pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def next_xid(dsn: str) -> int:
    """Return the source's next xid."""
    return int(rows(dsn, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0])
