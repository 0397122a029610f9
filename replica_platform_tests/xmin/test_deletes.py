"""Deletes are exact and limited, and never remove a live row."""

import psycopg
import pytest

from replica_platform.xmin import sync
from replica_platform.xmin.errors import TooManyDeletes
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def table(source: str, target: str) -> None:
    execute(
        source,
        'create table t (a text collate "C", b int, x text, primary key (a, b))',
        "insert into t select 'k' || i, i, 'x' from generate_series(1, 3000) i",
        "insert into t values ('_x', 1), ('A', 1), ('a', 1), ('ä', 1), ('B', 1), ('-1', 1)",
    )
    sync(source, target, "t")


QUERY = "select a, b, x from t order by a, b"


def test_exactly_the_deleted_keys_are_deleted(source: str, target: str, table: None) -> None:
    execute(source, "delete from t where b % 100 = 7", "update t set b = 2 where a = 'ä'")
    report = sync(source, target, "t")
    assert (report.rows_deleted, report.rows_inserted) == (31, 1)
    assert rows(source, QUERY) == rows(target, QUERY)


def test_deletes_never_keeps_them(source: str, target: str, table: None) -> None:
    execute(source, "delete from t where b = 7")
    assert sync(source, target, "t", deletes="never").rows_deleted == 0
    assert sync(source, target, "t").rows_deleted == 1


def test_too_many_are_refused_unless_allowed(source: str, target: str, table: None) -> None:
    execute(source, "delete from t where b > 100")
    with pytest.raises(TooManyDeletes, match=r"2,900 of 3,006 rows of public\.t"):
        sync(source, target, "t")
    assert rows(target, "select count(*) from t") == [(3006,)]
    assert sync(source, target, "t", max_delete_fraction=1.0).rows_deleted == 2900


def test_a_truncate_is_followed_without_limit(source: str, target: str, table: None) -> None:
    execute(source, "truncate t")
    assert sync(source, target, "t").rows_deleted == 3006


def test_the_wrong_order_would_delete_live_rows(source: str, target: str, table: None) -> None:
    """The control: source keys first, then the target's, loses the rows that came in between."""
    early = set(rows(source, "select a, b from t"))
    execute(source, "insert into t values ('new', 1)")
    sync(source, target, "t")
    late = set(rows(target, "select a, b from t"))
    assert late - early == {("new", 1)}  # the naive order would delete this live row

    execute(source, "delete from t where b = 5")
    sync(source, target, "t")
    assert rows(target, "select count(*) from t where a = 'new'") == [(1,)]
    assert rows(source, QUERY) == rows(target, QUERY)


def test_a_row_inserted_while_deletes_are_sought_is_kept(
    source: str, target: str, table: None
) -> None:
    with psycopg.connect(source) as slow:
        slow.execute("insert into t values ('slow', 1)")
        execute(source, "delete from t where b = 9")
        assert sync(source, target, "t").rows_deleted == 1
    assert sync(source, target, "t").rows_inserted == 1
    assert rows(source, QUERY) == rows(target, QUERY)


def test_rows_lost_in_the_target_are_found_and_repaired(
    source: str, target: str, table: None
) -> None:
    execute(target, "delete from t where b = 3", "update replica_platform.mark set rows = rows - 1")
    report = sync(source, target, "t")
    assert report.mode == "full"
    assert "somebody has written to it" in report.why
    assert report.rows_inserted == 1
    assert rows(source, QUERY) == rows(target, QUERY)


def test_keys_are_compared_where_the_counts_are_equal(
    source: str, target: str, table: None
) -> None:
    """One row lost in the target and one deleted in the source: equal counts satisfy `auto`."""
    execute(target, "delete from t where b = 3")
    execute(source, "delete from t where b = 4")
    execute(target, "update replica_platform.mark set rows = rows - 1")
    assert sync(source, target, "t").rows_deleted == 0  # the control
    report = sync(source, target, "t", deletes="keys")
    assert (report.rows_deleted, report.rows_inserted) == (1, 1)
    assert rows(source, QUERY) == rows(target, QUERY)
