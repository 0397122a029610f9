"""A host that dies in mid-run of every pillar: nothing is lost, nothing is doubled, all is retried.

Tables, a master, an outbox and a SQLite file are of one host. In each round all four change, a run
of each is asked for, and the worker is killed with all of its processes at a random moment.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from replica_platform.backup import backups, restore
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox
from replica_platform.replica import Master, NothingPublished, ReplicaReader, ReplicaUnavailable
from replica_platform_tests.faults.cluster_hosts import (
    OUTBOX,
    TIMEOUT_S,
    Asking,
    Cluster,
    asking,
    missing,
    wait_until,
)

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(TIMEOUT_S),
]
ENTRIES = [
    OUTBOX.format(host="a"),
    """
type: replica_platform.components.XminTables
attributes: {name: tables, host: a, into: copies, tables: [{table: shop.*}]}
""",
    """
type: replica_platform.components.DuckDBReplica
attributes: {name: sales, host: a, master: sales.duckdb}
""",
    """
type: replica_platform.components.SqliteBackups
attributes: {name: files, host: a, files: [{path: app.db}]}
""",
]
TABLES = ("copies/t0", "copies/t1", "copies/t2", "copies/t3")
PILLARS = {
    "tables": TABLES,
    "sales": ("sales",),
    "records": ("records_a",),
    "files": ("files/app",),
}
# What changes in a round: rows of each table, of the master and of the file, and records.
ROWS, RECORDS = 150_000, 30_000
RETRIED_WITHIN_S = 150.0


class Host:
    """What the pillars of host a hold, and what their readers see.

    Args:
        cluster: Its cluster, whose target is the source too.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.folder / "a"
        (self.folder / "outbox").mkdir(parents=True)
        self.rounds = 0
        with psycopg.connect(cluster.target, autocommit=True) as source:
            source.execute("create schema shop")
            for table in TABLES:
                name = table.partition("/")[2]
                source.execute(f"create table shop.{name} (id int primary key, round int)")  # type: ignore[arg-type]

    def change(self) -> None:
        """Write another round of rows into everything."""
        self.rounds += 1
        low, high = (self.rounds - 1) * ROWS // 2, (self.rounds - 1) * ROWS // 2 + ROWS
        with psycopg.connect(self.cluster.target, autocommit=True) as source:
            for table in TABLES:
                name = table.partition("/")[2]
                source.execute(
                    f"insert into shop.{name} select i, {self.rounds} "  # type: ignore[arg-type]
                    f"from generate_series({low}, {high - 1}) i "
                    "on conflict (id) do update set round = excluded.round"
                )
        with Master(self.folder / "sales.duckdb").write() as master:
            master.execute("create table if not exists sale (round int, piece varchar)")
            master.execute(
                f"insert into sale select {self.rounds}, md5(random()::varchar) from range({ROWS})"
            )
        with Outbox(self.folder / "outbox" / "worker-1.db") as outbox:
            outbox.append_many("sale", [{"r": self.rounds, "n": n} for n in range(RECORDS)])
        with closing(sqlite3.connect(self.folder / "app.db")) as file, file:
            file.execute("create table if not exists note (round int, text text)")
            file.executemany("insert into note values (?, 'x')", [(self.rounds,)] * ROWS)

    def lacking(self) -> list[str]:
        """The pillars whose readers do not see every row of every round, once."""
        seen = {
            "tables": all(self._table_is_equal(name.partition("/")[2]) for name in TABLES),
            "sales": self._published() == dict.fromkeys(range(1, self.rounds + 1), ROWS),
            "records": self._delivered() == (RECORDS * self.rounds, RECORDS * self.rounds),
            "files": self._restored() == dict.fromkeys(range(1, self.rounds + 1), ROWS),
        }
        return [pillar for pillar, complete in seen.items() if not complete]

    def _table_is_equal(self, name: str) -> bool:
        there = f"select id, round from shop.{name}"
        here = f"select id, round from copies.{name}"
        try:
            (found,) = self.cluster.query(
                self.cluster.target,
                f"select (select count(*) from (({there} except all {here}) union all "
                f"({here} except all {there})) x)",
            )
        except psycopg.errors.UndefinedTable:
            return False
        return found == (0,)

    def _published(self) -> dict[int, int]:
        try:
            with ReplicaReader(self.folder / "replica" / "sales") as reader:
                return dict(reader.query("select round, count(*) from sale group by round"))
        except (NothingPublished, ReplicaUnavailable):
            return {}

    def _delivered(self) -> tuple[int, int]:
        try:
            (found,) = self.cluster.query(
                self.cluster.target, "select count(*), count(distinct payload) from outbox.record"
            )
        except psycopg.errors.UndefinedTable:
            return (0, 0)
        return found

    def _restored(self) -> dict[int, int]:
        newest = next((b for b in backups(self.folder / "backups" / "files") if b.ok), None)
        if newest is None:
            return {}
        copy = self.cluster.folder / "restored.db"
        copy.unlink(missing_ok=True)
        restore(newest.file, copy)
        with closing(sqlite3.connect(copy)) as file:
            return dict(file.execute("select round, count(*) from note group by round"))


def test_a_host_that_is_killed_in_mid_run_of_each_pillar(
    clusters: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, torture: bool
) -> None:
    cluster = clusters("own", entries=ENTRIES)
    host = Host(cluster)
    cluster.start_all("a", processes=4)
    wanted, dice = (20 if torture else 1), random.Random(1)
    killed, unfinished = Counter(dict.fromkeys(PILLARS, 0)), Counter[str]()
    with asking(cluster, monkeypatch) as ask:
        while min(killed.values()) < wanted:
            assert host.rounds < 3 * wanted, killed
            host.change()
            under_way, lacking = kill_in_mid_run(host, ask, dice.random())
            killed.update(under_way)
            unfinished.update(lacking)
            assert host.lacking() == [], host.rounds
    print(
        f"host killed {host.rounds} times: runs under way {dict(killed)}, not complete at the kill "
        f"{dict(unfinished)}; nothing lost, nothing doubled after the retries"
    )
    # The control: without the retries, readers lack what the killed runs had not done.
    assert sum(unfinished.values()) > 0


def kill_in_mid_run(host: Host, ask: Asking, after_s: float) -> tuple[list[str], list[str]]:
    """Kill the worker; return the pillars whose run was under way, and those not complete then."""
    cluster = host.cluster
    runs = {pillar: ask.launch(*assets, checks=True) for pillar, assets in PILLARS.items()}
    begun = {"STARTED", "SUCCESS"}
    wait_until(
        lambda: all(ask.status(run) in begun for run in runs.values()),
        "every run has begun",
        cluster.log("worker_a"),
    )
    time.sleep(after_s)
    cluster.kill("worker_a")
    under_way = [pillar for pillar, run in runs.items() if ask.status(run) == "STARTED"]
    lacking = host.lacking()
    cluster.start_worker("a", processes=4)
    for run in runs.values():
        ask.wait_until_done(run, RETRIED_WITHIN_S)
    return under_way, lacking
