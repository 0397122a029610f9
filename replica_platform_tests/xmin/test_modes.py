"""What has no xmin or no key is copied in full or by timestamp, and the report says why."""

from typing import Any

import psycopg
import pytest

from replica_platform.xmin import TableSpec, session, sync, sync_group
from replica_platform.xmin.errors import CannotSync, NoSuchTable
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


def test_impossible_wishes_are_refused_in_words(source: str, target: str) -> None:
    execute(source, "create table t (a int)")
    with pytest.raises(CannotSync, match="no primary key"):
        sync(source, target, "t", mode="scan")
    with pytest.raises(CannotSync, match="There is no mode 'fast'"):
        sync(source, target, "t", mode="fast")
    with pytest.raises(NoSuchTable, match=r"no table public\.absent"):
        sync(source, target, "absent")


def test_a_failed_table_fails_alone(source: str, target: str) -> None:
    execute(source, "create table a (id int primary key)", "create table b (id int primary key)")
    report = sync_group(source, target, [TableSpec("a"), TableSpec("absent"), TableSpec("b")])
    assert list(report.reports) == ["a", "b"]
    assert list(report.failures) == ["absent"]
    assert not report.ok


def test_an_atomic_group_is_all_or_nothing(source: str, target: str) -> None:
    execute(source, "create table a (id int primary key)")
    report = sync_group(source, target, [TableSpec("a"), TableSpec("absent")], atomic=True)
    assert not report.reports
    assert rows(target, "select to_regclass('a') is null") == [(True,)]


def test_a_locked_table_fails_alone(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session._PINNED, "lock_timeout", "200ms")
    execute(source, "create table a (id int primary key)", "create table b (id int primary key)")
    with psycopg.connect(source) as other:
        other.execute("lock table a in access exclusive mode")
        group = sync_group(source, target, [TableSpec("a"), TableSpec("b")])
    assert list(group.reports) == ["b"]
    assert "stayed locked on the source" in group.failures["a"]
