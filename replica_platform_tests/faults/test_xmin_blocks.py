"""Syncs by blocks beside writers: equal to the source at each sync's own snapshot, every time.

The control leaves out the history of start points and begins where the last sync did. It must lose
rows in the same harness.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from replica_platform.xmin import TableSpec, sync_group, validate
from replica_platform.xmin.blocks.history import History
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.snapshot import SourceSnapshot, open_reader
from replica_platform_tests.faults.xmin_writers import SETUP, TABLES, Writers
from replica_platform_tests.xmin.helpers import execute

# Keyless rows are told apart by a number that nothing makes a key of.
KEYLESS = ("loose",)
MORE = [
    "create table loose (id bigint, v text, n int)",
    "insert into loose select i % 500, 'start', 0 from generate_series(1, 2000) i",
]
HERE = "source_leaf::bigint, source_block, source_ctid::text, source_xmin & 4294967295"
THERE = "{}::bigint, ({}::text::point)[0]::bigint, {}::text, {}::text::bigint"


class Observer:
    """Keeps the snapshot of each sync, by a session of its own, until the sync was compared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
        self._dsn = dsn
        self._tables: dict[str, tuple[psycopg.Connection, SourceTable]] = {}
        self._readers: list[psycopg.Connection] = []
        begin = SourceSnapshot.begin

        def watched(session: SourceSnapshot, names: Any) -> None:
            names = list(names)
            begin(session, names)
            reader = open_reader(dsn, session.snapshot)
            self._readers.append(reader)
            for name in names:
                if name in session.tables:
                    self._tables[str(name)] = (reader, session.tables[name])
                    # TRUNCATE and rewrites are not bound to snapshots: they wait for this one.
                    lock = sql.SQL("lock table {} in access share mode").format(name.sql)
                    reader.execute(lock)

        monkeypatch.setattr(SourceSnapshot, "begin", watched)

    def differences(self, target: psycopg.Connection, table: str) -> tuple[int, int]:
        """Count the rows that are only in the source, and only in the target."""
        reader, described = self._tables[f"public.{table}"]
        columns = columns_sql(described.names)
        located = sql.SQL(THERE).format(
            described.leaf_column, described.tid_column, described.tid_column, described.xmin_column
        )
        there = Counter(
            reader.execute(
                sql.SQL("select {}, {} from {}").format(
                    columns, located, described.rows(described.names, system=True)
                )
            ).fetchall()
        )
        here = Counter(
            target.execute(
                sql.SQL("select {}, {} from {}").format(
                    columns, sql.SQL(HERE), TableName("public", table).sql
                )
            ).fetchall()
        )
        return (there - here).total(), (here - there).total()

    def release(self) -> None:
        """End the snapshots."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()


class LooseWriters:
    """Writers of the table without a key, some of them for longer than several syncs take."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(random.Random(seed), most))
            for seed, most in enumerate((0.0, 0.05, 1.5, 3.0))
        ]

    def __enter__(self) -> "LooseWriters":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, dice: random.Random, most_s: float) -> None:
        with psycopg.connect(self._dsn) as connection:
            while not self._stop.is_set():
                for table in ("loose", "ledger"):
                    key = dice.randrange(5_000, 6_000) if table == "ledger" else dice.randrange(500)
                    self._change(connection, dice, table, key)
                time.sleep(dice.random() * most_s)
                connection.commit() if dice.random() < 0.9 else connection.rollback()
                time.sleep(0.005)

    def _change(
        self, connection: psycopg.Connection, dice: random.Random, table: str, key: int
    ) -> None:
        kind = dice.random()
        if kind < 0.4:
            key = key if table == "loose" else dice.randrange(10**6, 10**9)
            connection.execute(
                # In ten minutes the dice give a key twice.
                f"insert into {table} values (%s, %s, 1) on conflict do nothing",  # type: ignore[arg-type]
                [key, f"{dice.random():.6f}"],
            )
        elif table == "loose":
            done = "update loose set n = n + 1" if kind < 0.7 else "delete from loose"
            connection.execute(
                f"{done} where ctid = (select ctid from loose where id = %s "  # type: ignore[arg-type]
                "limit 1 for update skip locked)",
                [key],
            )


def run(
    source: str, target: str, observer: Observer, seconds: float, *, to_the_first: bool = False
) -> tuple[int, Counter[str], list[str]]:
    """Sync by blocks for some time; return syncs, tables by mode, and what differed."""
    tables = (*TABLES, *KEYLESS)
    specs = [TableSpec(table, mode="blocks") for table in tables]
    modes: Counter[str] = Counter()
    wrong: list[str] = []
    syncs = 0
    until = time.monotonic() + seconds
    with psycopg.connect(target, autocommit=True, prepare_threshold=None) as reader:
        while time.monotonic() < until and not (wrong and to_the_first):
            group = sync_group(source, target, specs)
            syncs += 1
            for report in group.reports.values():
                modes[report.mode] += 1
                if "somebody has written" in report.why:
                    wrong.append(f"sync {syncs}: {report.target_table} was repaired: {report.why}")
            for table in tables:
                if f"public.{table}" not in group.reports:
                    continue
                missing, extra = observer.differences(reader, table)
                if missing or extra:
                    wrong.append(f"sync {syncs}: {table} lacks {missing}, has {extra} too many")
            observer.release()
    return syncs, modes, wrong


@contextmanager
def oracle(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Observer, Writers]]:
    execute(source, "checkpoint", *SETUP, *MORE)
    observer = Observer(monkeypatch, source)
    with ExitStack() as stack:
        stack.callback(observer.release)
        stack.enter_context(LooseWriters(source))
        yield observer, stack.enter_context(Writers(source, count=4))


@pytest.mark.timeout(900)
def test_each_sync_is_equal_at_its_own_snapshot(
    database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, torture: bool
) -> None:
    source, target = database("blocks_source"), database("blocks_target")
    seconds = 600.0 if torture else 20.0
    with oracle(source, target, monkeypatch) as (observer, writers):
        syncs, modes, wrong = run(source, target, observer, seconds)
    print(
        f"\n{writers.transactions} transactions, {writers.definitions} definitions, {syncs} syncs "
        f"by blocks in {seconds:g} s, tables by mode {dict(modes)}, {len(wrong)} differences"
    )
    assert wrong == []
    assert modes["blocks"] > 20
    for table in TABLES:
        sync_group(source, target, [TableSpec(table, mode="blocks")])
        assert validate(source, target, table, content=True).in_sync


@pytest.mark.timeout(300)
def test_without_the_history_rows_are_lost(
    database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = database("naive_source"), database("naive_target")
    # The control: start where the last sync began, whatever ran then.
    monkeypatch.setattr(History, "before", lambda history, w: max(history.points, default=None))
    with oracle(source, target, monkeypatch) as (observer, writers):
        syncs, modes, wrong = run(source, target, observer, 120.0, to_the_first=True)
    print(
        f"\nwithout history: {writers.transactions} transactions, {syncs} syncs, tables by mode "
        f"{dict(modes)}, {len(wrong)} differences, the first: {wrong[:1]}"
    )
    assert wrong
