"""Writers that change a source as real ones do, and naive copiers that run beside them.

The tables: `ledger` (rows only), `parted` (leaves come and go), `plain` (TRUNCATE, VACUUM FULL,
ALTER). The checks belong to the tests.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

SETUP = [
    "create table ledger (id bigint primary key, v text, n int)",
    "create table plain (id bigint primary key, v text, n int)",
    "create table parted (id bigint primary key, v text, n int) partition by range (id)",
    *(
        f"create table leaf{i} partition of parted for values from ({i}000) to ({i + 1}000)"
        for i in range(4)
    ),
    "insert into ledger select i, 'start', 0 from generate_series(1, 2000) i",
    "insert into plain select i, 'start', 0 from generate_series(1, 2000) i",
    "insert into parted select i, 'start', 0 from generate_series(0, 3999, 4) i",
]
TABLES = ("ledger", "plain", "parted")


class Writers:
    """Threads that write until they are stopped, and count what they did.

    A `pace` of 2 leaves twice as much time between two definitions.
    """

    def __init__(
        self, dsn: str, count: int = 8, ddl: bool = True, seed: int = 1, pace: float = 1.0
    ) -> None:
        self.dsn = dsn
        self._pace = pace
        self.stop = threading.Event()
        self.transactions = 0
        self.definitions = 0
        self._threads = [
            threading.Thread(target=self._write, args=(random.Random(seed + i),))
            for i in range(count)
        ]
        if ddl:
            self._threads.append(threading.Thread(target=self._define, args=(random.Random(seed),)))

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, dice: random.Random) -> None:
        while not self.stop.is_set():
            # A killed server, a lock timeout, an existing key, a detached leaf.
            # (A rollback that was asked for on a lost connection leaves its transaction.)
            lost = suppress(psycopg.Error, psycopg.Rollback)
            with lost, psycopg.connect(self.dsn, autocommit=True) as connection:
                connection.execute("set lock_timeout = '1s'")
                connection.execute("set deadlock_timeout = '20ms'")
                mode = dice.choice(["on", "off"])
                connection.execute(f"set synchronous_commit = {mode}")  # type: ignore[arg-type]
                while not self.stop.is_set():
                    self._transaction(connection, dice)
            time.sleep(0.01)

    def _transaction(self, connection: psycopg.Connection, dice: random.Random) -> None:
        with suppress(psycopg.errors.IntegrityError, psycopg.errors.LockNotAvailable,
                      psycopg.errors.DeadlockDetected), connection.transaction():  # fmt: skip
            for _ in range(dice.randint(1, 4)):
                change(connection, dice)
                if dice.random() < 0.3:
                    force = dice.random() < 0.4
                    with connection.transaction(force_rollback=force):
                        change(connection, dice)
                        with connection.transaction():
                            change(connection, dice)
            if dice.random() < 0.03:
                time.sleep(dice.random() * 0.3)
            if dice.random() < 0.1:
                raise psycopg.Rollback
        self.transactions += 1

    def _define(self, dice: random.Random) -> None:
        columns = 0
        while not self.stop.is_set():
            time.sleep(self._pace * (0.1 + dice.random() * 0.3))
            leaf = f"leaf{dice.randrange(4)}"
            low = leaf[-1]
            choices = [
                ["vacuum full plain"],
                ["vacuum (freeze) ledger"],
                ["truncate plain"],
                [f"truncate {leaf}"],
                [f"alter table parted detach partition {leaf}", f"update {leaf} set v = 'away'",
                 f"alter table parted attach partition {leaf} "
                 f"for values from ({low}000) to ({int(low) + 1}000)"],
                [f"alter table {dice.choice(['plain', 'parted'])} add column c{columns} int "
                 f"default {columns}"],
                ["alter table plain alter n type bigint", "alter table plain alter n type int"],
                ["cluster ledger using ledger_pkey"],
            ]  # fmt: skip
            statements = dice.choice(choices)
            if " add column " in statements[0]:
                if columns >= 6:
                    continue
                columns += 1
            for statement in statements:
                self._until_done(statement, dice)

    def _until_done(self, statement: str, dice: random.Random) -> None:
        """Repeat a statement until it works: a detached leaf must be attached again."""
        for _ in range(200):
            with suppress(psycopg.Error), psycopg.connect(self.dsn, autocommit=True) as connection:
                connection.execute("set lock_timeout = '100ms'")
                connection.execute(statement)  # type: ignore[arg-type]
                self.definitions += 1
                return
            time.sleep(0.02 + dice.random() * 0.05)


def change(connection: psycopg.Connection, dice: random.Random) -> None:
    """Change one row of one of the tables."""
    table = dice.choice(TABLES)
    row = dice.randrange(4000)
    value = f"{dice.random():.6f}"
    kind = dice.random()
    if kind < 0.35:
        query = (
            f"insert into {table} values (%s, %s, 1) "
            f"on conflict (id) do update set v = excluded.v, n = {table}.n + 1"
        )
        connection.execute(query, [row, value])  # type: ignore[arg-type]
    elif kind < 0.75:
        query = f"update {table} set v = %s, n = n + 1 where id = %s"
        connection.execute(query, [value, row])  # type: ignore[arg-type]
    elif kind < 0.9:
        connection.execute(f"delete from {table} where id = %s", [row])  # type: ignore[arg-type]
    else:
        query = (
            f"update {table} set id = %s, v = %s where id = %s "
            f"and not exists (select from {table} where id = %s)"
        )
        other = dice.randrange(4000)
        connection.execute(query, [other, value, row, other])  # type: ignore[arg-type]


class Naive:
    """A copier of `ledger` that asks for new rows as published tools do; its target is a dict."""

    def __init__(self, dsn: str, name: str, cycle: Callable[["Naive", Any], None]) -> None:
        self.name = name
        self.rows: dict[int, tuple[Any, ...]] = {}
        self.bound = -1
        self.cycles = 0
        self._dsn = dsn
        self._cycle = cycle

    def once(self) -> None:
        """Sync once."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            self._cycle(self, connection)
        self.cycles += 1

    def take(self, connection: Any, predicate: str, *values: int) -> list[int]:
        """Upsert the rows that meet a predicate; return their raw xmins."""
        query = f"select xmin::text::bigint, id, v, n from ledger where {predicate}"
        found = connection.execute(query, values).fetchall()
        for _, key, *rest in found:
            self.rows[key] = tuple(rest)
        return [xmin for xmin, *_ in found]

    @contextmanager
    def running(self, stop: threading.Event) -> Iterator[None]:
        """Sync in a loop beside the writers."""

        def loop() -> None:
            while not stop.is_set():
                self.once()
                time.sleep(0.05)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def past_the_highest_seen(naive: Naive, connection: Any) -> None:
    """Read `xmin > max(xmin)`, as recipes for many tools do."""
    seen = naive.take(connection, "xmin::text::bigint > %s", naive.bound)
    naive.bound = max([naive.bound, *seen])


def up_to_the_current_xid(naive: Naive, connection: Any) -> None:
    """Read from the last `txid_current()` on."""
    now = connection.execute("select txid_current()").fetchone()[0]
    naive.take(connection, "xmin::text::bigint >= %s", naive.bound)
    naive.bound = now


def watermark_after_the_scan(naive: Naive, connection: Any) -> None:
    """Read from the right watermark on, but take the next one after the scan, which takes time."""
    naive.take(connection, "xmin::text::bigint >= %s", naive.bound)
    time.sleep(0.4)
    query = "select pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    naive.bound = connection.execute(query).fetchone()[0]


NAIVE: dict[str, Callable[[Naive, Any], None]] = {
    "xmin > max(xmin)": past_the_highest_seen,
    "txid_current()": up_to_the_current_xid,
    "W read after the scan": watermark_after_the_scan,
}
