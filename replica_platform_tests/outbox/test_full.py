"""A full disk and a file at its cap: reported to the caller, nothing lost, drained again."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from replica_platform.outbox import Outbox, drain, file
from replica_platform.outbox.errors import OutboxFull
from replica_platform.outbox.reserve import reserve_path

Ask = Callable[..., list[tuple[Any, ...]]]
RECORD = {"text": "x" * 2000}


def fill(box: Outbox) -> list[str]:
    ids = []
    try:
        while True:
            ids.append(box.append("note", RECORD))
    except OutboxFull:
        return ids


def test_a_full_disk_is_reported_and_drained(small_disk: Path, target: str, ask: Ask) -> None:
    path = small_disk / "worker-1.db"
    with Outbox(path) as box:
        assert reserve_path(path).stat().st_size == 1024**2
        ids = fill(box)
        assert len(ids) > 1000
        with pytest.raises(OutboxFull, match="not saved"):
            box.append("note", RECORD)
        report = drain([path], target)
        assert (report.delivered, report.pending, report.ok) == (len(ids), 0, True)
        assert report.files[0].pruned == len(ids)
        ids.append(box.append("note", RECORD))
        assert drain([path], target).delivered == 1
    arrived = {id for (id,) in ask("select id::text from outbox.record")}
    print(f"\nfull disk: {len(ids)} acknowledged, lost {len(set(ids) - arrived)}")
    assert arrived == set(ids)


def test_without_the_reserve_a_full_disk_stops_the_drain(small_disk: Path, target: str) -> None:
    """The negative control: the delivery cannot be noted, so nothing can be pruned."""
    path = small_disk / "worker-1.db"
    with Outbox(path) as box:
        reserve_path(path).unlink()
        ids = fill(box)
        report = drain([path], target)
    assert report.files[0].state == "failed"
    assert 0 < report.pending <= len(ids)


def test_a_file_at_its_cap_accepts_records_after_a_drain(path: Path, target: str, ask: Ask) -> None:
    with Outbox(path, max_bytes=1_000_000) as box:
        first = fill(box)
        assert drain([path], target).files[0].pruned == len(first)
        second = fill(box)
        assert len(second) > len(first) // 2
        drain([path], target)
    assert ask("select count(*) from outbox.record") == [(len(first) + len(second),)]


def test_without_pressure_delivered_rows_stay(path: Path, target: str) -> None:
    with Outbox(path, max_bytes=1_000_000) as box:
        box.append_many("note", [RECORD] * 100)
        assert drain([path], target).files[0].pruned == 0


def test_a_damaged_file_is_named_and_does_not_delay_the_others(
    tmp_path: Path, target: str, ask: Ask
) -> None:
    for name in ("worker-1.db", "worker-2.db"):
        with Outbox(tmp_path / name) as box:
            box.append_many("note", [{**RECORD, "n": n} for n in range(300)])
    damaged = tmp_path / "worker-1.db"
    content = bytearray(damaged.read_bytes())
    content[100_000:400_000] = b"\xff" * 300_000
    damaged.write_bytes(content)
    report = drain([tmp_path], target)
    assert report.files[1].delivered == 300
    assert not report.files[0].ok
    assert "worker-1.db" in report.sentence


@contextmanager
def forgotten_reader(path: Path) -> Iterator[None]:
    """Another connection in the middle of a read transaction: the log cannot be reset."""
    with closing(file.open_existing(path, read_only=True)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from record").fetchone()
        yield
        reader.execute("rollback")


def bytes_of(path: Path) -> int:
    log = path.with_name(path.name + "-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


def test_a_forgotten_reader_fills_the_file_to_its_cap_only(
    path: Path, target: str, ask: Ask
) -> None:
    cap = 20 * 1024**2
    with Outbox(path, max_bytes=cap) as box:
        box.append("note", RECORD)
        with forgotten_reader(path):
            ids = fill(box)
            with pytest.raises(OutboxFull, match="reader"):
                box.append("note", RECORD)
            assert bytes_of(path) <= cap + 8 * 1024**2
        ids.append(box.append("note", RECORD))
        assert drain([path], target).pending == 0
        fill(box)
    assert ask("select count(*) from outbox.record") == [(len(ids) + 1,)]
    assert bytes_of(path) < cap + 8 * 1024**2


def test_a_full_disk_after_a_forgotten_reader_is_drained(
    small_disk: Path, target: str, ask: Ask
) -> None:
    path = small_disk / "worker-1.db"
    with Outbox(path) as box:
        box.append("note", RECORD)
        with forgotten_reader(path):
            ids = fill(box)
            assert not reserve_path(path).exists() or len(ids) > 100
        report = drain([path], target)
        assert (report.pending, report.ok, report.delivered) == (0, True, len(ids) + 1)
        ids.append(box.append("note", RECORD))
        assert drain([path], target).delivered == 1
    assert ask("select count(*) from outbox.record") == [(len(ids) + 1,)]
