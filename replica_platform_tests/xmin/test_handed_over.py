"""Reports of a group's tables, given to the caller as each one is committed."""

from dataclasses import replace

import psycopg
import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import Proving, SyncReport, TableSpec, sync_group
from replica_platform.xmin.copy.progress import GroupProgress
from replica_platform_tests.xmin.helpers import execute, rows

SPECS = [TableSpec(name, into="copy") for name in "abc"]


def make_tables(source: str) -> None:
    for name in "abc":
        execute(
            source,
            f"create table {name} (id int primary key, v text)",
            f"insert into {name} select n, 'v' from generate_series(1, 100) n",
        )


def plain(report: SyncReport) -> SyncReport:
    """Return a report without what grows until the sync ends."""
    return replace(report, snapshot_s=0.0, source_busy_s=0.0)


def test_each_table_is_handed_over_when_it_is_in_the_target(source: str, target: str) -> None:
    make_tables(source)
    present: list[tuple[str, int]] = []

    def look(report: SyncReport) -> None:
        ((count,),) = rows(target, f"select count(*) from {report.target_table}")
        ((others,),) = rows(
            target, "select count(*) from pg_tables where schemaname = 'copy' and tablename ~ '^.$'"
        )
        assert count == 100
        present.append((report.target_table, others))

    group = sync_group(source, target, SPECS, on_report=look)
    # The second table was not there yet when the first one was handed over.
    assert present == [("copy.a", 1), ("copy.b", 2), ("copy.c", 3)]
    assert list(group.reports) == ["copy.a", "copy.b", "copy.c"]


@pytest.mark.parametrize("atomic", [False, True])
def test_what_is_handed_over_is_what_the_group_reports(
    source: str, target: str, atomic: bool
) -> None:
    """Changed, unchanged and scanned, proven, failed: each once."""
    make_tables(source)
    seen: list[SyncReport] = []

    def sync(**options: object) -> dict[str, SyncReport]:
        seen.clear()
        specs = [*SPECS, *([] if atomic else [TableSpec("absent")])]
        group = sync_group(source, target, specs, atomic=atomic, on_report=seen.append, **options)  # type: ignore[arg-type]
        assert sorted(one.target_table for one in seen) == sorted(group.reports)
        assert {one.target_table: plain(one) for one in seen} == {
            name: plain(report) for name, report in group.reports.items()
        }
        assert all(one.snapshots == 1 for one in seen)
        return dict(group.reports)

    assert all(report.changed for report in sync().values())
    assert [report.changed for report in sync().values()] == [False] * 3
    execute(source, "update b set v = 'w'")
    assert [report.changed for report in sync().values()] == [False, True, False]
    assert all(report.proof for report in sync(prove=Proving(within_s=0)).values())


def test_tables_that_are_not_read_at_all_are_handed_over(source: str, sixteen: Server) -> None:
    """On another server than the target's, where no commit is the sync's."""
    make_tables(source)
    specs = [TableSpec(name, into="handed_over") for name in "abc"]
    elsewhere = sixteen.dsn("target")
    sync_group(source, elsewhere, specs)
    seen: list[SyncReport] = []
    # An autovacuum may use an xid in between, hence three syncs.
    for _ in range(3):
        sync_group(source, elsewhere, specs, on_report=seen.append)
    assert [report.target_table[-1] for report in seen] == list("abcabcabc")
    assert "none" in {report.mode for report in seen}


def test_a_group_that_is_rolled_back_hands_nothing_over(source: str, target: str) -> None:
    make_tables(source)
    seen: list[SyncReport] = []
    specs = [*SPECS, TableSpec("absent")]
    assert not sync_group(source, target, specs, atomic=True, on_report=seen.append).reports
    assert seen == []


def test_an_error_of_the_caller_ends_the_sync_and_keeps_what_is_committed(
    source: str, target: str
) -> None:
    make_tables(source)

    def refuse(report: SyncReport) -> None:
        raise KeyError(report.target_table)

    with pytest.raises(KeyError, match=r"copy\.a"):
        sync_group(source, target, SPECS, on_report=refuse)
    assert rows(target, "select target_table from replica_platform.mark") == [("copy.a",)]
    # No session is left with locks: the next sync brings the others.
    with psycopg.connect(target) as other:
        other.execute("set lock_timeout = '2s'")
        other.execute("lock table copy.a")
    assert sync_group(source, target, SPECS).ok


def test_progress_is_one_sum_of_all_tables(source: str, target: str) -> None:
    for name in "abc":
        execute(
            source,
            f"create table {name} (id int primary key, v text)",
            f"insert into {name} select n, repeat('v', 500) from generate_series(1, 3000) n",
            f"analyze {name}",
        )
    told: list[tuple[int, int]] = []
    sync_group(
        source, target, SPECS, batch_bytes=65536,
        progress=lambda done, total, unit: told.append((done, total)),
    )  # fmt: skip
    done = [one for one, _ in told]
    assert done == sorted(done)
    assert all(one <= total for one, total in told)
    # All three are expected from the first bytes on: it is not a bar for each table.
    assert told[0][1] > 2.5 * done[-1] / 3
    assert done[-1] > 3 * 3000 * 500


def test_a_table_that_sends_less_than_its_heap_ends_with_what_came() -> None:
    told: list[tuple[int, int]] = []
    progress = GroupProgress(lambda done, total, unit: told.append((done, total)))
    progress.expect("a", 100)
    progress.expect("b", 10)
    progress.add("a", 40)
    progress.end("a")
    progress.add("b", 10)
    progress.add("c", 5)
    assert told == [(40, 110), (50, 50), (55, 55)]
