"""A master that was touched but not written is read once, not at each `status` and publication."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from replica_platform.replica import Master, Publication, publish, rollback, status
from replica_platform.replica.copy import blocks
from replica_platform_tests.replica.conftest import damage


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that were read from end to end."""
    sizes: list[int] = []
    scan = blocks.scan

    def recorded(fd: int, file_bytes: int, *options: object, **more: object) -> blocks.Scan:
        sizes.append(file_bytes)
        return scan(fd, file_bytes, *options, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "scan", recorded)
    return sizes


def touch(master: Master, how: str) -> None:
    if how == "link":
        master.path.with_name("link.duckdb").hardlink_to(master.path)
    elif how == "chmod":
        master.path.chmod(0o600)
    else:
        os.utime(master.path)


@pytest.mark.parametrize("how", ["link", "chmod", "touch"])
def test_status_reads_a_touched_master_once(
    publish_next: Callable[..., Publication],
    master: Master,
    store: Path,
    scans: list[int],
    how: str,
) -> None:
    publish_next()
    touch(master, how)
    scans.clear()
    for _ in range(3):
        assert status(store, master.path).in_sync
    assert scans == [master.path.stat().st_size]


def test_publications_read_a_touched_master_once(
    publish_next: Callable[..., Publication], master: Master, store: Path, scans: list[int]
) -> None:
    publish_next()
    touch(master, "chmod")
    scans.clear()
    for _ in range(3):
        assert publish(master.path, store).how == "unchanged"
        assert status(store, master.path).in_sync
    assert scans == [master.path.stat().st_size]


def test_a_master_that_was_written_after_it_was_verified_is_noticed(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    """One bit, under the same header: the remembered seal is broken."""
    publish_next()
    for _ in range(2):
        touch(master, "chmod")
        assert status(store, master.path).in_sync
    damage(master.path, 300_000, b"\xff\x00\xff")
    assert status(store, master.path).in_sync is False
    assert status(store, master.path).in_sync is False


def test_the_memory_ends_with_the_next_generation(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    publish_next()
    touch(master, "chmod")
    assert status(store, master.path).in_sync
    with master.write() as connection:
        connection.execute("delete from bars")
    assert status(store, master.path).in_sync is False
    publish(master.path, store)
    assert status(store, master.path).in_sync
    touch(master, "chmod")
    rollback(store)
    assert publish(master.path, store).how == "unchanged"
    assert status(store, master.path).in_sync is False


def test_a_store_that_cannot_be_written_is_inspected(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    publish_next()
    touch(master, "chmod")
    (store / "master.json").mkdir()  # nothing can be remembered there
    assert status(store, master.path).in_sync
    assert status(store, master.path).in_sync
