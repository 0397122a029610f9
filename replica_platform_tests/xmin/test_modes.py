"""Tables without xmin or key are copied in full or by timestamp, and the report says why."""

from typing import Any

import psycopg
import pytest

from replica_platform.xmin import TableSpec, session, sync, sync_group
from replica_platform.xmin.errors import CannotSync, NoSuchTable
from replica_platform.xmin.source import timestamp
from replica_platform_tests.xmin.helpers import execute, rows


def test_a_view_is_copied_in_full(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int)",
        "create view v as select * from t",
        "insert into t values (1)",
    )
    assert sync(source, target, "v").rows == 1
    again = sync(source, target, "v")
    assert again.mode == "full"
    assert "is a view" in again.why
    assert not again.changed


def test_a_view_goes_by_timestamp_when_it_names_a_column(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int, at timestamptz)",
        "create view v as select * from t",
        "insert into t values (1, now() - interval '1 day'), (2, now())",
    )
    how: dict[str, Any] = {"timestamp_column": "at", "key": ["id"]}
    assert sync(source, target, "v", **how).rows == 2
    execute(source, "insert into t values (3, now())", "delete from t where id = 1")
    again = sync(source, target, "v", **how)
    assert again.mode == "timestamp"
    assert (again.rows_read, again.rows_inserted, again.rows_deleted) == (2, 1, 1)


def test_a_row_that_commits_late_is_in_the_look_back(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is older than the newest that was seen; the naive bound misses it for good."""
    monkeypatch.setattr(timestamp, "MARGIN_S", 0)  # a transaction may last longer than any margin
    execute(source, "create table t (id int primary key, at timestamptz default clock_timestamp())")
    how: dict[str, Any] = {"mode": "timestamp", "timestamp_column": "at"}
    with psycopg.connect(source) as slow:
        slow.execute("insert into t values (1)")
        execute(source, "insert into t values (2)")
        assert sync(source, target, "t", **how).rows_inserted == 1
        newest = rows(target, "select max(at)::text from t")[0][0]
    assert rows(source, f"select count(*) from t where at > '{newest}'") == [(0,)]  # the control
    assert sync(source, target, "t", **how).rows_inserted == 1


def test_the_reason_is_logged(source: str, target: str, caplog: pytest.LogCaptureFixture) -> None:
    execute(source, "create table t (id int primary key)")
    with caplog.at_level("INFO", logger="replica_platform.xmin"):
        report = sync(source, target, "t")
    assert f"full, because: {report.why}" in caplog.text


def test_modes_that_cannot_work_are_refused(source: str, target: str) -> None:
    execute(source, "create table t (a int)")
    with pytest.raises(CannotSync, match="no primary key"):
        sync(source, target, "t", mode="scan")
    with pytest.raises(CannotSync, match="There is no mode 'fast'"):
        sync(source, target, "t", mode="fast")
    with pytest.raises(NoSuchTable, match=r"no table public\.absent"):
        sync(source, target, "absent")


def test_a_failed_table_does_not_stop_the_others(source: str, target: str) -> None:
    execute(source, "create table a (id int primary key)", "create table b (id int primary key)")
    report = sync_group(source, target, [TableSpec("a"), TableSpec("absent"), TableSpec("b")])
    assert list(report.reports) == ["public.a", "public.b"]
    assert list(report.failures) == ["public.absent"]
    assert not report.ok


def test_an_atomic_group_is_all_or_nothing(source: str, target: str) -> None:
    execute(source, "create table a (id int primary key)")
    report = sync_group(source, target, [TableSpec("a"), TableSpec("absent")], atomic=True)
    assert not report.reports
    assert rows(target, "select to_regclass('a') is null") == [(True,)]


@pytest.mark.parametrize("atomic", [True, False])
def test_a_failure_at_the_end_rolls_back_only_an_atomic_group(
    source: str, target: str, atomic: bool
) -> None:
    """`a` has been written already when too many deletes of `b` are refused."""
    for name in "ab":
        execute(source, f"create table {name} as select i from generate_series(1, 3000) i",
                f"alter table {name} add primary key (i)")  # fmt: skip
    specs = [TableSpec("a"), TableSpec("b")]
    assert sync_group(source, target, specs, atomic=atomic).ok
    execute(source, "insert into a values (5000)", "delete from b where i > 10")
    marks = "select w from replica_platform.mark where target_table = 'public.a'"
    before = rows(target, marks)
    report = sync_group(source, target, specs, atomic=atomic)
    assert list(report.failures) == ["public.b"]
    assert rows(target, "select count(*) from a") == [(3000 if atomic else 3001,)]
    assert (rows(target, marks) == before) is atomic
    assert rows(target, "select count(*) from b") == [(3000,)]
    assert sync_group(source, target, specs, atomic=atomic, max_delete_fraction=1).ok
    assert rows(target, "select count(*) from a") == [(3001,)]


def test_a_locked_table_does_not_stop_the_others(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session._PINNED, "lock_timeout", "200ms")
    execute(source, "create table a (id int primary key)", "create table b (id int primary key)")
    with psycopg.connect(source) as other:
        other.execute("lock table a in access exclusive mode")
        group = sync_group(source, target, [TableSpec("a"), TableSpec("b")])
    assert list(group.reports) == ["public.b"]
    assert "stayed locked on the source" in group.failures["public.a"]
