"""The block store, in a folder and in a bucket: push, pull, verify, point, repair and prune."""

import copy
import filecmp
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.blocks.errors import BlockMissing, BlockStoreDamaged, BlockStoreUnavailable
from replica_platform.replica import (
    BlockStore,
    Master,
    Part,
    Publication,
    Purpose,
    ReplicaReader,
    publish,
    repair,
    rollback,
    status,
    verify,
)
from replica_platform.replica.errors import GenerationDamaged, NothingPublished, PointerMoved
from replica_platform.replica.store.layout import Layout
from replica_platform_tests.replica.conftest import damage

COUNT = "select count(*) from bars"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[str], BlockStore]]:
    """A function that makes a bucket on moto's S3 server and a block store in it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"

    def make(name: str) -> BlockStore:
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
        return BlockStore(
            f"s3://{name}/market",
            endpoint=endpoint,
            access_key_id="key",
            secret_access_key="secret",
            region="us-east-1",
            client_options={"allow_http": True},
        )

    yield make
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def block_store(
    request: pytest.FixtureRequest, tmp_path: Path, bucket: Callable[[str], BlockStore]
) -> BlockStore:
    if request.param == "folder":
        return BlockStore(tmp_path / "blocks")
    return bucket(f"b{abs(hash(request.node.nodeid)):x}"[:40])


@pytest.fixture
def other_store(tmp_path: Path) -> Path:
    """A store in another region."""
    return tmp_path / "elsewhere"


def test_a_region_pulls_what_was_pushed(
    publish_next: Callable[..., Publication],
    block_store: BlockStore,
    store: Path,
    other_store: Path,
) -> None:
    first = publish_next()
    pushed = block_store.push(store)
    assert pushed.blocks_sent == pushed.block_count
    assert pushed.bytes_sent < pushed.bytes
    pulled = block_store.pull(other_store)
    assert (pulled.generation, pulled.how) == (1, "pull")
    assert filecmp.cmp(pulled.file, first.file, shallow=False)
    with ReplicaReader(other_store) as reader:
        assert reader.query(COUNT) == [(4,)]
    assert block_store.pull(other_store).how == "unchanged"


def test_each_block_is_sent_and_fetched_once(
    publish_next: Callable[..., Publication],
    block_store: BlockStore,
    store: Path,
    other_store: Path,
) -> None:
    publish_next()
    block_store.push(store)
    block_store.pull(other_store)
    second = publish_next(4)
    pushed = block_store.push(store)
    assert 0 < pushed.blocks_sent < pushed.block_count / 2
    pulled = block_store.pull(other_store, min_age_s=0)
    assert pulled.generation == 2
    assert pulled.blocks_written == pushed.blocks_sent
    assert filecmp.cmp(pulled.file, second.file, shallow=False)
    assert block_store.push(store).blocks_sent == 0


def test_any_kept_generation_can_be_made_current(
    publish_next: Callable[..., Publication],
    block_store: BlockStore,
    store: Path,
    other_store: Path,
) -> None:
    for day in (3, 4):
        publish_next(day, keep=1)
        block_store.push(store)
    assert block_store.generations() == [2, 1]
    assert block_store.pull(other_store).generation == 2
    # The local store no longer has it; the block store does.
    with pytest.raises(NothingPublished):
        rollback(store, 1)
    assert block_store.pull(store, 1).generation == 1
    block_store.point(1)
    assert block_store.pull(other_store).generation == 1
    with ReplicaReader(other_store) as reader:
        assert reader.query(COUNT) == [(4,)]
    with pytest.raises(NothingPublished, match="Generation 9 is not kept"):
        block_store.pull(other_store, 9)


def test_the_pointer_moves_by_compare_and_swap(
    publish_next: Callable[..., Publication], block_store: BlockStore, store: Path
) -> None:
    publish_next()
    block_store.push(store)
    number, current = block_store.index.last_pointer()
    assert current is not None
    block_store.point(1)
    with pytest.raises(PointerMoved, match="nothing is lost"):
        block_store.index.move_pointer(number, current)


def test_of_many_concurrent_moves_of_the_pointer_one_succeeds(
    publish_next: Callable[..., Publication], block_store: BlockStore, store: Path
) -> None:
    """Eight at a time, eight times: each number is created once, and the others get an error."""
    publish_next()
    block_store.push(store)
    together = threading.Barrier(8)

    def move(round_: int) -> str:
        number, current = block_store.index.last_pointer()
        assert (number, current is None) == (round_, False)
        together.wait()
        try:
            block_store.index.move_pointer(number, current)
        except PointerMoved:
            return "refused"
        return "moved"

    with ThreadPoolExecutor(8) as pool:
        for round_ in range(1, 9):
            outcomes = sorted(pool.map(move, [round_] * 8))
            assert outcomes == ["moved"] + ["refused"] * 7
    assert len(block_store.objects.names("pointers")) == 9


def test_two_concurrent_pushes_lose_nothing(
    master: Master, block_store: BlockStore, tmp_path: Path, other_store: Path
) -> None:
    """Both send their blocks; one moves the pointer; the other gets an error and pushes again."""
    stores = [tmp_path / "one", tmp_path / "two"]
    for day, store in enumerate(stores, 3):
        with master.write() as connection:
            connection.execute("insert into bars values ('AAPL', ?, 11)", [day])
        publish(master.path, store)
    together = threading.Barrier(2)
    read_pointer = block_store.index.last_pointer

    def push(store: Path) -> str:
        mine = copy.copy(block_store)
        mine.index = copy.copy(block_store.index)

        def last_pointer() -> object:
            found = read_pointer()
            together.wait()  # both have seen the same pointer
            return found

        mine.index.last_pointer = last_pointer  # type: ignore[method-assign,assignment]
        try:
            mine.push(store)
        except PointerMoved:
            return "refused"
        return "moved"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(push, stores)) == ["moved", "refused"]
    for store, rows in zip(stores, (4, 5), strict=True):
        block_store.push(store)
        assert block_store.pull(other_store, min_age_s=0).manifest.tables["bars"].rows == rows


def test_a_damaged_or_missing_block_is_never_pulled(
    publish_next: Callable[..., Publication],
    block_store: BlockStore,
    store: Path,
    other_store: Path,
) -> None:
    publish_next()
    block_store.push(store)
    assert block_store.verify().ok
    first, second = sorted(block_store.objects.names("blocks"))[:2]
    block_store.objects.replace(first, b"no zstd at all")
    block_store.objects.remove([second])
    found = block_store.verify()
    assert (found.ok, found.damaged, found.missing) == (False, 1, 1)
    with pytest.raises(BlockStoreDamaged, match="push the generation again"):
        block_store.pull(other_store)
    assert status(other_store).generation is None
    assert list(Layout(other_store).candidates.iterdir()) == []
    block_store.push(store, resend=True)
    assert block_store.verify().ok
    assert block_store.pull(other_store).generation == 1


def test_the_stores_name_does_not_affect_verification(
    publish_next: Callable[..., Publication], store: Path, tmp_path: Path
) -> None:
    block_store = BlockStore(tmp_path / "what is missing")
    publish_next()
    block_store.push(store)
    first, second = sorted(block_store.objects.names("blocks"))[:2]
    block_store.objects.replace(first, b"no zstd at all")
    found = block_store.verify()
    assert (found.damaged, found.missing) == (1, 0)
    block_store.objects.remove([second])
    found = block_store.verify()
    assert (found.damaged, found.missing) == (1, 1)
    with pytest.raises(BlockMissing, match="push the generation"):
        block_store.block(Path(second).stem, 1)


def test_a_damaged_generation_is_repaired_from_blocks(
    publish_next: Callable[..., Publication], block_store: BlockStore, store: Path
) -> None:
    publish_next()
    second = publish_next(4)
    block_store.push(store)
    assert repair(store, block_store=block_store) is None
    damage(second.file, 300_000, b"\xff\x00\xff")
    with ReplicaReader(store, poll_s=600) as reader:
        assert reader.query(COUNT) == [(4,)]  # the previous one
        repaired = repair(store, block_store=block_store)
        assert repaired is not None
        assert (repaired.generation, repaired.how, repaired.blocks_written) == (2, "pull", 1)
        reader._server.refresh()
        assert reader.query(COUNT) == [(5,)]
    assert verify(store).ok


def test_pruning_keeps_what_can_be_pulled(
    publish_next: Callable[..., Publication],
    tmp_path: Path,
    store: Path,
    other_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from replica_platform.blocks import pool as module

    block_store = BlockStore(tmp_path / "blocks")
    for day in (3, 4, 5):
        publish_next(day)
        block_store.push(store)
    before = len(block_store.objects.names("blocks"))
    assert block_store.prune(2).removed == 0  # the blocks may belong to a running push
    monkeypatch.setattr(module, "PRUNE_AGE", timedelta(seconds=-60))
    assert 0 < block_store.prune(2).removed < before
    assert block_store.generations() == [3, 2]
    assert block_store.verify(2).ok
    assert block_store.pull(other_store).generation == 3


def test_without_a_block_store_the_master_is_published_again(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    first = publish_next()
    first.file.unlink()
    with pytest.raises(GenerationDamaged, match="give a block store or the master"):
        repair(store)
    repaired = repair(store, master=master.path)
    assert repaired is not None
    assert (repaired.generation, verify(store).ok) == (2, True)


def test_a_lost_pointer_or_link_is_restored(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    publish_next()
    (store / "current.json").write_bytes(b"{")
    assert repair(store) is not None
    assert status(store).ok
    (store / "current.json").unlink()
    assert repair(store) is not None
    assert status(store).ok
    (store / "stock_data_replica.db").unlink()
    assert repair(store) is not None
    assert (store / "stock_data_replica.db").exists()
    (store / "current.json").unlink()
    with ReplicaReader(store) as reader:
        assert reader.query(COUNT) == [(4,)]


def test_empty_and_unreachable_block_stores_have_clear_errors(tmp_path: Path, store: Path) -> None:
    with pytest.raises(NothingPublished, match="push a generation first"):
        BlockStore(tmp_path / "blocks").pull(store)
    absent = BlockStore(
        "s3://absent/market",
        endpoint="http://127.0.0.1:9",
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(BlockStoreUnavailable, match="Check its address"):
        absent.current()


def test_a_damaged_generation_is_not_pushed(
    publish_next: Callable[..., Publication], tmp_path: Path, store: Path
) -> None:
    damage(publish_next().file, 300_000, b"\xff")
    with pytest.raises(BlockStoreDamaged, match="was not pushed"):
        BlockStore(tmp_path / "blocks").push(store)


def test_repair_of_a_sound_replica_does_nothing(master: Master, store: Path) -> None:
    assert publish(master.path, store).generation == 1
    assert repair(store, master=master.path) is None


def test_repair_accepts_the_former_name_of_its_block_store(
    publish_next: Callable[..., Publication], tmp_path: Path, store: Path
) -> None:
    damaged = publish_next()
    block_store = BlockStore(tmp_path / "blocks")
    pushed = block_store.push(store)
    assert (pushed.ok, "blocks sent" in pushed.sentence) == (True, True)
    damage(damaged.file, 300_000, b"\xff\x00\xff")
    with pytest.warns(DeprecationWarning, match="block_store"):
        repaired = repair(store, blocks=block_store)
    assert repaired is not None
    assert repaired.how == "pull"


def test_every_generation_can_be_restored_by_number_and_by_time(
    publish_next: Callable[..., Publication],
    block_store: BlockStore,
    store: Path,
    other_store: Path,
) -> None:
    """Each is here byte for byte, long after the local store has retired it."""
    published = {}
    for day in range(3, 8):
        publication = publish_next(day, keep=1)
        published[publication.generation] = (
            publication.file.read_bytes(),
            publication.manifest.published_at,
        )
        block_store.push(store)
    assert status(store).kept == [5]
    for wanted, (content, moment) in published.items():
        for at in (wanted, moment, moment + timedelta(milliseconds=1)):
            found = block_store.pull(other_store, at, min_age_s=0)
            assert found.generation == wanted
            assert found.file.read_bytes() == content
    with pytest.raises(NothingPublished, match="is not kept"):
        block_store.pull(other_store, datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(ValueError, match="has no time zone"):
        block_store.pull(other_store, datetime(2020, 1, 1))


def test_a_push_and_a_pull_move_what_changed(
    publish_next: Callable[..., Publication],
    block_store: BlockStore,
    store: Path,
    other_store: Path,
) -> None:
    """The blocks that differ from the last generation, compressed, and the manifest."""
    before = publish_next(3)
    block_store.push(store)
    block_store.pull(other_store)
    after = publish_next(4)
    digests = after.manifest.block_digests
    changed = set(digests) - set(before.manifest.block_digests)
    pushed = block_store.push(store)
    pulled = block_store.pull(other_store)
    assert pushed.blocks_sent == pulled.blocks_written == len(changed) < len(digests)
    assert pushed.bytes_sent < len(changed) * 256 * 1024


def test_a_changed_purpose_withdraws_its_earlier_generations(
    master: Master, block_store: BlockStore, tmp_path: Path, other_store: Path
) -> None:
    wide = Purpose("crm", {"bars": Part(columns=("symbol", "close"))})
    narrow = Purpose("crm", {"bars": Part(columns=("symbol",))})
    store = tmp_path / "crm"
    publish(master.path, store, purpose=wide)
    block_store.push(store)
    block_store.pull(other_store)
    publish(master.path, store, purpose=narrow)
    pushed = block_store.push(store)
    assert pushed.withdrawn == [1]
    assert "Withdrawn, because the purpose changed: 1" in pushed.sentence
    assert block_store.generations() == [2]
    with pytest.raises(NothingPublished):
        block_store.pull(other_store, 1)
    block_store.pull(other_store)
    assert status(other_store).kept == [2]
