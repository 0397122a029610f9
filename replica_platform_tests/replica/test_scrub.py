"""`scrub`: all bytes are read in time, and damage under an unbroken seal is found and repaired."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.core.files import write_atomically
from replica_platform.replica import (
    BlockStore,
    Master,
    Publication,
    ReplicaReader,
    prepare,
    publish,
    repair,
    rollback,
    scrub,
    status,
    verify,
)
from replica_platform.replica.copy.blocks import block_range
from replica_platform.replica.errors import NothingPublished, StoreBusy
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, Seal
from replica_platform_tests.replica.conftest import damage

COUNT = "select count(*) from bars"
DAY = timedelta(days=1)


def rot(store: Path, manifest: Manifest, *blocks: int) -> None:
    """Change a generation's bytes without breaking its seal, as a disk does.

    A change breaks the seal, so the generation is sealed again.
    """
    layout = Layout(store)
    for block in blocks:
        damage(layout.data(manifest), block_range(block, manifest.bytes)[0] + 99, os.urandom(9))
    for path in (layout.manifest_path(manifest), layout.pointer, layout.pointer_copy):
        found = Manifest.from_json(path.read_bytes())
        if found.file == manifest.file:
            sealed = replace(found, seal=Seal.of(layout.data(manifest)))
            write_atomically(path, sealed.to_json())


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that lets so many days pass."""
    import sys

    moment = [datetime.now(UTC)]
    for name in ("scrub", "store.scrub_state"):
        module = sys.modules[f"replica_platform.replica.{name}"]
        monkeypatch.setattr(module, "now", lambda: moment[0])

    def passed(count: float) -> None:
        moment[0] += count * DAY

    return passed


@pytest.fixture
def everything(store: Path) -> Callable[..., object]:
    """A function that reads the whole store at once."""
    return lambda **sources: scrub(store, within_s=0, **sources)


def test_every_block_is_read_within_the_time_and_only_a_share_each_time(
    publish_next: Callable[..., Publication], store: Path, days: Callable[[float], None]
) -> None:
    blocks = sum(len(publish_next(day).manifest.block_digests) for day in (3, 4))
    read = []
    for _ in range(14):
        days(0.5)
        found = scrub(store, within_s=7 * 86_400)
        assert found.ok, found.sentence
        read.append(found.blocks_read)
    assert sum(read) >= blocks
    assert max(read) <= blocks / 4
    # The next week begins again with the first block.
    for _ in range(14):
        days(0.5)
        assert scrub(store, within_s=7 * 86_400).ok


def test_damage_anywhere_is_found_within_the_time(
    publish_next: Callable[..., Publication], store: Path, days: Callable[[float], None]
) -> None:
    manifest = publish_next().manifest
    last = len(manifest.block_digests) - 1
    for block in (0, 1, last // 2, last):
        copy = store.with_name(f"store{block}")
        shutil.copytree(store, copy, symlinks=True)
        rot(copy, manifest, block)
        assert status(copy).ok  # nothing but a scrub sees it
        found = []
        for _ in range(8):
            days(1)
            found += scrub(copy, within_s=7 * 86_400).damaged
        assert 1 in found, f"block {block}"


def test_a_late_scrub_says_that_it_is_behind(
    publish_next: Callable[..., Publication], store: Path, days: Callable[[float], None]
) -> None:
    publish_next()
    days(8)
    found = scrub(store, within_s=7 * 86_400, most_bytes=600_000)
    assert (found.ok, found.behind) == (False, [1])
    assert 0 < found.bytes_read <= 600_000
    assert "scrub more often" in found.sentence
    assert scrub(store, within_s=7 * 86_400).behind == []


def test_damage_is_repaired_from_another_generation(
    publish_next: Callable[..., Publication],
    store: Path,
    everything: Callable[..., object],
) -> None:
    """All blocks but those that changed are in both."""
    first, second = publish_next(3).manifest, publish_next(4).manifest
    shared = [
        block
        for block, (one, other) in enumerate(
            zip(first.block_digests, second.block_digests, strict=False)
        )
        if one == other
    ][:2]
    with ReplicaReader(store, poll_s=600) as reader:
        assert reader.query(COUNT) == [(5,)]
        rot(store, second, *shared)
        assert (status(store).ok, verify(store).ok) == (True, False)
        found = everything()
        assert (found.damaged, found.repaired, found.ok) == ([2], [2], True)  # type: ignore[attr-defined]
        assert (status(store).ok, verify(store).ok, status(store).generation) == (True, True, 2)
        reader._server.refresh()
        assert (reader.query(COUNT), reader.status().served_from) == ([(5,)], "current")
    assert repair(store) is None


def test_an_older_generation_is_repaired_from_the_block_store(
    publish_next: Callable[..., Publication],
    store: Path,
    tmp_path: Path,
    everything: Callable[..., object],
) -> None:
    first = publish_next(3).manifest
    block_store = BlockStore(tmp_path / "blocks")
    block_store.push(store)
    publish_next(4)
    rot(store, first, *range(len(first.block_digests)))
    found = everything()
    assert (found.ok, found.damaged, found.repaired) == (False, [1], [])  # type: ignore[attr-defined]
    assert "give a block store" in found.sentence  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="other bytes"):
        rollback(store)
    assert status(store).ok  # the current one is whole
    assert everything(block_store=block_store).repaired == [1]  # type: ignore[attr-defined]
    assert rollback(store).generation == 1
    assert verify(store).ok
    assert Layout(store).data(first).stat().st_mode & 0o777 == 0o444


def test_damage_is_repaired_from_the_master(
    publish_next: Callable[..., Publication],
    master: Master,
    store: Path,
    everything: Callable[..., object],
) -> None:
    only = publish_next(3, keep=1, max_age_s=3600).manifest
    rot(store, only, 3)
    found = everything(master=master.path)
    assert (found.damaged, found.repaired, found.ok) == ([1], [1], True)  # type: ignore[attr-defined]
    assert (status(store).generation, verify(store).ok) == (2, True)
    current = Layout(store).current()
    assert current is not None
    assert current.max_age_s == 3600


@pytest.mark.parametrize("how", ["publish", "repair"])
def test_after_a_scrub_found_damage_nothing_says_unchanged(
    publish_next: Callable[..., Publication],
    master: Master,
    store: Path,
    everything: Callable[..., object],
    how: str,
) -> None:
    """The bytes may look right to the others: the damage is on the disk, not in the page cache."""
    only = publish_next(3).manifest
    whole = Layout(store).data(only).read_bytes()
    rot(store, only, 3)
    # The control: before the scrub, the seal hides it.
    assert publish(master.path, store).how == "unchanged"
    with ReplicaReader(store, poll_s=600) as reader:
        assert reader.query(COUNT) == [(4,)]
        assert everything().damaged == [1]  # type: ignore[attr-defined]
        damage(Layout(store).data(only), 0, whole)
        assert "damaged" in status(store).sentence
        assert not verify(store).ok
        reader._server.refresh()
        assert reader.query(COUNT, default=[]) == [(4,)]
        assert reader.status().served_from == "memory"
        again = (
            publish(master.path, store) if how == "publish" else repair(store, master=master.path)
        )
        assert again is not None
        assert (again.generation, again.how) == (2, "copy")
        reader._server.refresh()
        assert (reader.query(COUNT), reader.status().served_from) == ([(4,)], "current")
    assert verify(store).ok


def test_a_missing_file_of_an_older_generation_is_found_and_restored(
    publish_next: Callable[..., Publication],
    store: Path,
    tmp_path: Path,
    everything: Callable[..., object],
) -> None:
    first = publish_next(3)
    block_store = BlockStore(tmp_path / "blocks")
    block_store.push(store)
    publish_next(4)
    first.file.unlink()
    assert everything(block_store=block_store).repaired == [1]  # type: ignore[attr-defined]
    assert verify(store, 1).ok


def test_a_damaged_generation_retires_and_is_not_patched(
    publish_next: Callable[..., Publication], store: Path, everything: Callable[..., object]
) -> None:
    first = publish_next(3).manifest
    publish_next(4)
    rot(store, first, *range(len(first.block_digests)))
    everything()
    publish_next(5, keep=1)
    assert {path.suffix for path in (store / "generations").iterdir()} == {
        ".duckdb",
        ".json",
        ".lease",
    }
    assert all(str(first.file) != path.name for path in (store / "spare").iterdir())
    assert verify(store).ok


def test_a_state_that_was_rolled_back_is_not_published_by_a_scrub(
    publish_next: Callable[..., Publication],
    master: Master,
    store: Path,
    everything: Callable[..., object],
) -> None:
    first = publish_next(3).manifest
    publish_next(4)
    rollback(store)
    rot(store, first, *range(len(first.block_digests)))
    found = everything(master=master.path)
    assert (found.ok, found.repaired) == (False, [])  # type: ignore[attr-defined]
    assert status(store).generation == 1


def test_a_waiting_candidate_survives_a_repair(
    publish_next: Callable[..., Publication],
    master: Master,
    store: Path,
    tmp_path: Path,
    everything: Callable[..., object],
) -> None:
    first = publish_next(3).manifest
    block_store = BlockStore(tmp_path / "blocks")
    block_store.push(store)
    with master.write() as connection:
        connection.execute("delete from bars")
    candidate = prepare(master.path, store)
    rot(store, first, 2)
    assert everything(block_store=block_store).repaired == [1]  # type: ignore[attr-defined]
    assert candidate.release().generation == 2


def test_an_empty_store_and_a_second_scrub_have_clear_errors(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    from replica_platform.core import locks

    with pytest.raises(NothingPublished, match="publish into it first"):
        scrub(store)
    publish_next()
    with (
        locks.file_lock(store / ".scrub.lock"),
        pytest.raises(StoreBusy, match="wait for it"),
    ):
        scrub(store)


def test_a_damaged_state_file_begins_again(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    manifest = publish_next().manifest
    for content in (b"{", b'{"last": 7}', b"[]"):
        (store / "scrub.json").write_bytes(content)
        assert scrub(store, within_s=0).blocks_read == len(manifest.block_digests)
