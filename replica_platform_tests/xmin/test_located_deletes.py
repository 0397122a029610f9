"""Deleted rows are looked for where rows have gone; where that explains too little, everywhere."""

from typing import Any

import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import SyncReport, sync, validate
from replica_platform.xmin.copy.buckets import BucketCounts
from replica_platform.xmin.integrity.located_deletes import suspicious_runs
from replica_platform.xmin.writing import deletes
from replica_platform_tests.xmin.helpers import execute, rows

ROWS = 20_000
QUERY = "select k, buckets, s from t order by k"


class Compared:
    """Counts the comparisons of all keys."""

    def __init__(self) -> None:
        self.times = 0

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count the calls, and let them through."""
        compare = deletes.delete_absent_keys

        def counting(*arguments: Any) -> int:
            self.times += 1
            return compare(*arguments)

        monkeypatch.setattr(deletes, "delete_absent_keys", counting)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """The number of comparisons of all keys in the test."""
    found = Compared()
    found.patch(monkeypatch)
    return found


@pytest.fixture
def table(source: str, target: str) -> None:
    """A table of some 12 buckets, scanned once, whose names are those of the queries."""
    execute(
        source,
        "create table t (k int, buckets int, s text, primary key (k, buckets))",
        f"insert into t select i, i % 7, repeat('x', 600) from generate_series(1, {ROWS}) i",
    )
    sync(source, target, "t")
    scan(source, target)


def scan(source: str, target: str) -> SyncReport:
    """Sync, so that the counts are known."""
    execute(source, "update t set s = 'scanned' where k = 1")
    return sync(source, target, "t")


def equal(source: str, target: str) -> bool:
    """Return whether both sides have the same rows, and as many as the watermark says."""
    counted = rows(target, "select rows from replica_platform.mark")
    return rows(source, QUERY) == rows(target, QUERY) and counted == rows(
        source, "select count(*) from t"
    )


@pytest.mark.usefixtures("table")
def test_one_deleted_row_needs_no_comparison_of_all_keys(
    source: str, target: str, compared: Compared
) -> None:
    execute(source, "delete from t where k = 9000")
    assert sync(source, target, "t").rows_deleted == 1
    assert compared.times == 0
    assert equal(source, target)


@pytest.mark.usefixtures("table")
def test_deletes_among_updates_inserts_and_moved_keys(
    source: str, target: str, compared: Compared
) -> None:
    """Updates leave their buckets, too; they are told apart from deletes by where they went."""
    for turn in range(3):
        execute(
            source,
            f"update t set s = 'y' where k % 100 = {turn}",
            f"delete from t where k between {9000 + 100 * turn} and {9005 + 100 * turn}",
            f"update t set k = k + {ROWS} where k = {9050 + 100 * turn}",
            f"insert into t select i, 1, 'new' from generate_series({30000 + turn * 10}, "
            f"{30005 + turn * 10}) i",
            "vacuum t",
        )
        assert sync(source, target, "t").rows_deleted == 7
        assert equal(source, target)
    assert compared.times == 0


@pytest.mark.usefixtures("table")
def test_nothing_is_deleted_twice_or_again(source: str, target: str, compared: Compared) -> None:
    execute(source, "delete from t where k = 9000")
    assert sync(source, target, "t").rows_deleted == 1
    execute(source, "insert into t values (9000, 1, 'again')")
    assert sync(source, target, "t").rows_inserted == 1
    execute(source, "delete from t where k = 9000")
    assert sync(source, target, "t").rows_deleted == 1
    assert compared.times == 0
    assert equal(source, target)


@pytest.mark.usefixtures("table")
def test_without_counts_all_keys_are_compared(source: str, target: str, compared: Compared) -> None:
    """After a first copy, or a sync of an earlier version: the counts belong to one watermark."""
    execute(target, "update replica_platform.block_counts set snapshot = 'another'")
    execute(source, "delete from t where k = 9000")
    assert sync(source, target, "t").rows_deleted == 1
    assert compared.times == 1
    assert equal(source, target)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("wrong", ["array[1000000]", "array[0]", "'{}'"])
def test_wrong_counts_lose_no_delete(
    wrong: str, source: str, target: str, compared: Compared
) -> None:
    execute(target, f"update replica_platform.block_counts set counts = {wrong}")
    execute(source, "delete from t where k in (5, 9000, 15000)")
    assert sync(source, target, "t").rows_deleted == 3
    assert compared.times == 1
    assert equal(source, target)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("block", [10, 700])
def test_places_that_are_wrong_delete_no_live_row(block: int, source: str, target: str) -> None:
    """As after VACUUM FULL, which moves rows that are not read again.

    Either the deleted row is not where it is sought, or thousands of live ones are there, too.
    """
    execute(target, f"update t set source_ctid = '({block},1)' where k < 15000")
    execute(source, "delete from t where k in (9000, 16000)")
    assert sync(source, target, "t").rows_deleted == 2
    assert equal(source, target)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("rewrite", ["vacuum full t", "cluster t using t_pkey"])
def test_a_table_whose_rows_have_moved(
    rewrite: str, source: str, target: str, compared: Compared
) -> None:
    execute(source, "delete from t where k < 3000", rewrite)
    assert sync(source, target, "t").rows_deleted == 2999
    scan(source, target)
    for key in (5000, 15000):
        execute(source, f"delete from t where k = {key}")
        assert sync(source, target, "t").rows_deleted == 1
        assert equal(source, target)
    assert validate(source, target, "t").in_sync


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "deleted", ["between 9000 and 12000", "= 1", f"= {ROWS}", "% 5000 = 0", "between 9 and 40"]
)
def test_whole_buckets_and_the_ends_of_the_table(
    deleted: str, source: str, target: str, compared: Compared
) -> None:
    """No key is left between the deleted ones, or none beyond them."""
    execute(source, f"delete from t where k {deleted}")
    report = sync(source, target, "t")
    assert report.rows_deleted == ROWS - rows(source, "select count(*) from t")[0][0]
    assert equal(source, target)


def test_keys_that_do_not_grow_with_the_table(source: str, target: str, compared: Compared) -> None:
    execute(
        source,
        "create table t (k bigint, buckets text, s text, primary key (k, buckets))",
        "insert into t select hashint8extended(i, 0), 'ä' || i, repeat('x', 600) "
        f"from generate_series(1, {ROWS}) i",
    )
    sync(source, target, "t")
    scan_of = "update t set s = 'y' where k = (select min(k) from t)"
    execute(source, scan_of)
    sync(source, target, "t")
    execute(source, "delete from t where buckets in ('ä9000', 'ä9001')", scan_of)
    assert sync(source, target, "t").rows_deleted == 2
    assert compared.times == 0
    assert equal(source, target)


def test_keys_of_text(source: str, target: str, compared: Compared) -> None:
    execute(
        source,
        "create table t (k text primary key, buckets int, s text)",
        f"insert into t select i, i, repeat('x', 600) from generate_series(1, {ROWS}) i",
    )
    sync(source, target, "t")
    execute(source, "update t set s = 'scanned' where k = '1'")
    sync(source, target, "t")
    execute(source, "delete from t where k = '9000'")
    assert sync(source, target, "t").rows_deleted == 1
    assert compared.times == 0
    execute(target, "update t set source_ctid = '(10,1)'")  # where none of them lay
    execute(source, "delete from t where k = '9001'")
    assert sync(source, target, "t").rows_deleted == 1
    assert compared.times == 1
    assert equal(source, target)


def test_partitions_lie_in_the_same_buckets(source: str, target: str, compared: Compared) -> None:
    execute(
        source,
        "create table t (k int, buckets int, s text, primary key (k)) partition by hash (k)",
        *(f"create table runs{i} partition of t for values with (modulus 3, remainder {i})"
          for i in range(3)),
        f"insert into t select i, i % 7, repeat('x', 600) from generate_series(1, {ROWS}) i",
    )  # fmt: skip
    sync(source, target, "t")
    scan(source, target)
    execute(source, "delete from t where k in (19000, 19001, 19002, 19003)")
    assert sync(source, target, "t").rows_deleted == 4
    assert compared.times == 0
    assert equal(source, target)


def test_more_unique_indexes_let_deletes_come_first(
    source: str, target: str, compared: Compared
) -> None:
    execute(
        source,
        "create table t (k int primary key, buckets int unique, s text)",
        f"insert into t select i, i, repeat('x', 600) from generate_series(1, {ROWS}) i",
    )
    execute(target, "create table t (k int primary key, buckets int unique, s text)")
    sync(source, target, "t")
    scan(source, target)
    execute(
        source, "delete from t where k = 9000", "insert into t values (90000, 9000, 'its value')"
    )
    report = sync(source, target, "t")
    assert (report.rows_deleted, report.rows_inserted) == (1, 1)
    assert compared.times == 0
    assert equal(source, target)


def test_an_older_target(source: str, sixteen: Server, compared: Compared) -> None:
    """Its MERGE does not say where a row was."""
    execute(
        source,
        "create table t (k int, buckets int, s text, primary key (k, buckets))",
        f"insert into t select i, i % 7, repeat('x', 600) from generate_series(1, {ROWS}) i",
    )
    target = sixteen.dsn("target")
    execute(target, "drop table if exists t")
    sync(source, target, "t")
    scan(source, target)
    execute(
        source,
        "delete from t where k = 9000",
        "update t set s = 'y' where k % 100 = 1",
        "insert into t values (90000, 1, '')",
    )
    report = sync(source, target, "t")
    assert (report.rows_deleted, report.rows_updated, report.rows_inserted) == (1, 200, 1)
    assert compared.times == 0
    assert rows(source, QUERY) == rows(target, QUERY)


def test_counts_are_compared_in_the_larger_buckets() -> None:
    before = BucketCounts(128, {0: 5, 1: 6, 2: 7, 3: 1})
    now = BucketCounts(256, {0: 10, 1: 8})
    assert before - now == BucketCounts(256, {0: 1, 1: 0})
    assert now - before == BucketCounts(256, {0: -1, 1: 0})


def test_runs_are_joined_and_limited() -> None:
    lost = BucketCounts(128, dict.fromkeys(range(100), 0) | {3: 1, 4: 2, 9: 1, 50: -1})
    assert suspicious_runs(lost) == [(384, 640), (1152, 1280)]
    assert suspicious_runs(BucketCounts(128, dict.fromkeys(range(100), 1))) == []
    assert suspicious_runs(BucketCounts(128, {0: 1})) == [(0, 128)]
