"""A server that ends a sync is named in the error; settings that would end one are pinned."""

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import TableSpec, sync, sync_group
from replica_platform.xmin.errors import (
    CannotSync,
    MissingGrant,
    SourceInterrupted,
    TargetInterrupted,
)
from replica_platform_tests.xmin.helpers import execute, rows

# Ends the sync's sessions in a database, from a trigger or a view that the sync uses.
KILL = """create function {} returns {} language plpgsql as $$ begin
    perform pg_terminate_backend(pid) from pg_stat_activity
    where application_name = 'replica_platform xmin' and datname = '{}';
    perform pg_sleep(0.1);
    {} end $$"""
TABLE = "create table t (id int primary key, x int)"


def killing_trigger(target: str, database: str, event: str) -> None:
    execute(
        target,
        KILL.format("kill()", "trigger", database, "return null;"),
        f"create trigger kill after {event} on t execute function kill()",
    )


def test_a_target_interrupted_while_committing_is_named(source: str, target: str) -> None:
    execute(source, TABLE, "insert into t values (1, 1)")
    execute(target, TABLE)
    killing_trigger(target, "xmin_target", "insert")
    with pytest.raises(TargetInterrupted, match="terminating connection"):
        sync(source, target, "t")
    group = sync_group(source, target, [TableSpec("t")], atomic=True)
    assert not group.reports
    assert "The target interrupted the sync" in group.failures["public.t"]
    execute(target, "drop trigger kill on t")
    assert sync(source, target, "t").rows == 1


def test_a_source_interrupted_while_committing_is_named(source: str, target: str) -> None:
    """Not the target: on a standby, a sync is run again only when the source ended it."""
    execute(source, TABLE, "insert into t values (1, 1), (2, 2)")
    sync(source, target, "t")
    killing_trigger(target, "xmin_source", "update")
    execute(source, "update t set x = 3 where id = 1", "delete from t where id = 2")
    with pytest.raises(SourceInterrupted, match="The source interrupted the sync"):
        sync(source, target, "t", deletes="keys")
    execute(target, "drop trigger kill on t")
    assert sync(source, target, "t").rows_deleted == 1


def test_a_target_interrupted_during_a_copy_is_named(source: str, target: str) -> None:
    execute(
        source,
        KILL.format("kill()", "boolean", "xmin_target", "return true;"),
        "create view v as select i as id from generate_series(1, 3) i where public.kill()",
    )
    with pytest.raises(TargetInterrupted, match="The target interrupted the sync"):
        sync(source, target, "v", workers=1)


def test_rows_refused_at_the_end_fail_the_whole_transaction(source: str, target: str) -> None:
    execute(source, TABLE, "insert into t values (1, 7), (2, 7)")
    execute(source, "create table u (id int primary key)")
    execute(
        target, "create table t (id int primary key, x int unique deferrable initially deferred)"
    )
    with pytest.raises(CannotSync, match="duplicate key"):
        sync(source, target, "t")
    group = sync_group(source, target, [TableSpec("t"), TableSpec("u")], atomic=True)
    assert not group.reports
    assert "duplicate key" in group.failures["public.t"]
    alone = sync_group(source, target, [TableSpec("t"), TableSpec("u")])
    assert (list(alone.reports), list(alone.failures)) == (["public.u"], ["public.t"])


@contextmanager
def setting(dsn: str, name: str, value: str) -> Iterator[None]:
    """Change a setting of the database for the block, as an administrator does."""
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    execute(dsn, f"alter database {database} set {name} = '{value}'")
    try:
        yield
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("set default_transaction_read_only = off")
            connection.execute(f"alter database {database} reset {name}")  # type: ignore[arg-type]


@contextmanager
def locked_for(dsn: str, table: str, seconds: float) -> Iterator[None]:
    """Lock a table from another session, so that the sync has to wait."""
    held = threading.Event()

    def hold() -> None:
        with psycopg.connect(dsn) as other:
            other.execute("set transaction_timeout = 0")
            other.execute(f"lock table {table} in access exclusive mode")  # type: ignore[arg-type]
            held.set()
            time.sleep(seconds)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        yield
    finally:
        holder.join()


@pytest.mark.parametrize("name", ["idle_session_timeout", "transaction_timeout"])
def test_a_server_s_timeouts_do_not_end_a_sync(source: str, target: str, name: str) -> None:
    execute(source, TABLE, "insert into t values (1, 1)")
    with setting(source, name, "200ms"), setting(target, name, "200ms"):
        with locked_for(source, "t", 0.6):
            assert sync(source, target, "t").rows == 1
        execute(source, "insert into t values (2, 2)")
        with locked_for(source, "t", 0.6):
            assert sync(source, target, "t").rows == 2


def test_a_setting_that_a_server_does_not_know_is_skipped(source: str, sixteen: Server) -> None:
    """Version 16 has no transaction_timeout."""
    execute(source, TABLE, "insert into t values (1, 1)")
    assert sync(source, sixteen.dsn("target"), "t", into="skipped").rows == 1


def test_a_target_that_is_read_only_by_default_is_written(source: str, target: str) -> None:
    execute(source, TABLE, "insert into t values (1, 1)")
    with setting(target, "default_transaction_read_only", "on"):
        assert sync(source, target, "t").rows == 1


def test_rows_that_a_policy_hides_in_the_target_are_an_error(
    source: str, target: str, server: Server
) -> None:
    """A silent filter would make them look absent."""
    execute(source, TABLE, "insert into t values (1, 1), (2, 2)")
    with suppress(psycopg.errors.DuplicateObject):
        execute(target, "create role hidden_from login")
    execute(
        target,
        "grant all on database xmin_target to hidden_from",
        "grant all on schema public to hidden_from",
    )
    role = server.dsn("xmin_target").replace("postgres@", "hidden_from@")
    try:
        sync(source, role, "t")
        execute(
            target,
            "alter table t enable row level security",
            "alter table t force row level security",
            "create policy low on t using (id < 2) with check (true)",
        )
        execute(source, "delete from t where id = 2")
        with pytest.raises((CannotSync, MissingGrant), match="row-level security"):
            sync(source, role, "t")
        execute(target, "alter table t no force row level security")
        assert sync(source, role, "t").rows_deleted == 1
    finally:
        execute(target, "drop owned by hidden_from cascade", "drop role hidden_from")


def test_a_sync_works_with_more_than_1024_open_files(source: str, target: str) -> None:
    execute(source, TABLE, "insert into t values (1, 1)")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    opened: list[int] = []
    try:
        while not opened or opened[-1] < 1100:
            opened.append(os.dup(0))
        assert sync(source, target, "t").rows == 1
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_bad_snapshot_of_a_worker_is_translated(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source ends the session that holds the snapshot, before a worker has joined it."""
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 100) from generate_series(1, 5000) i",
    )
    killed: list[Any] = []

    def kill(*_: object) -> None:
        if not killed:
            query = """select pg_terminate_backend(pid) from pg_stat_activity
                where application_name = 'replica_platform xmin' and datname = 'xmin_source'"""
            killed.extend(rows(source, query))

    with pytest.raises(SourceInterrupted):
        sync(source, target, "t", workers=2, batch_bytes=65536, progress=kill)
    assert sync(source, target, "t").rows == 5000
