"""A first copy that is killed is continued, and arrives at the newest state."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from replica_platform.xmin import sync, validate
from replica_platform_tests.faults.xmin_servers import kill_9, own_server
from replica_platform_tests.xmin.helpers import execute, rows

QUERY = "select id, x from t order by id"


def kill_after_ranges(source: str, target: str, ranges: int) -> None:
    """Kill a first copy when more than `ranges` of its ranges have arrived."""
    child = begin_copy(source, target, ranges)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def begin_copy(source: str, target: str, ranges: int) -> int:
    """Begin a first copy in a child; return its pid when more than `ranges` have arrived."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            sync(source, target, "t", batch_bytes=65536)
        os._exit(0)
    ledger = "select count(*) from replica_platform.first_copy"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with suppress(Exception):
            if rows(target, ledger)[0][0] > ranges:
                break
    return child


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_killed_first_copy_is_continued(database: Callable[[str], str]) -> None:
    source, target = database("resume_source"), database("resume_target")
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 300) from generate_series(1, 60000) i",
    )
    kill_after_ranges(source, target, 40)
    arrived = rows(target, "select count(*) from replica_platform.first_copy")[0][0] - 1
    assert arrived >= 40
    assert rows(target, "select to_regclass('t') is null") == [(True,)]
    dice = random.Random(3)
    for _ in range(300):  # in ranges that had arrived and in others
        key = dice.randrange(1, 60000)
        execute(
            source,
            f"update t set x = 'changed' where id = {key}",
            f"delete from t where id = {dice.randrange(1, 60000)}",
            f"update t set id = id + 100000 where id = {dice.randrange(1, 60000)}",
        )
    report = sync(source, target, "t", batch_bytes=65536)
    print(f"\n{arrived} ranges had arrived; {report.notes}, {report.bytes:,} bytes moved")
    assert report.notes[0].startswith("an interrupted copy went on")
    assert report.bytes < 60000 * 320 * 0.95
    assert rows(source, QUERY) == rows(target, QUERY)
    assert validate(source, target, "t").in_sync
    assert rows(target, "select count(*) from replica_platform.first_copy") == [(0,)]


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_rewritten_table_starts_over(database: Callable[[str], str]) -> None:
    """VACUUM FULL moves rows from ranges that were not read to ranges that were."""
    source, target = database("rewrite_source"), database("rewrite_target")
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 300) from generate_series(1, 40000) i",
        "delete from t where id < 8000",
    )
    kill_after_ranges(source, target, 10)
    execute(source, "vacuum full t")
    assert sync(source, target, "t", batch_bytes=65536).notes == ()
    assert rows(source, QUERY) == rows(target, QUERY)


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_copy_is_continued_after_its_source_has_lost_transactions(
    database: Callable[[str], str],
) -> None:
    """Their xids are given out again: below the first W there may be rows of another history."""
    target = database("crashed_target")
    changed = "update t set x = '{}' where id = {}"
    keys = range(1, 60)
    with own_server() as server:
        source = server.dsn("src")
        execute(
            source,
            "create table t (id int primary key, x text)",
            "insert into t select i, repeat('x', 300) from generate_series(1, 60000) i",
            "alter system set wal_writer_delay = '10s'",
            "alter system set synchronous_commit = off",
            "vacuum t",
            "checkpoint",
        )
        server.stop()
        server.start()
        execute(source, *(changed.format("lost", key) for key in keys))
        child = begin_copy(source, target, 60)
        kill_9(server)
        os.waitpid(child, 0)
        assert rows(target, "select to_regclass('t') is null") == [(True,)]
        server.start()
        execute(source, *(changed.format("new", key) for key in keys))
        report = sync(source, target, "t", batch_bytes=65536)
        assert report.notes[0].startswith("an interrupted copy went on")
        assert rows(source, QUERY) == rows(target, QUERY)
        assert validate(source, target, "t").in_sync


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_copy_that_holds_a_key_twice_starts_over(database: Callable[[str], str]) -> None:
    source, target = database("twice_source"), database("twice_target")
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 300) from generate_series(1, 40000) i",
    )
    kill_after_ranges(source, target, 10)
    load = "select relname from pg_class where relname like 'load_%'"
    ((name,),) = rows(target, load)
    execute(
        target,
        f"insert into replica_platform.{name} select * from replica_platform.{name} limit 1",
    )
    report = sync(source, target, "t", batch_bytes=65536)
    assert "twice" in report.why
    assert rows(source, QUERY) == rows(target, QUERY)
    assert validate(source, target, "t").in_sync
