"""Pruning: late, and only of rows that were read back from the target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from replica_platform.outbox import Outbox, backlog, drain, reconcile
from replica_platform.outbox.file import open_existing

Ask = Callable[..., list[tuple[Any, ...]]]


def kept(path: Path) -> list[int]:
    connection = open_existing(path, read_only=True)
    rows = [seq for (seq,) in connection.execute("select seq from record order by seq")]
    connection.close()
    return rows


def test_rows_stay_for_the_grace_period(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    assert drain([path], target).files[0].pruned == 0
    assert len(kept(path)) == 10


def test_rows_are_pruned_after_the_grace_period(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    report = drain([path], target, keep_delivered_s=0, batch_rows=3)
    assert (report.files[0].pruned, report.pending) == (10, 0)
    assert kept(path) == []
    box.append("note", {"n": 11})
    assert (backlog([path]).pending, kept(path)) == (1, [11])
    report = drain([path], target, keep_delivered_s=0)
    assert (report.delivered, report.files[0].reopened, report.pending) == (1, 0, 0)
    assert reconcile([path], target).ok


def test_a_row_that_the_target_lost_is_resent_instead(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ids = box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target)
    ask("delete from outbox.record where id = any(%s::uuid[])", [ids[2], ids[5]])
    report = drain([path], target, keep_delivered_s=0)
    assert (report.files[0].pruned, report.files[0].reopened, report.pending) == (8, 2, 2)
    assert kept(path) == [3, 6]
    assert drain([path], target).delivered == 2
    assert ask("select count(*) from outbox.record") == [(10,)]


def test_dead_rows_and_conflicts_are_not_pruned(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    drain([path], target)
    ask("alter table outbox.record add check (kind <> 'bad')")
    one = box.append("note", {"n": 1})
    box.append("note", {"n": 2}, id=one)
    box.append("bad", {"n": 3})
    report = drain([path], target, keep_delivered_s=0)
    assert (report.dead, report.conflicts, report.files[0].pruned) == (1, 1, 1)
    assert kept(path) == [2, 3]
    assert ask("select count(*) from outbox.conflict") == [(1,)]
