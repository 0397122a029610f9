"""Rollback: no fallback leads back to the generation that readers were taken from."""

from collections.abc import Callable
from pathlib import Path

import pytest

from replica_platform.replica import (
    BlockStore,
    Master,
    Publication,
    ReplicaReader,
    publish,
    repair,
    rollback,
    status,
)
from replica_platform.replica.errors import GenerationDamaged
from replica_platform_tests.replica.conftest import damage

COUNT = "select count(*) from bars"


@pytest.fixture
def rolled_back(publish_next: Callable[..., Publication], store: Path) -> Path:
    """A store with the generations 1 (4 bars) and 2 (5 bars), rolled back to 1."""
    publish_next()
    publish_next(4)
    rollback(store)
    return store


def rows(store: Path) -> int:
    with ReplicaReader(store, poll_s=600) as reader:
        (row,) = reader.query(COUNT)
        return int(row[0])


@pytest.mark.parametrize("torn", [b"", b'{"generation": 1, "fi'])
def test_a_torn_pointer_keeps_the_rollback(rolled_back: Path, master: Master, torn: bytes) -> None:
    pointer = rolled_back / "current.json"
    pointer.write_bytes(torn)
    assert rows(rolled_back) == 4
    repaired = repair(rolled_back)
    assert repaired is not None
    assert repaired.generation == 1
    # The state of the master that was rolled back stays withheld, too.
    assert publish(master.path, rolled_back).how == "unchanged"
    assert (status(rolled_back, master.path).ok, status(rolled_back).generation) == (True, 1)


def test_a_lost_pointer_keeps_the_rollback(rolled_back: Path) -> None:
    (rolled_back / "current.json").unlink()
    assert rows(rolled_back) == 4


def test_the_rollback_outlives_the_pointer_and_its_copy(rolled_back: Path) -> None:
    for pointer in rolled_back.glob("current*.json"):
        pointer.write_bytes(b"{")
    assert rows(rolled_back) == 4
    repaired = repair(rolled_back)
    assert repaired is not None
    assert repaired.generation == 1


def test_no_fallback_leads_to_the_generation_that_was_withheld(
    rolled_back: Path, publish_next: Callable[..., Publication]
) -> None:
    third = publish_next(5)
    damage(third.file, 300_000, b"\xff\x00\xff")
    assert rows(rolled_back) == 4


def test_a_withheld_generation_is_read_again_after_a_rollback_to_it(rolled_back: Path) -> None:
    assert rollback(rolled_back, 2).generation == 2
    for pointer in rolled_back.glob("current*.json"):
        pointer.unlink()
    assert rows(rolled_back) == 5


def test_a_pulled_older_generation_survives_a_torn_pointer(
    publish_next: Callable[..., Publication], store: Path, tmp_path: Path
) -> None:
    block_store = BlockStore(tmp_path / "blocks")
    for day in (3, 4):
        publish_next(day)
        block_store.push(store)
    block_store.point(1)
    block_store.pull(store)
    (store / "current.json").write_bytes(b"{")
    assert rows(store) == 4


def test_retirement_leaves_no_mark_of_a_withheld_generation(
    rolled_back: Path, publish_next: Callable[..., Publication]
) -> None:
    for day in (5, 6):
        publish_next(day, keep=1)
    assert {path.stem for path in (rolled_back / "generations").iterdir()} == {
        (rolled_back / "stock_data_replica.db").resolve().stem
    }


def test_the_withheld_state_is_not_published_because_the_other_one_is_damaged(
    rolled_back: Path, master: Master
) -> None:
    file = (rolled_back / "stock_data_replica.db").resolve()
    damage(file, 300_000, b"\xff\x00\xff")
    for act in (publish, lambda master, store: repair(store, master=master)):
        with pytest.raises(GenerationDamaged, match="were rolled back from"):
            act(master.path, rolled_back)
    assert status(rolled_back).generation == 1
    # A state that is new is published.
    with master.write() as connection:
        connection.execute("delete from bars where day = 4")
    assert publish(master.path, rolled_back).generation == 3
    assert rows(rolled_back) == 4


def test_the_withheld_state_is_published_on_purpose(rolled_back: Path, master: Master) -> None:
    damage((rolled_back / "stock_data_replica.db").resolve(), 300_000, b"\xff\x00\xff")
    assert publish(master.path, rolled_back, new_lineage=True).generation == 3
