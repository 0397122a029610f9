"""A watched group: changes arrive soon, a server that is away is waited for, SIGTERM ends it."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replica_platform.app.embedded import running
from replica_platform.xmin import TableSpec, WatchReport, watch
from replica_platform.xmin.continuous.lag import Lag
from replica_platform_tests.xmin.helpers import execute, rows

SPECS = [TableSpec("t", mode="blocks")]


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)


@contextmanager
def watched(source: str, target: str) -> Iterator[list[WatchReport]]:
    """Watch in a thread; yield its reports."""
    reports: list[WatchReport] = []
    stop = threading.Event()
    thread = threading.Thread(
        target=watch,
        args=(source, target, SPECS),
        kwargs={"every_s": 0.1, "stop": stop, "on_sync": reports.append},
    )
    thread.start()
    try:
        yield reports
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_changes_arrive_over_the_same_sessions(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key, v text)", "insert into t values (1, 'a')")
    execute(source, "checkpoint")
    sessions = "select pid from pg_stat_activity where application_name = 'replica_platform xmin'"
    with watched(source, target) as reports:
        until(lambda: reports)
        before = set(rows(target, sessions))
        for value in range(5):
            execute(source, f"insert into t values ({value + 10}, 'b')")
            until(lambda value=value: (value + 10,) in rows(target, "select id from t"))
        assert before & set(rows(target, sessions))
    last = reports[-1]
    assert last.ok
    assert last.rows_changed == 6  # the first copy and five
    assert last.blocks_read >= 5
    assert last.checkpoints >= 5
    assert last.lag_p50_s is not None
    assert last.lag_p99_s is not None
    assert last.lag_p50_s <= last.lag_p99_s
    assert rows(target, sessions) == []


def test_a_definition_changed_in_between_meets_no_stale_session(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key, v text)", "insert into t values (1, 'a')")
    with watched(source, target) as reports:
        until(lambda: reports)
        for number in range(6):  # psycopg would prepare the statements by then
            execute(
                source,
                f"alter table t add column c{number} int",
                f"update t set c{number} = {number}",
            )
            done = len(reports)
            until(lambda done=done: len(reports) > done + 1)
        until(lambda: rows(target, "select * from t")[0][-1:] and reports[-1].ok)
    assert all(report.ok for report in reports), [r.sentence for r in reports if not r.ok]
    assert sorted(v for v in rows(target, "select c0, c1, c2, c3, c4, c5 from t")[0]) == [*range(6)]


def test_a_source_that_is_away_is_waited_for(folder: Path, target: str) -> None:
    with running(folder / "pg") as server:
        source = server.dsn()
        execute(source, "create table t (id int primary key)", "insert into t values (1)")
        with watched(source, target) as reports:
            until(lambda: reports)
            server.stop("immediate")
            until(lambda: reports[-1].waiting_for)
            assert not reports[-1].ok
            server.start()
            execute(source, "insert into t values (2)")
            until(lambda: (2,) in rows(target, "select id from t"))
    assert reports[-1].interruptions
    assert reports[-1].ok


def test_sigterm_ends_the_command(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)", "insert into t values (1)")
    command = [
        *(sys.executable, "-m", "replica_platform.cli.main", "sync", "t", "--source", source),
        *("--target", target, "--watch", "--every", "0.2", "--json"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = json.loads(process.stdout.readline())
        assert first["ok"]
        process.send_signal(signal.SIGTERM)
        last = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(30) == 0
    assert last["syncs"] >= 1
    assert rows(target, "select id from t") == [(1,)]


def test_the_lag_is_that_of_evenly_spread_changes() -> None:
    lag = Lag()
    lag.add(began=0.0, visible=5.0, rows=1000)  # the first copy does not count
    assert lag.percentile_s(0.5) is None
    lag.add(began=10.0, visible=11.0, rows=100)  # between 1 and 11 s old
    assert lag.percentile_s(0.5) == pytest.approx(6.0)
    assert lag.percentile_s(0.99) == pytest.approx(10.9)
    lag.add(began=20.0, visible=21.0, rows=0)
    lag.add(began=20.5, visible=21.0, rows=300)  # between 0.5 and 1 s old
    assert lag.percentile_s(0.5) == pytest.approx(0.5 + 0.5 * 200 / 300)
