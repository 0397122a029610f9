"""Where W cannot be trusted, both sides are hashed and only differing ranges are read."""

import pytest

from replica_platform.xmin import sync, validate
from replica_platform.xmin.errors import TooManyDeletes
from replica_platform_tests.xmin.helpers import execute, rows

QUERY = "select id, x from t order by id"
# What a failover leaves: another identity, under which xids are given out again.
PROMOTED = """update replica_platform.mark set
    identity = jsonb_set(identity, '{timeline}', '7'), w = w + 1000, next = next + 1000"""


@pytest.fixture
def table(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 200) from generate_series(1, 20000) i",
    )
    sync(source, target, "t")


def test_equal_sides_are_not_read(source: str, target: str, table: None) -> None:
    execute(target, PROMOTED)
    report = sync(source, target, "t")
    assert report.mode == "full"
    assert "another server, timeline or database" in report.why
    assert "compared by hashes" in report.why
    assert (report.rows_read, report.bytes, report.changed) == (0, 0, False)
    execute(source, "update t set x = 'after' where id = 5")
    after = sync(source, target, "t")  # the watermark is of the new history
    assert (after.mode, after.rows_read) == ("scan", 1)
    assert rows(source, QUERY) == rows(target, QUERY)


def test_only_ranges_that_differ_are_read(source: str, target: str, table: None) -> None:
    execute(target, PROMOTED)
    execute(
        source,
        "update t set x = 'other' where id in (1, 2)",
        "delete from t where id = 3",
        "insert into t values (30000, 'new')",
    )
    report = sync(source, target, "t")
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (1, 2, 1)
    assert 0 < report.rows_read < 2000
    assert rows(source, QUERY) == rows(target, QUERY)
    assert validate(source, target, "t").in_sync


def test_an_xid_given_out_again_is_recognized(source: str, target: str, table: None) -> None:
    """The same xid of two histories means two versions; hashes of xmin alone miss that."""
    execute(target, PROMOTED, "update t set x = 'of the lost history' where id = 7")
    assert validate(source, target, "t").stale_count == 0  # the control: it compares by xmin
    assert sync(source, target, "t").rows_updated == 1
    assert rows(source, QUERY) == rows(target, QUERY)


def test_an_xid_of_the_lost_history_does_not_stay(source: str, target: str, table: None) -> None:
    """Equal content under a lost xid: were the xid given out again, the MERGE would trust it."""
    execute(source, "update t set x = 'same' where id = 9")
    coming = rows(source, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 200")
    execute(target, PROMOTED, f"update t set x = 'same', source_xmin = {coming[0][0]} where id = 9")
    assert sync(source, target, "t").rows_updated == 1
    assert rows(target, "select source_xmin & 4294967295 from t where id = 9") == rows(
        source, "select xmin::text::bigint from t where id = 9"
    )


def test_a_source_put_back_in_time_is_followed(source: str, target: str, table: None) -> None:
    execute(
        target,
        "update replica_platform.mark set next = next + 100000",
        "update t set x = 'later' where id = 8",
        "insert into t values (40000, 'later')",
    )
    report = sync(source, target, "t")
    assert "behind the last sync" in report.why
    assert (report.rows_updated, report.rows_deleted) == (1, 1)
    assert rows(source, QUERY) == rows(target, QUERY)


def test_the_limit_on_deletes_holds_here_too(source: str, target: str, table: None) -> None:
    execute(source, "delete from t where id > 500")
    execute(target, PROMOTED)
    with pytest.raises(TooManyDeletes, match=r"19,500 of 20,000 rows of public\.t"):
        sync(source, target, "t")
    assert rows(target, "select count(*) from t") == [(20000,)]
    assert sync(source, target, "t", max_delete_fraction=1.0).rows_deleted == 19500


def test_a_changed_definition_is_read_whole(source: str, target: str, table: None) -> None:
    execute(source, "alter table t add column n int default 3")
    execute(target, PROMOTED)
    report = sync(source, target, "t")
    assert "compared by hashes" not in report.why
    assert report.rows_read == 20000
    assert rows(target, "select distinct n from t") == [(3,)]


def test_partitions_and_keys_of_text(source: str, target: str) -> None:
    execute(
        source,
        "create table p (a text, b int, x json, primary key (a, b)) partition by range (b)",
        "create table p0 partition of p for values from (0) to (10)",
        "create table p1 partition of p for values from (10) to (20)",
        """insert into p select 'ä' || i, i, '{"a" : 1}' from generate_series(1, 19) i""",
    )
    sync(source, target, "p")
    execute(target, PROMOTED)
    assert sync(source, target, "p").rows_read == 0
    execute(target, PROMOTED, "delete from p where b = 11")
    assert sync(source, target, "p").rows_inserted == 1
    assert rows(source, "select a, b, x::text from p order by b") == rows(
        target, "select a, b, x::text from p order by b"
    )
