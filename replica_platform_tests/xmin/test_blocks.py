"""Sync by blocks: only changed blocks are read, deletes are exact, and every obstacle is named."""

import time
from typing import Any

import psycopg
import pytest

from replica_platform.xmin import Mask, SyncReport, TableSpec, sync, sync_group, validate
from replica_platform.xmin.blocks import choice, reading
from replica_platform.xmin.blocks.history import History
from replica_platform.xmin.blocks.reading import BlockOptions
from replica_platform_tests.xmin.helpers import execute, rows

TABLE = "create table t (id int primary key, v text)"
FILLED = "insert into t select i, repeat('x', 400) from generate_series(1, 2000) i"


def by_blocks(source: str, target: str, table: str = "t", **options: Any) -> SyncReport:
    return sync(source, target, table, mode="blocks", **options)


def check(source: str, target: str, table: str = "t", columns: str = "id, v") -> None:
    """Check that rows, locations and xmins are equal on both sides."""
    there = rows(
        source,
        f"select {columns}, tableoid::bigint, (ctid::text::point)[0]::bigint, ctid::text, "
        f"xmin::text::bigint from {table} order by 1, 2, 3, 4",
    )
    here = rows(
        target,
        f"select {columns}, source_leaf::bigint, source_block, source_ctid::text, "
        f"source_xmin & 4294967295 from {table} order by 1, 2, 3, 4",
    )
    assert here == there


@pytest.fixture
def filled(source: str, target: str) -> tuple[str, str]:
    """A table of 112 blocks, copied with its locations."""
    execute(source, TABLE, FILLED, "vacuum t")
    assert by_blocks(source, target).mode == "full"
    check(source, target)
    return source, target


def synced(source: str, target: str, mode: str = "blocks", table: str = "t") -> SyncReport:
    """Sync by blocks; check the mode, and that all is equal on both sides."""
    report = by_blocks(source, target, table)
    assert report.mode == mode, report.why
    check(source, target, table)
    return report


def test_changed_blocks_of_many_are_read(filled: tuple[str, str]) -> None:
    source, target = filled
    execute(source, "update t set v = 'y' where id = 1000", "delete from t where id = 1")
    report = synced(source, target)
    assert report.why == "2 of 112 blocks changed since the last sync and are read."
    assert "2 of 112 blocks read" in report.notes
    assert any("1 checkpoint was asked for" in note for note in report.notes)
    assert (report.written_by, report.rows_read) == ("blocks", 1)
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (0, 1, 1)
    assert report.rows == 1999
    assert validate(source, target, "t", content=True).score > 0.999


def test_of_a_table_that_did_not_change_nothing_is_read(filled: tuple[str, str]) -> None:
    source, target = filled
    before = rows(target, "select w from replica_platform.mark")
    execute(source, "create table other (id int)")
    report = by_blocks(source, target)
    assert (report.mode, report.rows_read) == ("none", 0)
    assert report.why == "None of its 112 blocks changed since the last sync."
    assert rows(target, "select w from replica_platform.mark") > before
    assert rows(target, "select max(w) from replica_platform.mark") == [(report.w,)]
    execute(source, "delete from t where id = 7")
    assert synced(source, target).rows_deleted == 1


def test_rolled_back_changes_and_key_changes(filled: tuple[str, str]) -> None:
    source, target = filled
    with psycopg.connect(source) as connection:
        connection.execute("update t set v = 'lost' where id = 1000")
        connection.execute("delete from t where id = 2000")
        connection.rollback()
    execute(source, "update t set id = id + 5000 where id in (3, 4)")
    report = synced(source, target)
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (2, 0, 2)


def test_a_transaction_that_ran_during_a_sync_is_delivered_after_it(
    filled: tuple[str, str],
) -> None:
    source, target = filled
    with psycopg.connect(source) as late:
        late.execute("update t set v = 'late' where id = 500")
        late.execute("delete from t where id = 1500")
        execute(source, "update t set v = 'soon' where id = 20")
        assert synced(source, target).rows_updated == 1
        execute(source, "update t set v = 'soon' where id = 40", "checkpoint")
        assert synced(source, target).rows_updated == 1
        late.commit()
    report = synced(source, target)
    assert (report.rows_updated, report.rows_deleted) == (1, 1)


def test_without_the_history_a_late_transaction_is_lost(
    filled: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a sync that starts where the last one did misses what was written before."""
    source, target = filled
    with psycopg.connect(source) as late:
        late.execute("update t set v = 'late' where id = 500")
        execute(source, "update t set v = 'soon' where id = 40", "checkpoint")
        assert synced(source, target).rows_updated == 1
        late.commit()
    monkeypatch.setattr(History, "before", lambda history, w: max(history.points, default=None))
    assert by_blocks(source, target).mode in ("none", "blocks")
    assert rows(target, "select v <> 'late' from t where id = 500") == [(True,)]


def test_a_transaction_older_than_the_first_sync(source: str, target: str) -> None:
    execute(source, TABLE, FILLED, "checkpoint")
    with psycopg.connect(source) as late:
        late.execute("update t set v = 'late' where id = 500")
        assert by_blocks(source, target).mode == "full"
        execute(source, "update t set v = 'soon' where id = 20", "checkpoint")
        report = by_blocks(source, target)
        assert report.mode == "scan"
        assert "a transaction older than the first sync is still running" in report.why
        late.commit()
    # The watermark is still from when it ran.
    assert by_blocks(source, target).mode == "scan"
    execute(source, "update t set v = 'soon' where id = 40")
    synced(source, target)


def test_vacuum_cuts_the_end_of_the_table(filled: tuple[str, str]) -> None:
    source, target = filled
    execute(source, "delete from t where id > 1000", "vacuum (truncate) t")
    assert synced(source, target).rows_deleted == 1000
    execute(source, "insert into t select i, repeat('z', 400) from generate_series(1001, 1100) i")
    assert synced(source, target).rows_inserted == 100


@pytest.mark.parametrize("rewrite", ["vacuum full t", "cluster t using t_pkey"])
def test_after_a_rewrite_equal_rows_get_their_new_location(
    filled: tuple[str, str], rewrite: str
) -> None:
    source, target = filled
    execute(source, "delete from t where id % 3 = 0", rewrite, "update t set v = 'y' where id = 1")
    report = synced(source, target)
    assert report.rows_deleted == 666
    execute(source, "delete from t where id = 1000")
    assert synced(source, target).rows_deleted == 1


def test_truncate_and_a_rewrite_by_alter(filled: tuple[str, str]) -> None:
    source, target = filled
    execute(source, "truncate t", "insert into t values (1, 'again')")
    assert synced(source, target).rows_deleted == 1999
    execute(source, "alter table t alter id type bigint")
    assert synced(source, target, "full").rows == 1
    execute(source, "insert into t values (2, 'more')")
    assert synced(source, target).rows_inserted == 1


def test_a_new_column_and_toast(filled: tuple[str, str]) -> None:
    source, target = filled
    big = "(select string_agg(md5(i::text), '') from generate_series(1, 1000) i)"
    execute(source, f"update t set v = {big} where id = 9")
    synced(source, target)
    execute(source, f"update t set v = v || {big} where id = 9")
    execute(source, "alter table t add column n int default 7", "insert into t values (0, 'a', 8)")
    report = by_blocks(source, target)
    assert report.mode == "blocks", report.why
    check(source, target, columns="id, v, n")
    assert rows(target, "select count(*) from t where n = 7") == [(2000,)]


def test_masked_and_left_out_columns_stay_in_the_source(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, v text, secret text, n int)",
        "insert into t select i, 'open', 'secret', i from generate_series(1, 500) i",
    )
    spec = TableSpec("t", mode="blocks", left_out=("secret",), masks={"v": Mask("null")})
    assert sync_group(source, target, [spec]).ok
    execute(source, "update t set n = 0, v = 'new' where id <= 3", "delete from t where id = 4")
    group = sync_group(source, target, [spec])
    report = group.reports["public.t"]
    assert (report.mode, report.rows_updated, report.rows_deleted) == ("blocks", 3, 1), group
    found = rows(target, "select to_jsonb(t) - 'source_xmin' - 'source_ctid' from t where id = 1")
    assert found[0][0].keys() == {"id", "v", "n", "source_leaf", "source_block"}
    assert found[0][0]["v"] is None
    assert rows(target, "select count(*), count(v), sum(n) from t") == [
        rows(source, "select count(*), 0, sum(n) from t")[0]
    ]


def test_partitions_come_go_and_exchange_rows(source: str, target: str) -> None:
    leaf = "create table leaf{0} partition of t for values from ({0}000) to ({1}000)"
    execute(
        source,
        "create table t (id int primary key, v text) partition by range (id)",
        *(leaf.format(i, i + 1) for i in range(4)),
        "insert into t select i, repeat('x', 300) from generate_series(0, 3999) i",
        "checkpoint",
    )
    assert by_blocks(source, target).mode == "full"
    check(source, target)
    # The same tids in each leaf: a delete in one must not take the others' rows.
    execute(
        source,
        "delete from t where id in (1, 1001, 2500, 3600)",
        "update t set id = 2500 where id = 3500",
        "update t set id = 3600 where id = 2000",
    )
    report = synced(source, target)
    assert (report.rows, report.rows_deleted) == (3996, 4)
    execute(source, "alter table t detach partition leaf1", "checkpoint")
    assert synced(source, target).rows_deleted == 999
    execute(
        source,
        "update leaf1 set v = 'away'",
        "alter table t attach partition leaf1 for values from (1000) to (2000)",
        leaf.format(4, 5),
        "insert into t values (4001, 'new leaf')",
        "vacuum full leaf2",
        "truncate leaf3",
    )
    synced(source, target)
    execute(source, "drop table leaf2")
    synced(source, target)


def test_a_table_without_a_key_is_read_by_blocks(source: str, target: str) -> None:
    execute(source, "create table t (id int, v text)", FILLED, FILLED, "vacuum t", "checkpoint")
    assert synced(source, target, "full").written_by == "first copy"
    execute(source, "delete from t where id in (1, 700)", "update t set v = 'y' where id = 1400")
    execute(source, "insert into t select * from t where id = 5")
    report = synced(source, target)
    assert (report.rows_read, report.rows_inserted, report.rows_deleted) == (4, 4, 6)
    assert report.rows == 3998
    execute(source, "vacuum full t")
    synced(source, target)
    execute(source, "delete from t where id = 1999")
    assert synced(source, target).rows_deleted == 2


def test_a_unique_value_moves_from_a_deleted_row_to_a_new_one(filled: tuple[str, str]) -> None:
    source, target = filled
    execute(source, "update t set v = id::text")
    synced(source, target)
    execute(target, "create unique index on t (v)")
    execute(source, "delete from t where id = 5", "insert into t values (3000, '5')")
    execute(source, "update t set v = '6' where id = 7", "update t set v = '7' where id = 6")
    report = synced(source, target)
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (1, 2, 1)


def test_deletes_by_blocks_where_a_scan_reads_them(source: str, target: str) -> None:
    execute(source, TABLE, FILLED)
    assert sync(source, target, "t", deletes="blocks").mode == "full"
    execute(source, "delete from t where id in (1, 2000)")
    report = sync(source, target, "t", deletes="blocks")
    assert (report.mode, report.rows_deleted) == ("scan", 2)


def test_deleted_rows_are_kept_or_compared_by_key_where_asked(filled: tuple[str, str]) -> None:
    source, target = filled
    execute(source, "delete from t where id = 1")
    assert by_blocks(source, target, deletes="never").rows_deleted == 0
    execute(source, "delete from t where id = 2")
    report = by_blocks(source, target)
    assert report.mode == "scan"
    assert "the last sync kept rows" in report.why
    check(source, target)
    execute(source, "delete from t where id = 3")
    report = by_blocks(source, target, deletes="keys")
    assert (report.mode, report.rows_deleted) == ("blocks", 1)
    check(source, target)


@pytest.mark.parametrize(
    "write",
    [
        "delete from t where id = 1001",
        "insert into t select 9999, v, source_xmin, source_ctid, source_leaf, source_block "
        "from t where id = 1001",
    ],
)
def test_a_write_into_the_target_is_noticed_in_a_changed_block(
    filled: tuple[str, str], write: str
) -> None:
    source, target = filled
    execute(target, write)
    execute(source, "update t set v = 'y' where id in (1000, 1002)")
    report = by_blocks(source, target)
    assert report.mode == "full"
    assert "somebody has written to the target" in report.why
    check(source, target)
    execute(source, "update t set v = 'z' where id in (1000, 1002)")
    synced(source, target)


def test_counts_are_compared_on_a_schedule(filled: tuple[str, str]) -> None:
    source, target = filled
    execute(target, "delete from t where id = 1")
    execute(source, "update t set v = 'y' where id = 1000")
    # In no changed block: not noticed ...
    assert by_blocks(source, target).mode == "blocks"
    execute(source, "update t set v = 'z' where id = 1000")
    options = BlockOptions(count_every_s=0)
    report = by_blocks(source, target, blocks=options)
    # ... until the rows of both sides are counted, and then repaired.
    assert report.mode == "full"
    assert "somebody has written to it" in report.why
    check(source, target)


def test_existing_tables_get_locations_once(source: str, target: str) -> None:
    execute(source, TABLE, FILLED, "checkpoint")
    assert sync(source, target, "t", mode="scan").mode == "full"
    columns = rows(target, "select attname from pg_attribute where attrelid = 't'::regclass")
    assert ("source_block",) not in columns
    execute(source, "delete from t where id = 1", "checkpoint")
    report = synced(source, target, "full")
    assert "does not know where the rows of public.t lie" in report.why
    execute(source, "delete from t where id = 2")
    assert synced(source, target).rows_deleted == 1
    # A scan without locations loses them.
    execute(source, "delete from t where id = 3")
    assert sync(source, target, "t", mode="scan").mode == "scan"
    synced(source, target, "full")


def test_an_installation_of_an_earlier_version_is_migrated(source: str, target: str) -> None:
    execute(source, TABLE, FILLED, "checkpoint")
    sync(source, target, "t", mode="scan")
    execute(
        target,
        "drop table replica_platform.start_point",
        "alter table replica_platform.mark drop column locations, drop column located_at, "
        "drop column counted_at",
    )
    execute(source, "delete from t where id = 1")
    assert sync(source, target, "t").mode == "scan"
    execute(source, "delete from t where id = 2")
    synced(source, target, "full")
    # And an earlier version that writes again is noticed: it leaves `located_at` as it was.
    execute(source, "delete from t where id = 3")
    execute(target, "update replica_platform.mark set snapshot = '1:1:'")
    report = by_blocks(source, target)
    assert report.mode == "full", report.why
    check(source, target)


def test_an_unlogged_table_is_scanned_and_named(source: str, target: str) -> None:
    execute(source, TABLE.replace("table", "unlogged table"), FILLED, "checkpoint")
    assert by_blocks(source, target).mode == "full"
    execute(source, "delete from t where id = 1")
    report = by_blocks(source, target)
    assert report.mode == "scan"
    assert "public.t is unlogged" in report.why
    assert "ALTER TABLE public.t SET LOGGED" in report.why
    execute(source, "alter table public.t set logged", "checkpoint")  # the cure
    assert by_blocks(source, target).mode == "full"
    execute(source, "delete from t where id = 2")
    synced(source, target)


def test_a_table_with_a_column_of_that_name_is_scanned(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, source_leaf text, source_block text)",
        "insert into t values (1, 'oak', 'a')",
    )
    assert by_blocks(source, target).mode == "full"
    execute(source, "update t set source_block = 'b'")
    report = by_blocks(source, target)
    assert report.mode == "scan"
    assert "has a column source_block, a name that the target needs" in report.why
    assert rows(target, "select id, source_leaf, source_block from t") == [(1, "oak", "b")]


def test_where_no_summary_comes_it_is_scanned_and_the_cure_named(
    filled: tuple[str, str],
) -> None:
    source, target = filled
    execute(source, "delete from t where id = 1")
    report = by_blocks(source, target, blocks=BlockOptions(checkpoint=False, most_wait_s=0.1))
    assert report.mode == "scan"
    assert "No WAL summary reached the snapshot within 0." in report.why
    assert "allow checkpoints" in report.why
    check(source, target)
    execute(source, "delete from t where id = 2")
    assert synced(source, target).mode == "blocks"


def test_a_first_copy_in_slices_stores_locations(source: str, target: str) -> None:
    execute(source, TABLE, FILLED, "checkpoint")
    copied = by_blocks(source, target, max_snapshot_s=1e-6, batch_bytes=20 * 8192, workers=1)
    assert copied.snapshots > 2
    check(source, target)
    execute(source, "delete from t where id = 1")
    assert synced(source, target).rows_deleted == 1


def test_an_update_within_its_block_is_a_hot_one_in_the_target(source: str, target: str) -> None:
    execute(source, TABLE, "insert into t select i, 'a' from generate_series(1, 20) i")
    by_blocks(source, target)
    execute(source, "update t set v = 'b' where id <= 10", "checkpoint")
    by_blocks(source, target)
    execute(source, "update t set v = 'c' where id <= 10")
    assert synced(source, target).rows_updated == 10
    query = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 't'"
    end = time.monotonic() + 30
    while (found := rows(target, query)) != [(20, 20)] and time.monotonic() < end:
        time.sleep(0.1)
    assert found == [(20, 20)]


def test_auto_keeps_small_tables_with_the_scan(source: str, target: str) -> None:
    execute(source, TABLE, FILLED)
    sync(source, target, "t")
    execute(source, "delete from t where id = 1")
    report = sync(source, target, "t")
    assert report.mode == "scan"
    assert "block" not in report.why
    found = rows(target, "select locations::text from replica_platform.mark")
    assert found == [("{}",)]


def test_auto_takes_blocks_where_they_pay(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The size of a table from which on they pay, and the time of a scan, of a small table.
    monkeypatch.setattr(reading, "LEAST_BLOCKS", 50)
    monkeypatch.setattr(choice, "SCANNED_BLOCK_S", 0.01)
    monkeypatch.setattr(choice, "LISTED_BLOCK_S", 0.03)
    execute(source, TABLE, FILLED, "vacuum t", "checkpoint")
    sync(source, target, "t")
    check(source, target)
    execute(source, "delete from t where id = 1")
    report = sync(source, target, "t")
    assert report.mode == "blocks", report
    check(source, target)
    execute(source, "update t set v = 'y'")
    report = sync(source, target, "t")
    assert report.mode == "scan"
    assert "blocks changed, about" in report.why
    check(source, target)
    # A summary that began before the last sync names its blocks again, once.
    execute(source, "delete from t where id = 3")
    assert sync(source, target, "t").mode == "scan"
    execute(source, "delete from t where id = 2")
    assert sync(source, target, "t").mode == "blocks"
    check(source, target)
