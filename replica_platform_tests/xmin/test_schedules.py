"""Generated schedules: after every sync the target equals what the source has committed.

Two sources, one of which crashes and loses what it had not flushed; syncs go straight to the
servers or through pgbouncer in session mode. The control takes the source's next xid as W, as many
tools do, and must be found wrong.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, ClassVar, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from replica_platform.app.embedded import Server
from replica_platform.xmin import TableSpec, TargetTaken, sync, sync_group, validate
from replica_platform_tests.faults.xmin_servers import kill_9, own_server
from replica_platform_tests.xmin.helpers import execute, rows
from replica_platform_tests.xmin.test_pooler import PGBOUNCER, pooling

TABLES = ("plain", "parted")
LEAVES = {"leaf0": (0, 4), "leaf1": (4, 8)}
MOST_COLUMNS = 4
TORTURE = "REPLICA_TORTURE" in os.environ
# How many schedules, in parts that are tests of their own.
SCHEDULES = int(os.environ.get("REPLICA_SCHEDULES", "10000" if TORTURE else "15"))
PART = 500
# The second source has a table of the same name.
OTHER = [
    "drop table if exists plain",
    "create table plain (id int primary key, v int)",
]

tables = st.sampled_from(TABLES)
keys = st.integers(0, 7)
values = st.integers(0, 99)
moves = st.tuples(
    st.sampled_from(["insert", "insert", "update", "delete", "change_key"]),
    *(tables, keys, values, st.booleans()),
)
opened = precondition(lambda machine: machine.open)
closed = precondition(lambda machine: not machine.open)


class Place(NamedTuple):
    """Where the schedules run.

    Attributes:
        server: The server of the source, which crashes.
        source: The source.
        other: The second source, a database of another server.
        target: The target.
        pooled_source: The source through a pooler.
        pooled_target: The target through a pooler.
    """

    server: Server
    source: str
    other: str
    target: str
    pooled_source: str
    pooled_target: str


class Schedule(RuleBasedStateMachine):
    """A writer that commits at once, a transaction that stays open, definitions, and syncs.

    Rows are committed without waiting for the disk, so that a crash of the source loses some;
    definitions wait for it.
    """

    place: Place
    mode = "auto"
    modes: ClassVar[Counter[str]] = Counter()
    syncs = 0
    steps = 0
    crashes = 0

    @initialize()
    def begin(self) -> None:
        self.source, self.target = self.place.source, self.place.target
        for dsn in (self.source, self.target):
            execute(
                dsn,
                "drop schema if exists replica_platform, copy cascade",
                "drop table if exists plain, parted, leaf0, leaf1",
            )
        execute(self.place.other, *OTHER)
        self.has_crashed = False
        execute(
            self.source,
            "create table plain (id int primary key, v int)",
            "create table parted (id int primary key, v int) partition by range (id)",
            *(f"create table {leaf} (id int primary key, v int)" for leaf in LEAVES),
        )
        self.connect()
        self.columns = 0
        self.attached: set[str] = set()
        for leaf in LEAVES:
            self.attach(leaf)

    def connect(self) -> None:
        """Open the two sessions of the writer."""
        self.fast = psycopg.connect(self.source, autocommit=True)
        self.slow = psycopg.connect(self.source, autocommit=True)
        for connection in (self.fast, self.slow):
            connection.execute("set lock_timeout = '10ms'")
            connection.execute("set synchronous_commit = off")
        self.open = False
        self.savepoints = 0

    def write(self, late: bool, statement: str, *arguments: Any) -> None:
        """Run a statement at once or in the open transaction; a failed one is rolled back."""
        type(self).steps += 1
        connection = self.slow if late and self.open else self.fast
        # A row that the other one has locked, a key that exists, a leaf that is detached.
        with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.IntegrityError):
            if connection is self.fast:
                connection.execute(statement, arguments)  # type: ignore[arg-type]
                return
            with connection.transaction():
                connection.execute(statement, arguments)  # type: ignore[arg-type]

    @rule(moves=st.lists(moves, min_size=1, max_size=6))
    def change(self, moves: list[tuple[str, str, int, int, bool]]) -> None:
        """Change some rows, each at once or in the open transaction."""
        for kind, table, key, value, late in moves:
            getattr(self, kind)(table, key, value, late)

    def insert(self, table: str, key: int, value: int, late: bool) -> None:
        self.write(late, f"insert into {table} (id, v) values (%s, %s)", key, value)

    def update(self, table: str, key: int, value: int, late: bool) -> None:
        self.write(late, f"update {table} set v = %s where id = %s", value, key)

    def delete(self, table: str, key: int, _: int, late: bool) -> None:
        self.write(late, f"delete from {table} where id = %s", key)

    def change_key(self, table: str, key: int, value: int, late: bool) -> None:
        self.write(late, f"update {table} set id = %s where id = %s", value % 8, key)

    def define(self, statement: str) -> None:
        """Change a definition, and wait until it would survive a crash."""
        self.fast.execute("set synchronous_commit = on")
        self.write(False, statement)
        self.fast.execute("set synchronous_commit = off")

    @rule(table=st.sampled_from(["plain", "leaf0", "leaf1"]))
    def truncate(self, table: str) -> None:
        self.define(f"truncate {table}")

    @rule(table=st.sampled_from(["plain", "leaf0", "leaf1"]))
    def rewrite(self, table: str) -> None:
        self.define(f"vacuum full {table}")

    @rule(table=tables, value=st.none() | values)
    def add_column(self, table: str, value: int | None) -> None:
        if self.columns < MOST_COLUMNS:
            self.columns += 1
            default = f"default {value}" if value is not None else ""
            self.define(f"alter table {table} add column c{self.columns} int {default}")

    @rule(leaf=st.sampled_from(sorted(LEAVES)))
    @closed
    def attach(self, leaf: str) -> None:
        """Attach a leaf with the columns added since, or detach it where it is attached."""
        if leaf in self.attached:
            self.define(f"alter table parted detach partition {leaf}")
            self.attached.remove(leaf)
            return
        missing = self.fast.execute(
            "select attname from pg_attribute a where attrelid = 'parted'::regclass and attnum > 0 "
            "and not exists (select from pg_attribute l where l.attrelid = %s::regclass "
            "and l.attname = a.attname)",
            [leaf],
        )
        for (column,) in missing.fetchall():
            self.define(f"alter table {leaf} add column {column} int")
        low, high = LEAVES[leaf]
        self.define(
            f"alter table parted attach partition {leaf} for values from ({low}) to ({high})"
        )
        self.attached.add(leaf)

    @rule()
    @closed
    def open_transaction(self) -> None:
        self.slow.execute("begin")
        self.open, self.savepoints = True, 0

    @rule()
    @opened
    def savepoint(self) -> None:
        self.savepoints += 1
        self.slow.execute(f"savepoint s{self.savepoints}")  # type: ignore[arg-type]

    @rule(release=st.booleans())
    @precondition(lambda machine: machine.open and machine.savepoints)
    def end_savepoint(self, release: bool) -> None:
        how = "release" if release else "rollback to"
        self.slow.execute(f"{how} s{self.savepoints}")  # type: ignore[arg-type]
        self.savepoints -= 1

    @rule(how=st.sampled_from(["commit", "commit", "rollback"]))
    @opened
    def end_transaction(self, how: str) -> None:
        self.slow.execute(how)  # type: ignore[arg-type]
        self.open = False

    @rule(chance=st.integers(0, 4))
    @precondition(lambda machine: not machine.has_crashed)
    def crash(self, chance: int) -> None:
        """Kill the source's server, sometimes; what it had not flushed is lost."""
        if chance:
            return
        type(self).crashes += 1
        self.has_crashed = True
        kill_9(self.place.server)
        self.place.server.start()
        self.fast.close()
        self.slow.close()
        self.connect()

    @rule(key=keys, value=values)
    def write_other(self, key: int, value: int) -> None:
        execute(
            self.place.other,
            f"insert into plain values ({key}, {value}) on conflict (id) do update set v = {value}",
        )

    @rule(key=keys)
    def delete_other(self, key: int) -> None:
        execute(self.place.other, f"delete from plain where id = {key}")

    @rule()
    def sync_other(self) -> None:
        """Sync the second source into its own schema; the first one's copy stays as it is."""
        sync(self.place.other, self.target, "plain", into="copy")
        query = "select id, v from {} order by id"
        there = rows(self.place.other, query.format("plain"))
        assert there == rows(self.target, query.format("copy.plain"))

    @rule()
    def mix_up(self) -> None:
        """Sync the second source into the first one's table: refused, where the first one is."""
        if not rows(self.target, "select to_regclass('replica_platform.mark')")[0][0]:
            return
        owned = "select from replica_platform.mark where target_table = 'public.plain'"
        if not rows(self.target, owned):
            return
        before = rows(self.target, "select * from plain order by id")
        with pytest.raises(TargetTaken):
            sync(self.place.other, self.target, "plain")
        assert rows(self.target, "select * from plain order by id") == before

    @rule(moves=st.lists(moves, min_size=1, max_size=6), pooled=st.booleans())
    def change_and_sync(self, moves: list[tuple[str, str, int, int, bool]], pooled: bool) -> None:
        """Change some rows and sync: by chance alone, syncs would be rare among the other rules."""
        self.change(moves)
        self.sync(pooled)

    @rule(pooled=st.booleans())
    def sync(self, pooled: bool = False) -> None:
        """Sync; what was committed has arrived, and neither side sees what is open."""
        type(self).syncs += 1
        place = self.place
        specs = [TableSpec(table, mode=self.mode) for table in TABLES]
        if pooled:
            group = sync_group(place.pooled_source, place.pooled_target, specs)
        else:
            group = sync_group(place.source, place.target, specs)
        assert group.ok, group.failures
        type(self).modes.update(report.mode for report in group.reports.values())
        for table in TABLES:
            columns = ", ".join(name for name, _ in group.reports[f"public.{table}"].columns)
            query = f"select {columns} from {table} order by id"
            assert rows(self.source, query) == rows(self.target, query), table
        assert not any("somebody has written" in one.why for one in group.reports.values())
        self.after_sync()

    def after_sync(self) -> None:
        """Do nothing; the control overrides this."""

    def teardown(self) -> None:
        if not hasattr(self, "open"):
            return
        if self.open:
            self.end_transaction("commit")
        try:
            self.sync()
            assert all(validate(self.source, self.target, table).in_sync for table in TABLES)
            self.sync_other()
        finally:
            self.fast.close()
            self.slow.close()


class BlockSchedule(Schedule):
    """The same by blocks; the target knows where each row lies in the source."""

    mode = "blocks"

    def after_sync(self) -> None:
        for table in TABLES:
            there = "id, tableoid::bigint, (ctid::text::point)[0]::bigint, ctid::text, xmin::text"
            here = (
                "id, source_leaf::bigint, source_block, source_ctid::text, "
                "(source_xmin & 4294967295)::text"
            )
            located = rows(self.source, f"select {there} from {table} order by id")
            assert rows(self.target, f"select {here} from {table} order by id") == located, table


class NaiveSchedule(Schedule):
    """The control: W is the next xid, whatever still runs below it."""

    def after_sync(self) -> None:
        execute(self.target, "update replica_platform.mark set w = next, delivered = '{}'")


@pytest.fixture
def place(server: Server, source: str, target: str) -> Iterator[Place]:
    """A server of its own for the source, so that it can crash, and the poolers."""
    with ExitStack() as stack:
        own = stack.enter_context(own_server())
        first = pooled_source = own.dsn("src")
        pooled_target = target
        if PGBOUNCER is not None:
            pooled_source = stack.enter_context(pooling(own, "session")).dsn(first)
            pooled_target = stack.enter_context(pooling(server, "session")).dsn(target)
        yield Place(own, first, source, target, pooled_source, pooled_target)


def run(machine: type[Schedule], place: Place, examples: int, *phases: Phase) -> None:
    """Run schedules: the same ones each time, in the long form other ones."""
    machine.place, machine.syncs, machine.steps, machine.crashes = place, 0, 0, 0
    machine.modes = Counter()
    began = time.monotonic()
    chosen = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        database=None,
        derandomize=not TORTURE,
        suppress_health_check=list(HealthCheck),
        # Shrinking takes minutes; the long form prints a blob to run instead.
        phases=phases or ((Phase.generate,) if TORTURE else (Phase.generate, Phase.shrink)),
        print_blob=True,
    )
    run_state_machine_as_test(machine, settings=chosen)
    print(
        f"\n{examples} schedules, {machine.steps} changes, {machine.crashes} crashes, "
        f"{machine.syncs} syncs compared in {time.monotonic() - began:.0f} s, tables by mode "
        f"{dict(machine.modes)}"
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(-(-SCHEDULES // PART)))
def test_every_sync_is_right(part: int, place: Place) -> None:
    run(Schedule, place, min(PART, SCHEDULES - part * PART))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(-(-SCHEDULES // PART)))
def test_every_sync_by_blocks_is_right(part: int, place: Place) -> None:
    run(BlockSchedule, place, min(PART, SCHEDULES - part * PART))
    assert BlockSchedule.modes["blocks"] > BlockSchedule.modes["scan"]


@pytest.mark.timeout(600)
def test_the_control_fails(place: Place, torture: bool) -> None:
    NaiveSchedule.place = Schedule.place = place
    with pytest.raises(AssertionError, match="plain"):
        a_late_update(NaiveSchedule())
    a_late_update(Schedule())
    if torture:  # by chance, too
        with pytest.raises(AssertionError):
            run(NaiveSchedule, place, 400, Phase.generate)


def a_late_update(machine: Schedule) -> None:
    """One schedule that the search finds: a row changed below an xid that has been seen."""
    machine.begin()
    try:
        machine.insert("plain", 1, 1, False)
        machine.sync()
        machine.open_transaction()
        machine.update("plain", 1, 2, True)
        machine.insert("plain", 2, 1, False)
        machine.sync()
        machine.end_transaction("commit")
        machine.sync()
    finally:
        machine.fast.close()
        machine.slow.close()
