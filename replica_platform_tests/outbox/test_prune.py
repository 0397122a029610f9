"""Pruning: late, and only of rows that were read back from the target."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox, OutboxFull, backlog, drain, reconcile
from replica_platform.outbox.file import open_existing

TEN_YEARS_S = 3650 * 86400.0

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


def fill(box: Outbox) -> int:
    """Append records of 2 KB until the file is at its cap; return how many."""
    rows = 0
    try:
        while True:
            box.append("note", {"text": "x" * 2000})
            rows += 1
    except OutboxFull:
        return rows


def test_a_clock_ahead_prunes_nothing_early_and_does_not_end_pruning(
    box: Outbox, path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + TEN_YEARS_S)
        report = drain([path], target)
        assert (report.delivered, report.files[0].pruned) == (10, 0)
        assert drain([path], target).files[0].pruned == 0
    box.append_many("note", [{"n": n} for n in range(10)])
    assert drain([path], target, keep_delivered_s=0).files[0].pruned == 20


def note_deliveries_ten_years_ahead(path: Path) -> None:
    """Leave what a drain of an earlier version left, while the clock was wrong."""
    with closing(sqlite3.connect(path)) as local, local:
        local.execute("update batch set delivered_at = delivered_at + ?", (TEN_YEARS_S,))


def test_a_delivery_noted_in_the_future_ages_from_now_on(
    box: Outbox, path: Path, target: str
) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target)
    note_deliveries_ten_years_ahead(path)
    assert drain([path], target).files[0].pruned == 0
    with closing(open_existing(path, read_only=True)) as local:
        [(noted,)] = local.execute("select delivered_at from batch").fetchall()
    assert abs(noted - time.time()) < 3600
    assert drain([path], target, keep_delivered_s=0).files[0].pruned == 10


def test_a_file_at_its_cap_is_pruned_whatever_the_clock_says(path: Path, target: str) -> None:
    with Outbox(path, max_bytes=1_000_000) as box:
        rows = first = fill(box)
        drain([path], target, batch_rows=50)
        note_deliveries_ten_years_ahead(path)
        for _ in range(3):
            rows += fill(box)
            assert drain([path], target, batch_rows=50).ok
    assert rows > 3.5 * first


def test_a_full_file_accepts_records_while_it_is_drained(path: Path, target: str) -> None:
    with Outbox(path, max_bytes=2_000_000) as box:
        rows = fill(box)
        accepted: list[int] = []

        def progress(done: int, total: int, unit: str) -> None:
            if done < rows // 2:
                try:
                    box.append("note", {"text": "x" * 2000})
                    accepted.append(done)
                except OutboxFull:
                    pass

        report = drain([path], target, batch_rows=50, progress=progress)
        assert report.delivered == rows
    assert min(accepted) == 50  # as soon as the first batch was delivered
    assert len(accepted) > rows // 200


def test_a_drain_that_ends_early_has_pruned(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{"n": n} for n in range(1000)])
    stop = threading.Event()
    report = drain(
        [path],
        target,
        batch_rows=100,
        keep_delivered_s=0,
        stop=stop,
        progress=lambda done, total, unit: done >= 500 and stop.set(),
    )
    assert (report.files[0].state, report.delivered) == ("stopped", 500)
    assert report.files[0].pruned == 500


def test_a_drain_prunes_all_that_is_due(box: Outbox, path: Path, target: str) -> None:
    """333 rows a second, drained every five minutes, are 100,000 rows a drain."""
    rows = 333 * 300 + 20_000
    box.append_many("note", [{"n": n} for n in range(rows)])
    assert drain([path], target).files[0].pruned == 0
    report = drain([path], target, keep_delivered_s=0)
    assert (report.delivered, report.files[0].pruned) == (0, rows)
    assert kept(path) == []


def pages(path: Path) -> int:
    with closing(open_existing(path, read_only=True)) as local:
        (count,) = local.execute("pragma page_count").fetchone()
    return int(count)


@pytest.mark.parametrize("auto_vacuum", ["incremental", "none"])
def test_pruning_gives_disk_space_back(path: Path, target: str, auto_vacuum: str) -> None:
    """The files of earlier versions have auto_vacuum=none."""
    if auto_vacuum == "none":
        Outbox(path).close()
        with closing(sqlite3.connect(path, isolation_level=None)) as local:
            local.execute("pragma auto_vacuum = none")
            local.execute("vacuum")
    with Outbox(path) as box:
        box.append_many("note", [{"text": "x" * 20_000} for _ in range(2500)])
        before = pages(path)
        report = drain([path], target, keep_delivered_s=0)
        assert report.files[0].pruned == 2500
        after = pages(path)
        print(f"\n{auto_vacuum}: {before * 4096:,} bytes before, {after * 4096:,} after")
        assert (before > 12_000, after <= 16 * 256 + 100) == (True, True)
        # Small amounts stay in the file for the next records.
        box.append_many("note", [{"text": "x" * 20_000} for _ in range(250)])
        drain([path], target, keep_delivered_s=0)
        assert pages(path) > 1000
        box.append("note", {})
        assert drain([path], target).ok
    assert reconcile([path], target).ok
