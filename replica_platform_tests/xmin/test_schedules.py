"""Generated schedules: after every sync the target equals what the source has committed.

The control takes the source's next xid as W, as many tools do, and must be found wrong.
"""

import os
from collections import Counter
from contextlib import suppress
from typing import Any, ClassVar

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

from replica_platform.xmin import TableSpec, sync_group, validate
from replica_platform_tests.xmin.helpers import execute, rows

TABLES = ("plain", "parted")
LEAVES = {"leaf0": (0, 4), "leaf1": (4, 8)}
MOST_COLUMNS = 4
TORTURE = "REPLICA_TORTURE" in os.environ

tables = st.sampled_from(TABLES)
keys = st.integers(0, 7)
values = st.integers(0, 99)
opened = precondition(lambda machine: machine.open)
closed = precondition(lambda machine: not machine.open)


class Schedule(RuleBasedStateMachine):
    """A writer that commits at once, a transaction that stays open, definitions, and syncs."""

    source: str
    target: str
    mode = "auto"
    syncs = 0
    steps = 0
    modes: ClassVar[Counter[str]] = Counter()

    @initialize()
    def begin(self) -> None:
        for dsn in (self.source, self.target):
            execute(
                dsn,
                "drop schema if exists replica_platform cascade",
                "drop table if exists plain, parted, leaf0, leaf1",
            )
        execute(
            self.source,
            "create table plain (id int primary key, v int)",
            "create table parted (id int primary key, v int) partition by range (id)",
            *(f"create table {leaf} (id int primary key, v int)" for leaf in LEAVES),
        )
        self.fast = psycopg.connect(self.source, autocommit=True)
        self.slow = psycopg.connect(self.source, autocommit=True)
        for connection in (self.fast, self.slow):
            connection.execute("set lock_timeout = '10ms'")
        self.open = False
        self.savepoints = 0
        self.columns = 0
        self.attached: set[str] = set()
        for leaf in LEAVES:
            self.attach(leaf)

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

    @rule(table=tables, key=keys, value=values, late=st.booleans())
    def insert(self, table: str, key: int, value: int, late: bool) -> None:
        self.write(late, f"insert into {table} (id, v) values (%s, %s)", key, value)

    @rule(table=tables, key=keys, value=values, late=st.booleans())
    def update(self, table: str, key: int, value: int, late: bool) -> None:
        self.write(late, f"update {table} set v = %s where id = %s", value, key)

    @rule(table=tables, key=keys, late=st.booleans())
    def delete(self, table: str, key: int, late: bool) -> None:
        self.write(late, f"delete from {table} where id = %s", key)

    @rule(table=tables, key=keys, other=keys, late=st.booleans())
    def change_key(self, table: str, key: int, other: int, late: bool) -> None:
        self.write(late, f"update {table} set id = %s where id = %s", other, key)

    @rule(table=st.sampled_from(["plain", "leaf0", "leaf1"]))
    def truncate(self, table: str) -> None:
        self.write(False, f"truncate {table}")

    @rule(table=st.sampled_from(["plain", "leaf0", "leaf1"]))
    def rewrite(self, table: str) -> None:
        self.write(False, f"vacuum full {table}")

    @rule(table=tables, value=st.none() | values)
    def add_column(self, table: str, value: int | None) -> None:
        if self.columns < MOST_COLUMNS:
            self.columns += 1
            default = f"default {value}" if value is not None else ""
            self.write(False, f"alter table {table} add column c{self.columns} int {default}")

    @rule(leaf=st.sampled_from(sorted(LEAVES)))
    @closed
    def attach(self, leaf: str) -> None:
        """Attach a leaf with the columns added since, or detach it where it is attached."""
        if leaf in self.attached:
            self.fast.execute(f"alter table parted detach partition {leaf}")  # type: ignore[arg-type]
            self.attached.remove(leaf)
            return
        missing = self.fast.execute(
            "select attname from pg_attribute a where attrelid = 'parted'::regclass and attnum > 0 "
            "and not exists (select from pg_attribute l where l.attrelid = %s::regclass "
            "and l.attname = a.attname)",
            [leaf],
        )
        for (column,) in missing.fetchall():
            self.fast.execute(f"alter table {leaf} add column {column} int")  # type: ignore[arg-type]
        low, high = LEAVES[leaf]
        self.fast.execute(  # type: ignore[call-overload]
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

    @rule()
    def sync(self) -> None:
        """Sync; what was committed has arrived, and neither side sees what is open."""
        type(self).syncs += 1
        specs = [TableSpec(table, mode=self.mode) for table in TABLES]
        group = sync_group(self.source, self.target, specs)
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


def run(machine: type[Schedule], source: str, target: str, examples: int, *phases: Phase) -> None:
    """Run schedules: the same ones each time, in the long form other ones."""
    machine.source, machine.target, machine.syncs, machine.steps = source, target, 0, 0
    machine.modes = Counter()
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
        f"\n{examples} schedules, {machine.steps} changes, {machine.syncs} syncs compared, tables "
        f"by mode {dict(machine.modes)}"
    )


@pytest.mark.timeout(1800)
def test_every_sync_is_right(source: str, target: str, torture: bool) -> None:
    run(Schedule, source, target, 400 if torture else 30)


@pytest.mark.timeout(1800)
def test_every_sync_by_blocks_is_right(source: str, target: str, torture: bool) -> None:
    run(BlockSchedule, source, target, 400 if torture else 20)
    assert BlockSchedule.modes["blocks"] > BlockSchedule.modes["scan"]


@pytest.mark.timeout(600)
def test_the_control_fails(source: str, target: str, torture: bool) -> None:
    NaiveSchedule.source, NaiveSchedule.target = source, target
    with pytest.raises(AssertionError, match="plain"):
        a_late_update(NaiveSchedule())
    Schedule.source, Schedule.target = source, target
    a_late_update(Schedule())
    if torture:  # by chance, too
        with pytest.raises(AssertionError):
            run(NaiveSchedule, source, target, 400, Phase.generate)


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
