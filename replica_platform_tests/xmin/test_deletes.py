"""Deletes are exact and limited, and never remove a live row."""

import psycopg
import pytest

from replica_platform.xmin import sync, validate
from replica_platform.xmin.errors import TooManyDeletes
from replica_platform_tests.xmin.helpers import execute, rows

# As after a failover: W cannot be trusted, and both sides are hashed.
PROMOTED = """update replica_platform.mark set
    identity = jsonb_set(identity, '{timeline}', '7'), w = w + 1000, next = next + 1000"""


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


@pytest.mark.parametrize(
    ("kind", "wider", "value"),
    [
        ("char(6)", "text", "lpad(i::text, 4, 'k')"),
        ("date", "timestamp", "date '2020-01-01' + i"),
        ("numeric(9,2)", "numeric(12,4)", "i"),
        ("char(6)[]", "text[]", "array[lpad(i::text, 4, 'k')]"),
    ],
)
def test_a_key_that_is_wider_in_the_target_is_compared_in_its_type_there(
    kind: str, wider: str, value: str, source: str, target: str
) -> None:
    """Text of a char(6) has its blanks, and text of the same value as text has none."""
    execute(
        source,
        f"create table t (k {kind}, b int, x {kind}, primary key (k, b))",
        f"insert into t select {value}, i, {value} from generate_series(1, 1500) i",
    )
    execute(target, f"create table t (k {wider}, b int, x {wider}, primary key (k, b))")
    sync(source, target, "t")
    for _ in range(2):
        execute(source, "delete from t where b in (select b from t order by b limit 3)")
        assert sync(source, target, "t").rows_deleted == 3
    assert validate(source, target, "t").in_sync
    execute(target, "delete from t where b = 10")
    found = validate(source, target, "t")
    assert (found.missing_count, found.stale_count, found.extra_count) == (1, 0, 0)
    execute(target, PROMOTED)
    report = sync(source, target, "t")
    assert "compared by hashes" in report.why
    assert report.rows_read < 500
    assert validate(source, target, "t").in_sync
    assert rows(target, "select count(*) from t") == [(1494,)]


@pytest.mark.parametrize("rewrite", ["vacuum full t", "cluster t using t_pkey"])
def test_a_rewritten_table_that_lost_most_rows_is_refused(
    rewrite: str, source: str, target: str, table: None
) -> None:
    """A rewrite gives a new filenode, as TRUNCATE does, but nobody has meant the deletes."""
    execute(source, "delete from t where b > 10", rewrite, "insert into t values ('new', 0)")
    with pytest.raises(TooManyDeletes, match=r"2,990 of 3,00\d rows of public\.t"):
        sync(source, target, "t")
    assert rows(target, "select count(*) from t where b > 10") == [(2990,)]
    assert sync(source, target, "t", max_delete_fraction=1.0).rows_deleted == 2990
    assert rows(source, QUERY) == rows(target, QUERY)


def test_a_truncate_with_rows_after_it_is_followed_without_limit(
    source: str, target: str, table: None
) -> None:
    execute(source, "truncate t", "insert into t values ('new', 0), ('k5', 5)", "vacuum full t")
    assert sync(source, target, "t").rows_deleted == 3005
    assert rows(source, QUERY) == rows(target, QUERY)
