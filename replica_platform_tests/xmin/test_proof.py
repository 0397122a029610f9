"""The rolling proof: each sync compares a part of the content, and repairs what differs."""

import threading
from itertools import pairwise
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster.components.core.component_tree import ComponentTree

from replica_platform.app.embedded import Server
from replica_platform.components import XminTables
from replica_platform.components.xmin_tables import TableEntry
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform.xmin import Proving, TableSpec, sync, sync_group, validate
from replica_platform.xmin.integrity.parts import DAY_S, LEAST_BLOCKS, next_part, position_after
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import Leaf, SourceTable
from replica_platform.xmin.target.proof import Position, ProofRound
from replica_platform_tests.xmin.helpers import execute, rows

BLOCK = 8192
PARTS = 10
MANY = 1 << 30
CONTENT = "select * from t order by 1"


@pytest.fixture
def table(source: str, target: str) -> Proving:
    """A synced table of some 50 blocks; what proves a tenth of it at each sync."""
    execute(
        source,
        "create table t (id int primary key, amount numeric(9,2), x text)",
        "insert into t select i, i, repeat('x', 100) from generate_series(1, 2500) i",
    )
    sync(source, target, "t")
    ((size,),) = rows(source, "select pg_relation_size('t')")
    return Proving(within_s=0, most_bytes=-(-size // BLOCK // PARTS) * BLOCK)


def same(source: str, target: str) -> bool:
    query = "select id, amount, x from t order by id"
    return rows(source, query) == rows(target, query)


def test_amounts_changed_in_the_target_are_repaired_within_n_syncs(
    source: str, target: str, table: Proving
) -> None:
    execute(target, "update t set amount = 0")
    differing = 0
    for turn in range(PARTS):
        execute(source, f"insert into t values (-{turn}, 0, '')")
        report = sync(source, target, "t", prove=table)
        assert report.mode == "scan"
        assert report.proof is not None
        assert 0 < report.proof.bytes <= table.most_bytes
        assert report.proof.differing == report.proof.repaired == report.rows_updated
        assert (report.proof.sentence in report.notes) == bool(report.proof.differing)
        differing += report.proof.differing
    assert differing == 2500
    assert same(source, target)
    assert validate(source, target, "t", content=True).in_sync


def test_a_table_whose_source_is_idle_is_proven_too(source: str, sixteen: Server) -> None:
    target = sixteen.dsn("target")
    execute(
        target, "drop table if exists public.t", "drop schema if exists replica_platform cascade"
    )
    execute(
        source, "create table t (id int primary key, amount int)", "insert into t values (1, 1)"
    )
    execute(source, "insert into t select i, i from generate_series(2, 100) i")
    sync(source, target, "t")
    for _ in range(5):  # autovacuum may have spent an xid, so that the source was not idle
        execute(target, "update t set amount = 0 where id > 50", "insert into t values (101)")
        report = sync(source, target, "t", prove=Proving(within_s=0))
        if report.mode == "none":
            break
    assert (report.mode, report.written_by) == ("none", "merge")
    assert (report.rows_updated, report.rows_deleted) == (50, 1)
    assert report.proof is not None
    assert (report.proof.differing, report.proof.whole) == (50, True)
    assert rows(target, "select count(*), sum(amount) from t") == [(100, 5050)]
    report = sync(source, target, "t", prove=Proving(within_s=0))
    assert report.mode in ("none", "scan")
    assert (report.rows_updated, report.rows_deleted, report.changed) == (0, 0, False)
    assert sync(source, target, "t", prove=Proving()).proof is None  # nothing is due yet


def test_the_control_notices_nothing(source: str, target: str, table: Proving) -> None:
    """Without the proof the same damage stays, whatever is synced."""
    execute(target, "update t set amount = 0")
    for turn in range(PARTS):
        execute(source, f"insert into t values (-{turn}, 0, '')")
        assert sync(source, target, "t").proof is None
    assert not same(source, target)


def test_rows_deleted_and_inserted_in_the_target_are_repaired_within_a_round(
    source: str, target: str, table: Proving
) -> None:
    execute(target, "delete from t where id = 77", "insert into t values (99999, 1, 'by hand')")
    reports = [sync(source, target, "t", prove=table) for _ in range(PARTS)]
    assert sum(report.rows_inserted for report in reports) == 1
    assert sum(report.rows_deleted for report in reports) == 1
    assert same(source, target)
    assert [report.proof.whole for report in reports if report.proof].count(True) == 1


def test_what_is_only_in_the_target_stays_where_deletes_are_off(
    source: str, target: str, table: Proving
) -> None:
    execute(target, "insert into t values (99999, 1, 'by hand')")
    for _ in range(PARTS):
        sync(source, target, "t", deletes="never", prove=table)
    assert rows(target, "select count(*) from t") == [(2501,)]


def test_a_row_whose_unique_value_another_took_is_repaired(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, mail text)",
        "insert into t values (1, 'a'), (2, 'b')",
    )
    execute(target, "create table t (id int primary key, mail text unique)")
    sync(source, target, "t")
    execute(target, "delete from t where id = 1", "insert into t values (3, 'a')")
    report = sync(source, target, "t", prove=Proving(within_s=0))
    assert "another has its place" in report.why
    assert rows(target, "select id, mail from t order by 1") == [(1, "a"), (2, "b")]


def test_changes_in_flight_are_no_difference(source: str, target: str, table: Proving) -> None:
    over = threading.Event()
    changes = 0

    def write() -> None:
        nonlocal changes
        with psycopg.connect(source) as connection:
            while not over.is_set():
                changes += 1
                key = changes * 7919 % 2500 + 1
                connection.execute("update t set amount = amount + 1 where id = %s", [key])
                connection.execute("delete from t where id = %s", [changes * 104729 % 2500 + 1])
                connection.execute("insert into t values (%s, 0, '')", [10_000 + changes])
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reports = [sync(source, target, "t", prove=table) for _ in range(25)]
    finally:
        over.set()
        writer.join()
    proofs = [report.proof for report in reports if report.proof]
    assert len(proofs) == len(reports)
    assert changes > 25
    assert sum(proof.whole for proof in proofs) >= 1
    assert [proof.differing for proof in proofs] == [0] * len(proofs)
    sync(source, target, "t")
    assert same(source, target)


@pytest.mark.parametrize(
    "columns",
    [
        'id text collate "C" primary key, version int',
        "id uuid, k0 int default 1, tid text, primary key (id, k0)",
        "id numeric primary key, piece jsonb, t int, s int",
        "id char(40) primary key, at timestamptz default now()",
    ],
)
def test_keys_of_any_type_and_columns_of_any_name(columns: str, source: str, target: str) -> None:
    kind = columns.split()[1].strip(",")
    value = {"uuid": "md5(i::text)::uuid", "numeric": "i / 3.0"}.get(kind, "md5(i::text)")
    execute(
        source,
        f"create table t ({columns})",
        f"insert into t (id) select {value} from generate_series(1, 500) i",
    )
    sync(source, target, "t")
    execute(
        target, "delete from t where ctid = '(0,3)'",
        "update t set source_xmin = source_xmin - 1 where ctid = '(0,4)'",
    )  # fmt: skip
    proof = sync(source, target, "t", prove=Proving(within_s=0)).proof
    assert proof is not None
    assert (proof.rows, proof.differing, proof.repaired, proof.whole) == (500, 2, 2, True)
    assert rows(source, CONTENT) == [row[:-2] for row in rows(target, CONTENT)]
    proof = sync(source, target, "t", prove=Proving(within_s=0)).proof
    assert proof is not None
    assert (proof.rows, proof.differing) == (500, 0)


def test_a_wider_key_in_the_target_is_compared(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key, x varchar(5))")
    execute(source, "insert into t select i, i from generate_series(1, 100) i")
    execute(target, "create table t (id bigint primary key, x text)")
    sync(source, target, "t")
    execute(target, "update t set x = 'y' where id = 7")
    proof = sync(source, target, "t", prove=Proving(within_s=0)).proof
    assert proof is not None
    assert (proof.rows, proof.differing, proof.repaired) == (100, 1, 1)


def test_partitions_and_a_leaf_rewritten_during_the_round(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text) partition by range (id)",
        *(
            f"create table t{n} partition of t for values from ({n * 1000}) to ({n * 1000 + 1000})"
            for n in range(3)
        ),
        "insert into t select i, repeat('x', 200) from generate_series(0, 2999) i",
    )
    sync(source, target, "t")
    execute(target, "update t set x = 'wrong'")
    part = Proving(within_s=0, most_bytes=10 * BLOCK)
    whole = False
    for turn in range(40):
        if turn == 4:
            execute(source, "delete from t where id between 100 and 1700 and id % 2 = 0")
            execute(source, "truncate t2", "insert into t values (2001, 'again')")
        proof = sync(source, target, "t", prove=part).proof
        whole = whole or bool(proof and proof.whole)
        if whole:
            break
    assert whole
    assert rows(source, CONTENT) == [row[:-2] for row in rows(target, CONTENT)]


def test_a_group_is_proven_in_one_transaction(source: str, target: str) -> None:
    for name in ("a", "b"):
        execute(
            source,
            f"create table {name} (id int primary key, x int)",
            f"insert into {name} select i, i from generate_series(1, 100) i",
        )
    specs = [TableSpec("a"), TableSpec("b")]
    sync_group(source, target, specs)
    execute(target, "update a set x = 0", "update b set x = 0")
    execute(source, "insert into a values (101, 101)")
    group = sync_group(source, target, specs, atomic=True, prove=Proving(within_s=0))
    assert group.ok
    assert [report.rows_updated for report in group.reports.values()] == [100, 100]
    assert rows(target, "select sum(x) from a") == [(5151,)]


def test_the_tables_of_a_group_share_the_bounds_in_turn(source: str, target: str) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        execute(
            source,
            f"create table {name} (id int primary key, x text)",
            f"insert into {name} select i, repeat('x', 900) from generate_series(1, 80) i",
        )
    specs = [TableSpec(name) for name in names]
    sync_group(source, target, specs)
    turns = []
    for _ in range(4):  # of about ten blocks each, two tables fit
        reports = sync_group(source, target, specs, prove=Proving(0, 21 * BLOCK)).reports
        turns.append({name for name, report in reports.items() if report.proof})
        assert sum(report.proof.bytes for report in reports.values() if report.proof) <= 21 * BLOCK
    assert set.union(*turns[:2]) == {f"public.{name}" for name in names}
    assert all(2 <= len(turn) <= 3 for turn in turns)
    reports = sync_group(source, target, specs, prove=Proving(0, most_s=0)).reports
    assert sum(bool(report.proof) for report in reports.values()) == 1


def test_a_part_ends_when_its_time_is_over(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 900) from generate_series(1, 20000) i",
    )
    sync(source, target, "t")
    reports = [sync(source, target, "t", prove=Proving(0, most_s=0)) for _ in range(2)]
    proofs = [report.proof for report in reports if report.proof]
    assert [proof.whole for proof in proofs] == [False, True]
    assert sum(proof.rows for proof in proofs) == 20_000


def test_tables_without_key_and_full_syncs_are_proven_whole(source: str, target: str) -> None:
    execute(source, "create table t (a int)", "insert into t values (1), (1)")
    sync(source, target, "t", prove=Proving())
    execute(target, "update t set a = 2")
    assert validate(source, target, "t").content_rows is None
    assert sync(source, target, "t", prove=Proving()).rows_inserted == 2
    with psycopg.connect(target) as connection:
        stored = connection.execute("select rows from replica_platform.proof").fetchall()
    assert stored == [(2,)]


def test_a_view_by_timestamp_says_that_it_is_not_proven(source: str, target: str) -> None:
    execute(
        source,
        "create table base (id int, at timestamptz default now())",
        "create view t as select * from base",
        "insert into base values (1)",
    )
    report = sync(
        source, target, "t", mode="timestamp", timestamp_column="at", key=["id"], prove=Proving()
    )
    assert any("not proven by parts" in note for note in report.notes)


def test_validate_says_how_much_was_proven_and_when(
    source: str, target: str, table: Proving
) -> None:
    never = validate(source, target, "t")
    assert "was never compared" in never.sentence
    assert never.content_coverage == 0.0
    sync(source, target, "t", prove=table)
    some = validate(source, target, "t")
    assert 0.05 < some.content_coverage < 0.2
    assert "rows has been proven by syncs so far" in some.sentence
    for _ in range(PARTS):
        sync(source, target, "t", prove=table)
    proven = validate(source, target, "t")
    assert (proven.content_coverage, proven.content_rows) == (1.0, 2500)
    assert "Its content was last proven" in proven.sentence
    assert never.terms["content"] < some.terms["content"] < proven.terms["content"] < 1.0
    execute(target, "update replica_platform.proof set proven_at = proven_at - interval '5 days'")
    assert validate(source, target, "t").terms["content"] < proven.terms["content"]

    execute(target, "update t set amount = 0 where id = 1")
    for _ in range(PARTS):
        sync(source, target, "t", prove=table)
    repaired = validate(source, target, "t")
    assert repaired.content_repaired == 1
    assert "A sync repaired 1 rows" in repaired.sentence


def leaf(oid: int, blocks: int, filenode: int = 1) -> Leaf:
    return Leaf(oid, TableName("public", f"t{oid}"), filenode, blocks, "p", heap=True)


def described(*leaves: Leaf) -> SourceTable:
    return SourceTable(1, TableName("public", "t"), "p", (), ("id",), leaves, "")


def last(age_s: float, position: Position) -> ProofRound:
    return ProofRound(1, position, 0, age_s, 0, None)


def test_the_share_of_the_time_is_due() -> None:
    table = described(leaf(5, 86_400))
    assert next_part(table, None, Proving(), MANY) is None
    assert next_part(table, last(LEAST_BLOCKS - 1, Position()), Proving(), MANY) is None
    part = next_part(table, last(300, Position(5, 1, 1000)), Proving(), MANY)
    assert part is not None
    assert [(one.first, one.last) for one in part.ranges] == [(1000, 1300)]
    assert not part.ends_round
    small = described(leaf(5, 3))
    assert next_part(small, last(DAY_S - 60, Position()), Proving(), MANY) is None
    whole = next_part(small, last(DAY_S + 60, Position()), Proving(), MANY)
    assert whole is not None
    assert whole.ends_round
    assert [(one.first, one.last) for one in whole.ranges] == [(None, None)]


def test_a_round_reads_every_block_once() -> None:
    table = described(leaf(7, 5000), leaf(5, 0), leaf(6, 4097))
    position, seen = Position(), []
    for _ in range(100):
        part = next_part(table, last(0, position), Proving(0), 1000)
        assert part is not None
        seen += [(one.leaf.oid, one.first or 0, one.last) for one in part.ranges]
        position = position_after(part.ranges[-1])
        if part.ends_round:
            break
    assert part.ends_round
    for oid, blocks in ((5, 0), (6, 4097), (7, 5000)):
        mine = [(first, end) for leaf_oid, first, end in seen if leaf_oid == oid]
        assert mine[0][0] == 0
        assert mine[-1][1] is None
        assert all(end == start for (_, end), (start, _) in pairwise(mine))
        assert all(end < blocks for _, end in mine if end is not None)


def test_a_rewritten_leaf_is_read_from_its_start() -> None:
    position = Position(5, 1, 700)
    for table, first in (
        (described(leaf(5, 1000)), (5, 700)),
        (described(leaf(5, 1000, filenode=2)), (5, None)),
        (described(leaf(4, 9), leaf(6, 1000)), (6, None)),
    ):
        part = next_part(table, last(0, position), Proving(0), MANY)
        assert part is not None
        assert (part.ranges[0].leaf.oid, part.ranges[0].first) == first


@pytest.mark.parametrize(
    ("within_s", "hours", "repaired"), [(86_400, 25, 100), (86_400, 1, 0), (None, 25, 0)]
)
def test_the_component_passes_on_what_to_prove(
    within_s: int | None, hours: int, repaired: int, source: str, target: str, tmp_path: Path
) -> None:
    execute(
        source,
        "create table t (id int primary key, x int)",
        "insert into t select i, i from generate_series(1, 100) i",
    )
    sync(source, target, "t", into="copy", prove=Proving())
    ago = f"part_at - interval '{hours} hours'"
    execute(
        target,
        "update copy.t set x = 0",
        f"update replica_platform.proof_round set part_at = {ago}",
    )
    component = XminTables(
        tables=[TableEntry(table="public.t")], into="copy", prove_within_s=within_s
    )
    built = component.build_defs(ComponentTree.for_test().load_context)
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [asset for asset in built.assets or [] if isinstance(asset, dg.AssetsDefinition)],
            resources={
                "platform": PlatformConfig(data_dir=str(tmp_path), backup_dir=str(tmp_path)),
                "source": PostgresDatabase(dsn=source),
                "target": PostgresDatabase(dsn=target),
            },
            instance=instance,
        )
    (made,) = result.get_asset_materialization_events()
    metadata = made.materialization.metadata
    assert metadata["content_rows_repaired"].value == repaired
    assert metadata["content_rows_proven"].value == repaired
    wrong = rows(target, "select count(*) from copy.t where x = 0")
    assert wrong == [(0 if repaired else 100,)]


def test_a_table_read_by_blocks_is_proven(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 400) from generate_series(1, 2000) i",
        "vacuum t",
    )
    sync(source, target, "t", mode="blocks")
    for turn in range(4):
        execute(source, f"update t set x = 'new' where id = {turn}")
        execute(target, f"update t set x = 'wrong' where id = {100 + turn}")
        report = sync(source, target, "t", mode="blocks", prove=Proving(within_s=0))
        assert report.proof is not None
        assert (report.proof.differing, report.proof.repaired) == (1, 1)
    assert rows(source, "select id, x from t order by 1") == rows(
        target, "select id, x from t order by 1"
    )
