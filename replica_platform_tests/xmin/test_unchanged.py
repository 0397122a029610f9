"""Tables that were scanned and found unchanged: stored together, and as each by itself would be."""

from typing import Any

import psycopg
import pytest

from replica_platform.xmin import Proving, TableSpec, sync_group, validate
from replica_platform.xmin.commit import Commit
from replica_platform.xmin.stage import StagedTable
from replica_platform_tests.xmin.helpers import execute, rows

MARKS = """
select target_table, to_jsonb(m) - 'target_table' - 'target_oid' - 'synced_at' - 'counted_at'
from replica_platform.mark m
"""
COUNTS = "select target_table, snapshot, blocks, counts from replica_platform.block_counts"


def make_table(source: str, name: str) -> None:
    execute(
        source,
        f"create table {name} (id int primary key, v text)",
        f"insert into {name} select n, repeat('v', 100) from generate_series(1, 3000) n",
    )


def by_table(target: str, query: str) -> dict[str, Any]:
    return {table: rest for table, *rest in rows(target, query)}


def transactions(target: str) -> int:
    ((xid,),) = rows(target, "select pg_current_xact_id()::text::bigint")
    return int(xid)


def test_all_of_them_take_a_few_transactions(source: str, target: str) -> None:
    names = [f"t{number}" for number in range(20)]
    for name in names:
        execute(source, f"create table {name} (id int primary key)")
    specs = [TableSpec(name, into="copy") for name in names]
    for _ in range(2):
        assert sync_group(source, target, specs).ok
    before = transactions(target)
    group = sync_group(source, target, specs)
    assert {report.mode for report in group.reports.values()} == {"scan"}
    assert transactions(target) - before < 8


@pytest.mark.parametrize("open_transaction", [False, True])
def test_what_is_stored_is_what_a_commit_of_each_stores(
    source: str, target: str, open_transaction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One table into two schemas at one snapshot, the second by its own commit."""
    make_table(source, "t")
    specs = [TableSpec("t", into="together"), TableSpec("t", into="alone")]
    is_unchanged, found = Commit.is_unchanged, []

    def one_of_them(commit: Commit, staged: StagedTable) -> bool:
        found.append(is_unchanged(commit, staged))
        return found[-1] and staged.target.schema == "together"

    monkeypatch.setattr(Commit, "is_unchanged", one_of_them)
    with psycopg.connect(source) as other:
        if open_transaction:  # what commits after it is above W, and listed as delivered
            other.execute("insert into t values (4000, 'not committed')")
        execute(source, "insert into t values (5000, 'v')")
        sync_group(source, target, specs)
        execute(source, "insert into t values (5001, 'v')")
        for _ in range(2):
            sync_group(source, target, specs)
        found.clear()
        group = sync_group(source, target, specs)
        assert found == [True, True]
        together, alone = group.reports["together.t"], group.reports["alone.t"]
        assert (together.rows, together.w, together.written_by, together.rows_read) == (
            alone.rows, alone.w, alone.written_by, 0,
        )  # fmt: skip
        for query in (MARKS, COUNTS):
            stored = by_table(target, query)
            assert stored["together.t"] == stored["alone.t"]
        delivered = by_table(target, MARKS)["together.t"][0]["delivered"]
        assert bool(delivered) is open_transaction
        if open_transaction:
            other.commit()
    sync_group(source, target, specs)
    for schema in ("together", "alone"):
        assert validate(source, target, "t", into=schema).in_sync
        ((count,),) = rows(target, f"select count(*) from {schema}.t")
        assert count == 3002 + open_transaction


def test_changes_after_it_arrive(source: str, target: str) -> None:
    for name in "ab":
        make_table(source, name)
    specs = [TableSpec(name, into="copy") for name in "ab"]
    for _ in range(3):
        sync_group(source, target, specs)
    execute(source, "delete from a where id in (5, 1500)", "update a set v = 'w' where id = 7")
    changed = sync_group(source, target, specs).reports
    assert (changed["copy.a"].rows_deleted, changed["copy.a"].rows_updated) == (2, 1)
    assert not changed["copy.b"].changed
    execute(source, "alter table b add column more int default 3")
    sync_group(source, target, specs)
    assert rows(target, "select distinct more from copy.b") == [(3,)]
    for name in "ab":
        assert validate(source, target, name, into="copy", content=True).in_sync


def test_what_is_deleted_and_inserted_again_is_no_unchanged_table(source: str, target: str) -> None:
    """The counts are equal, and a row has changed."""
    make_table(source, "a")
    specs = [TableSpec("a", into="copy")]
    for _ in range(3):
        sync_group(source, target, specs)
    execute(source, "delete from a where id = 5", "insert into a values (9000, 'new')")
    report = sync_group(source, target, specs).reports["copy.a"]
    assert (report.rows_inserted, report.rows_deleted) == (1, 1)


def test_deletes_that_are_asked_for_and_a_proof_that_is_due_are_not_left_out(
    source: str, target: str
) -> None:
    make_table(source, "a")
    for _ in range(3):
        sync_group(source, target, [TableSpec("a", into="copy")])
    execute(target, "update copy.a set id = 99999 where id = 5")  # by another program
    keys = [TableSpec("a", into="copy", deletes="keys")]
    sync_group(source, target, keys)
    assert rows(target, "select count(*) from copy.a where id = 99999") == [(0,)]
    for _ in range(2):
        sync_group(source, target, [TableSpec("a", into="copy")])
    execute(target, "update copy.a set v = 'wrong' where id = 7")
    group = sync_group(source, target, [TableSpec("a", into="copy")], prove=Proving(within_s=0))
    proof = group.reports["copy.a"].proof
    assert proof is not None and proof.repaired >= 1
    assert rows(target, "select count(*) from copy.a where v = 'wrong'") == [(0,)]
