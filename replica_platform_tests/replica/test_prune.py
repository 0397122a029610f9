"""Pruning a block store while generations are pushed: no block that is needed is lost."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.blocks.pool import BlockPool, Sent
from replica_platform.replica import BlockStore, Master, Publication, publish
from replica_platform.replica.remote import block_store as module

COUNT = "select count(*) from bars"


@pytest.fixture
def block_store(tmp_path: Path) -> BlockStore:
    return BlockStore(tmp_path / "blocks")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """A function that lets time pass for the block store."""
    moment = [datetime.now(UTC)]
    monkeypatch.setattr(module, "now", lambda: moment[0])

    def passed(time: timedelta) -> None:
        moment[0] += time

    return passed


@pytest.fixture
def reverted(master: Master, store: Path, block_store: BlockStore) -> Path:
    """A store whose newest generation has the content of the first one, which a prune removes."""
    publish(master.path, store, min_age_s=0)
    block_store.push(store)
    before = master.path.read_bytes()
    with master.write() as connection:
        connection.execute("create or replace table pad as select range i from range(1000)")
    publish(master.path, store, min_age_s=0)
    block_store.push(store)
    master.path.write_bytes(before)
    publish(master.path, store, min_age_s=0, new_lineage=True)
    return store


def in_between(
    block_store: BlockStore, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> None:
    """Act once, after the next push has looked at what is there and before it sends anything."""
    send = BlockPool.send
    done = []

    def acting(self: BlockPool, *arguments: object, **options: object) -> Sent:
        if not done:
            done.append(act())
        return send(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockPool, "send", acting)


DAYS = timedelta(days=2)


@pytest.mark.parametrize(
    "wait", [timedelta(0), timedelta(hours=1), DAYS], ids=["at once", "an hour", "days"]
)
def test_a_push_loses_nothing_to_a_prune_in_between(
    reverted: Path,
    block_store: BlockStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    later: Callable[[timedelta], None],
    wait: timedelta,
) -> None:
    """The push counts on blocks of a generation that the prune removes; also if it is very slow."""
    later(DAYS)
    removed: list[int] = []

    def prune_twice() -> None:
        removed.append(block_store.prune(1).removed)
        later(wait)
        removed.append(block_store.prune(1).removed)

    in_between(block_store, monkeypatch, prune_twice)
    block_store.push(reverted)
    assert (sum(removed) > 0) is (wait == DAYS)
    assert block_store.verify().ok
    pulled = block_store.pull(tmp_path / "elsewhere")
    assert pulled.manifest.tables["pad"].rows == 100_000
    later(DAYS)
    block_store.prune(1)
    later(DAYS)
    block_store.prune(1)
    assert block_store.verify().ok


def test_a_prune_marks_waits_and_then_removes(
    publish_next: Callable[..., Publication],
    block_store: BlockStore,
    store: Path,
    later: Callable[[timedelta], None],
) -> None:
    for day in (3, 4):
        publish_next(day)
        block_store.push(store)
    later(DAYS)
    before = len(block_store.objects.names("blocks"))
    first = block_store.prune(1)
    assert (first.generations, first.removed, first.restored) == ([1], 0, 0)
    assert 0 < first.marked < before
    assert len(block_store.objects.names("unused")) == first.marked
    later(timedelta(hours=23))
    assert block_store.prune(1).removed == 0
    later(timedelta(hours=2))
    assert block_store.prune(1).removed == first.marked
    assert block_store.objects.names("unused") == {}
    assert block_store.verify().ok
    assert "removed" in first.sentence


def test_a_marked_block_that_is_needed_again_is_restored(
    reverted: Path,
    block_store: BlockStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    later: Callable[[timedelta], None],
) -> None:
    later(DAYS)
    in_between(block_store, monkeypatch, lambda: block_store.prune(1))
    block_store.push(reverted)
    marked = len(block_store.objects.names("unused"))
    assert marked > 0
    # Until then it is read from where it is.
    assert block_store.verify().ok
    assert block_store.pull(tmp_path / "elsewhere").how == "pull"
    assert block_store.prune(1).restored > 0
    assert block_store.verify().ok


def test_an_interrupted_push_goes_on_where_it_was(
    publish_next: Callable[..., Publication],
    block_store: BlockStore,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish_next()
    create = block_store.objects.create
    sent: list[str] = []

    def failing(name: str, content: bytes) -> bool:
        if len(sent) == 5:
            raise ConnectionError("the network is gone")
        sent.append(name)
        return create(name, content)

    monkeypatch.setattr(block_store.objects, "create", failing)
    with pytest.raises(ConnectionError):
        block_store.push(store)
    monkeypatch.setattr(block_store.objects, "create", create)
    there = len(block_store.objects.names("blocks"))
    assert there == 5
    assert block_store.current() is None
    pushed = block_store.push(store)
    assert pushed.blocks_sent == pushed.block_count - there
    assert block_store.verify().ok
