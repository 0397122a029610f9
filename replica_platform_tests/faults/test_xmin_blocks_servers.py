"""Syncs by blocks through crashes, a promotion, lost summaries, and kills of a watched group."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from replica_platform.app.embedded import Server
from replica_platform.core.errors import TransientError
from replica_platform.xmin import BlockOptions, SyncReport, TableSpec, sync, sync_group, validate
from replica_platform_tests.faults.xmin_servers import kill_9, own_server, run, standby_of
from replica_platform_tests.faults.xmin_writers import SETUP, TABLES, Writers
from replica_platform_tests.xmin.helpers import execute, rows

SPECS = [TableSpec(table, mode="blocks") for table in TABLES]
LOCATION = "(ctid::text::point)[0]::bigint, ctid::text, xmin::text"
LOCATED = "source_block, source_ctid::text, (source_xmin & 4294967295)::text"


def check(source: str, target: str, table: str) -> None:
    """Check rows, locations and xmins of a table that nobody writes to."""
    columns = ", ".join(
        name
        for (name,) in rows(
            source,
            f"select attname from pg_attribute where attrelid = '{table}'::regclass "
            "and attnum > 0 and not attisdropped order by attnum",
        )
    )
    there = f"select {columns}, tableoid::bigint, {LOCATION} from {table} order by id"
    here = f"select {columns}, source_leaf::bigint, {LOCATED} from {table} order by id"
    assert rows(target, here) == rows(source, there), table
    assert validate(source, target, table, content=True).in_sync


def by_blocks(source: str, target: str, table: str = "t", **options: object) -> SyncReport:
    return sync(source, target, table, mode="blocks", **options)  # type: ignore[arg-type]


def small_table(source: str) -> None:
    execute(
        source,
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat('x', 400) from generate_series(1, 2000) i",
        "checkpoint",
    )


@pytest.mark.timeout(600)
def test_crashes_of_the_source(target: str, torture: bool) -> None:
    """Xids and WAL positions that were not flushed are given out again."""
    modes: Counter[str] = Counter()
    crashes, syncs = 20 if torture else 4, 0
    with own_server() as server:
        source = server.dsn("src")
        execute(source, *SETUP, "checkpoint", "alter system set wal_writer_delay = '10s'")
        with Writers(source, count=4, ddl=False) as writers:
            for crash in range(crashes):
                until = time.monotonic() + 2.0
                killer = threading.Timer(1.5 + random.Random(crash).random(), kill_9, [server])
                killer.start()
                while time.monotonic() < until or killer.is_alive():
                    with suppress(TransientError):
                        group = sync_group(source, target, SPECS)
                        modes.update(report.mode for report in group.reports.values())
                        assert not any("written" in r.why for r in group.reports.values())
                        syncs += 1
                server.start()
        group = sync_group(source, target, SPECS)
        assert group.ok
        for table in TABLES:
            check(source, target, table)
    print(
        f"\n{crashes} crashes of the source, {writers.transactions} transactions, {syncs} syncs, "
        f"tables by mode {dict(modes)}"
    )
    assert modes["blocks"] > crashes


@pytest.mark.timeout(300)
def test_a_standby_and_its_promotion(target: str) -> None:
    with own_server() as primary:
        source = primary.dsn("src")
        small_table(source)
        by_blocks(source, target)
        execute(source, "delete from t where id = 1")
        assert by_blocks(source, target).mode == "blocks"
        with standby_of(primary) as standby:
            replayed = standby.dsn("src")
            # A base backup has no summaries: the standby's begin where it does.
            for key, mode in ((2, "scan"), (3, "blocks")):
                execute(source, f"delete from t where id = {key}")
                query = f"select 1 from t where id = {key}"
                _wait_for(lambda query=query: rows(replayed, query) == [])
                with _checkpoints(source):  # only those of the primary end a summary
                    report = by_blocks(replayed, target, blocks=BlockOptions(most_wait_s=60))
                assert (report.mode, report.rows_deleted) == (mode, 1), report.why
                check(replayed, target, "t")
            execute(source, "delete from t where id = 1000")  # the standby may lack it
            primary.stop("immediate")
            run(standby, "pg_ctl", "promote", "-w", "-D", str(standby.folder))
            execute(replayed, "delete from t where id = 4")
            report = by_blocks(replayed, target)
            assert report.mode == "full"
            assert "another server, timeline or database" in report.why
            check(replayed, target, "t")
            execute(replayed, "update t set v = 'y' where id = 5")
            report = by_blocks(replayed, target)
            assert (report.mode, report.rows_updated) == ("blocks", 1), report.why
            check(replayed, target, "t")
            primary.start()


@pytest.mark.timeout(300)
def test_lost_summaries_and_a_summarizer_that_was_off(target: str) -> None:
    with own_server() as server:
        source = server.dsn("src")
        small_table(source)
        by_blocks(source, target)
        for key in (1, 2):
            execute(source, f"delete from t where id = {key}", "checkpoint")
        _lose_a_summary(server)
        report = by_blocks(source, target)
        assert report.mode == "scan"
        assert "has no summaries" in report.why
        check(source, target, "t")
        execute(source, "delete from t where id = 3")
        assert by_blocks(source, target).mode == "blocks"

        execute(source, "alter system set summarize_wal = off", "select pg_reload_conf()")
        _wait_for(lambda: rows(source, "show summarize_wal") == [("off",)])
        execute(source, "delete from t where id = 4")
        report = by_blocks(source, target)
        assert report.mode == "scan"
        assert "ALTER SYSTEM SET summarize_wal = on" in report.why
        check(source, target, "t")
        execute(source, "delete from t where id = 5", "alter system set summarize_wal = on",
                "select pg_reload_conf()")  # fmt: skip
        for key in (6, 7):
            execute(source, f"delete from t where id = {key}")
            report = by_blocks(source, target, blocks=BlockOptions(most_wait_s=60))
            check(source, target, "t")
        assert report.mode == "blocks", report.why


@pytest.mark.timeout(1800)
def test_kills_of_a_watched_group(database: Callable[[str], str], torture: bool) -> None:
    source, target = database("watch_source"), database("watch_target")
    execute(source, *SETUP, "checkpoint")
    kills = 100 if torture else 6
    dice = random.Random(7)
    command = [
        *(sys.executable, "-m", "replica_platform.cli.main", "sync", *TABLES),
        *("--source", source, "--target", target, "--mode", "blocks", "--watch", "--every", "0.1"),
        "--json",
    ]
    with Writers(source, count=4) as writers:
        for _ in range(kills):
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert process.stdout
                process.stdout.readline()  # the first sync of this process has ended
                time.sleep(dice.random() * 1.5)
                process.send_signal(signal.SIGKILL)
                process.wait()
    syncs = rows(target, "select count(*) from replica_platform.mark")
    group = sync_group(source, target, SPECS)
    assert group.ok, group.failures
    modes = {report.mode for report in group.reports.values()}
    for table in TABLES:
        check(source, target, table)
    print(
        f"\n{kills} kills of a watched group, {writers.transactions} transactions, "
        f"{writers.definitions} definitions; {syncs[0][0]} tables were synced, the last by {modes}"
    )
    assert syncs == [(len(TABLES),)]
    assert not any("written" in report.why for report in group.reports.values())


@contextmanager
def _checkpoints(dsn: str) -> Iterator[None]:
    """Run a checkpoint twice a second."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.5):
            execute(dsn, "checkpoint")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join()


def _lose_a_summary(server: Server) -> None:
    files = (server.folder / "pg_wal" / "summaries").glob("0*.summary")  # not temp.summary
    newest = sorted(files, key=lambda path: path.name[8:])[-1]
    newest.unlink()


def _wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
