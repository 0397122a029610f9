"""A master that was touched but not written is read once, not at each `status` and publication."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from replica_platform.replica import BlockStore, Master, Publication, publish, rollback, status
from replica_platform.replica.copy import blocks
from replica_platform.replica.copy.free_list import read_block_use
from replica_platform.replica.errors import WrongLineage
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


def touch(path: Path, how: str) -> None:
    if how == "link":
        path.with_name("link.duckdb").hardlink_to(path)
        path.with_name("link.duckdb").unlink()
    elif how == "chmod":
        path.chmod(0o600)
    else:
        os.utime(path)


@pytest.mark.parametrize("how", ["link", "chmod", "touch"])
def test_status_reads_no_touched_file(
    publish_next: Callable[..., Publication],
    master: Master,
    store: Path,
    scans: list[int],
    how: str,
) -> None:
    """It says that the file was touched; a publication compares its bytes, once."""
    replica = publish_next().file
    touch(master.path, how)
    scans.clear()
    for _ in range(3):
        found = status(store, master.path)
        assert (found.ok, found.in_sync) == (False, None)
        assert "publish it, which compares them" in found.sentence
    assert scans == []
    assert publish(master.path, store).how == "unchanged"
    assert status(store, master.path).in_sync
    touch(replica, how)
    scans.clear()
    assert "touched since it was verified; publish again" in status(store, master.path).sentence
    assert scans == []
    assert publish(master.path, store).how == "unchanged"
    assert status(store, master.path).ok


def test_a_pull_seals_a_touched_file_again(
    publish_next: Callable[..., Publication], store: Path, tmp_path: Path
) -> None:
    publish_next()
    block_store = BlockStore(tmp_path / "blocks")
    block_store.push(store)
    here = tmp_path / "here"
    touch(block_store.pull(here).file, "chmod")
    assert not status(here).ok
    assert block_store.pull(here).how == "unchanged"
    assert status(here).ok


def test_publications_read_a_touched_master_once(
    publish_next: Callable[..., Publication], master: Master, store: Path, scans: list[int]
) -> None:
    publish_next()
    touch(master.path, "chmod")
    scans.clear()
    for _ in range(3):
        assert publish(master.path, store).how == "unchanged"
        assert status(store, master.path).in_sync
    assert scans == [master.path.stat().st_size]


def used_block(master: Master) -> int:
    """Return the number of a block that holds rows."""
    fd = os.open(master.path, os.O_RDONLY)
    try:
        use = read_block_use(fd)
    finally:
        os.close(fd)
    return min({*range(use.header.block_count)} - use.free - {*use.metadata})


def test_a_master_that_was_written_after_it_was_verified_is_noticed(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    """One bit, under the same header: the remembered seal is broken."""
    publish_next()
    for _ in range(2):
        touch(master.path, "chmod")
        assert publish(master.path, store).how == "unchanged"
        assert status(store, master.path).in_sync
    damage(master.path, 12288 + 256 * 1024 * used_block(master) + 999, b"\xff\x00\xff")
    assert not status(store, master.path).ok
    with pytest.raises(WrongLineage, match="has parted from"):
        publish(master.path, store)


def test_the_memory_ends_with_the_next_generation(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    publish_next()
    touch(master.path, "chmod")
    assert publish(master.path, store).how == "unchanged"
    assert status(store, master.path).in_sync
    with master.write() as connection:
        connection.execute("delete from bars")
    assert status(store, master.path).in_sync is False
    publish(master.path, store)
    assert status(store, master.path).in_sync
    touch(master.path, "chmod")
    rollback(store)
    assert publish(master.path, store).how == "unchanged"
    assert status(store, master.path).in_sync is False


def test_a_store_that_cannot_be_written_is_inspected(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    publish_next()
    touch(master.path, "chmod")
    (store / "master.json").mkdir()  # nothing can be remembered there
    for _ in range(2):
        assert publish(master.path, store).how == "unchanged"
        assert status(store, master.path).in_sync is None
