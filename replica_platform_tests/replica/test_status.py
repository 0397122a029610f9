"""`status`: existence, sizes, ages and readers, and whether the replica is in sync by lineage."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Master, Publication, ReplicaReader, publish, status
from replica_platform.replica.errors import WrongLineage
from replica_platform.replica.store import manifest
from replica_platform_tests.replica.conftest import damage


def test_master_and_replica_side_by_side(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    nothing = status(store, master.path)
    assert (nothing.ok, nothing.master_there, nothing.replica_there) == (False, True, False)
    publication = publish_next(data_as_of=datetime.now(UTC) - timedelta(hours=2))
    with ReplicaReader(store) as reading:
        reading.query("select 1")
        found = status(store, master.path)
    assert (found.ok, found.master_there, found.replica_there) == (True, True, True)
    assert found.master_bytes == found.replica_bytes == publication.bytes
    assert (found.generation, found.kept, found.in_sync) == (1, [1], True)
    assert found.data_age_s == pytest.approx(7200, abs=60)
    assert found.publication_age_s == pytest.approx(0, abs=60)
    assert [(one.pid, one.generation) for one in found.readers] == [(os.getpid(), 1)]
    gone = status(store, master.path.with_name("absent.duckdb"))
    assert (gone.ok, gone.master_there, gone.in_sync) == (False, False, None)


def test_in_sync_is_by_lineage_not_by_size(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    """A comparison of sizes would call old prices current."""
    publish_next()
    with master.write() as connection:
        connection.execute("update bars set close = 99 where day = 3")
    found = status(store, master.path)
    assert found.master_bytes == found.replica_bytes
    assert (found.ok, found.in_sync) == (False, False)
    assert "publish it" in found.sentence


def test_a_restored_identical_master_is_in_sync(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    """The file is a new one, so a publication compares its bytes; status alone cannot tell."""
    publish_next()
    whole = master.path.read_bytes()
    master.path.unlink()
    master.path.write_bytes(whole)
    assert status(store, master.path).in_sync is None
    assert publish(master.path, store).how == "unchanged"
    assert status(store, master.path).in_sync
    master.path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert status(store, master.path).in_sync is None
    with pytest.raises(WrongLineage):
        publish(master.path, store)


def test_a_damaged_generation_is_reported(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    file = publish_next().file
    assert status(store).ok
    damage(file, 300_000, b"\xff\x00\xff")
    found = status(store)
    assert not found.ok
    assert "damaged" in found.sentence
    assert "publish again" in found.sentence


def test_a_hung_publisher_is_reported_although_reads_succeed(
    master: Master, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(master.path, store, max_age_s=3600)
    assert status(store, master.path).ok
    monkeypatch.setattr(manifest, "now", lambda: datetime.now(UTC) + timedelta(hours=2))
    found = status(store, master.path)
    assert (found.ok, found.in_sync) == (False, True)
    assert "see whether the publisher still runs" in found.sentence
    with ReplicaReader(store) as reading:
        assert reading.query("select count(*) from bars") == [(3,)]
        seen = reading.status()
    assert seen.served_from == "current"
    assert seen.publication_age_s is not None
    assert seen.publication_age_s > 3600
    monkeypatch.undo()
    assert publish(master.path, store).how == "unchanged"  # which confirms the generation
    assert status(store, master.path).ok


def test_other_duckdb_clients_are_listed(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    publish_next()
    with duckdb.connect(str(store / "stock_data_replica.db"), read_only=True):
        assert [one.pid for one in status(store).readers] == [os.getpid()]
    assert status(store).readers == []


def test_a_changed_limit_applies_although_the_data_is_unchanged(
    master: Master, store: Path
) -> None:
    publish(master.path, store, max_age_s=3600)
    unchanged = publish(master.path, store, max_age_s=-1)
    assert (unchanged.how, unchanged.manifest.max_age_s) == ("unchanged", -1)
    assert "at most" in status(store).sentence
