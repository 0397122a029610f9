"""Backups kept as blocks: the price of changes, restores, keys, damage, retention, other hosts."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.backup import (
    Backup,
    BlockStoreUnavailable,
    Damaged,
    KeyMissing,
    NameTaken,
    backup,
    backups,
    cleanup,
    drill,
    fetch_manifests,
    keep_one_of_equal,
    restore,
    status,
    verify,
)
from replica_platform.backup.blocks import keys
from replica_platform.backup.blocks.store import BLOCK_BYTES, BackupBlocks
from replica_platform.blocks import objects
from replica_platform.blocks.cipher import digest
from replica_platform.blocks.objects import Objects
from replica_platform.core.errors import TerminalError
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.conftest import day

KEY, OTHER_KEY = "0f" * 32, "1e" * 32
ROWS = 300
SECRET = "only the owner knows"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A database of 1.2 MB that does not compress, so that sizes say what was sent."""
    file = tmp_path / "app.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table t (id integer primary key, v)")
        db.execute("create table confidential (v)")
        db.execute("insert into confidential values (?)", [SECRET])
        db.execute("begin")
        rows = ((os.urandom(2000).hex(),) for _ in range(ROWS))
        db.executemany("insert into t (v) values (?)", rows)
        db.execute("commit")
    return file


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folder of the block store; not made yet."""
    return tmp_path / "store"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key in the environment."""
    monkeypatch.setenv(keys.VARIABLE, KEY)
    return KEY


def change(file: Path) -> None:
    """Change one row."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("update t set v = ? where id = 150", [os.urandom(2000).hex()])


def bytes_in(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def blocks_in(store: Path, state: str = "blocks") -> list[Path]:
    return sorted(store.glob(f"backups*/{state}/*/*.zst"))


def content(file: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        return db.execute("select * from t order by id").fetchall()


@pytest.mark.parametrize("encrypt", [False, True])
def test_another_copy_costs_what_changed_and_each_restores(
    app: Path, folder: Path, store: Path, tmp_path: Path, key: str, encrypt: bool
) -> None:
    kept: list[tuple[Backup, list[tuple[object, ...]]]] = []
    for number in range(1, 4):
        change(app)
        taken = backup(app, folder, blocks=store, encrypt=encrypt, now=day(number))
        kept.append((taken, content(app)))
    assert not list(folder.glob("*.db"))
    first, *later = [taken.used_bytes for taken, _ in kept]
    assert first > 600_000
    # One changed row, and page 1 with the change counter.
    assert all(used < 3 * BLOCK_BYTES for used in later)
    assert bytes_in(store) < first + sum(later) + 20_000
    assert status(folder, "app").bytes == first + sum(later)
    for taken, rows in kept:
        assert "as blocks" in taken.sentence and ("encrypted" in taken.sentence) is encrypt
        assert verify(taken.file).ok
        assert content(restore(taken.file, tmp_path / "restored.db").file) == rows
    report = drill(folder, "app")
    assert report.ok and report.file == kept[0][0].file
    assert sorted(path.name for path in folder.glob(".*")) == [".app.drill.lock", ".app.lock"]


def test_two_copies_of_one_content_cost_nothing(app: Path, folder: Path, store: Path) -> None:
    first = backup(app, folder, blocks=store, now=day(1))
    second = backup(app, folder, blocks=store, now=day(2))
    assert (second.sha256, second.used_bytes) == (first.sha256, 0)
    assert keep_one_of_equal(second, "app", within_s=1e6) == first
    assert backups(folder) == [backups(folder)[0]] and len(list(store.glob("backups/man*/*"))) == 1


def test_blocks_are_digested_while_the_copy_is_checked(
    app: Path, folder: Path, store: Path, tmp_path: Path, in_the_child, monkeypatch
) -> None:
    begun, digests = tmp_path / "digests began", BackupBlocks.digests
    monkeypatch.setattr(
        BackupBlocks, "digests", lambda self, file: (begun.touch(), digests(self, file))[1]
    )
    in_the_child(
        "import pathlib, time\n"
        "from replica_platform.backup.child import check\n"
        "integrity, until = check.check_integrity, time.monotonic() + 5\n"
        "def awaiting(db):\n"
        f"    while not pathlib.Path({str(begun)!r}).exists():\n"
        "        if time.monotonic() > until: raise OSError('no block was digested')\n"
        "        time.sleep(0.01)\n"
        "    return integrity(db)\n"
        "check.check_integrity = awaiting"
    )
    assert verify(backup(app, folder, blocks=store).file).ok


def test_of_a_damaged_file_no_block_is_sent(app: Path, folder: Path, store: Path) -> None:
    with closing(sqlite3.connect(app, isolation_level=None)) as db:
        db.execute("create index t_by_v on t (substr(v, 1, 20))")
        db.execute("pragma wal_checkpoint(truncate)")
        db.execute("pragma writable_schema=on")
        # The index is then one of other values than its entries have.
        db.execute("update sqlite_master set sql = replace(sql, '1, 20', '2, 20')")
    with pytest.raises(Damaged, match="is damaged"):
        backup(app, folder, blocks=store)
    assert not blocks_in(store) and not list(folder.glob("*.json"))


def test_nothing_of_the_content_can_be_read_or_recognised_without_the_key(
    app: Path, folder: Path, store: Path, key: str
) -> None:
    backup(app, folder, blocks=store, encrypt=True)
    everything = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    names = {path.stem for path in blocks_in(store)}
    head = app.read_bytes()[2 * BLOCK_BYTES : 3 * BLOCK_BYTES]
    assert digest(head) not in names
    assert key.encode() not in everything and bytes.fromhex(key) not in everything
    assert b"confidential" not in everything and SECRET.encode() not in everything
    # In clear, both can be found: the check above can fail.
    clear = store.with_name("clear")
    backup(app, folder, blocks=clear, now=day(1))
    assert digest(head) in {path.stem for path in blocks_in(clear)}


def test_a_missing_key_is_named_and_a_former_one_still_decrypts(
    app: Path, folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyMissing, match="there is none"):
        backup(app, folder, blocks=store, encrypt=True)
    monkeypatch.setenv(keys.VARIABLE, "not hexadecimal")
    with pytest.raises(KeyMissing, match="64 hexadecimal digits") as refused:
        backup(app, folder, blocks=store, encrypt=True)
    assert "not hexadecimal" not in str(refused.value).replace("64 hexadecimal", "")
    monkeypatch.setenv(keys.VARIABLE, KEY)
    old = backup(app, folder, blocks=store, encrypt=True, now=day(1))
    monkeypatch.setenv(keys.VARIABLE, OTHER_KEY)
    for work in (verify, lambda file: restore(file, tmp_path / "restored.db")):
        with pytest.raises(KeyMissing, match=f"{old.key_id}.* after a space"):
            work(old.file)
    assert backups(folder)[0].damage is None  # a missing key is no damage
    # The remedy of the sentence.
    monkeypatch.setenv(keys.VARIABLE, f"{OTHER_KEY} {KEY}")
    new = backup(app, folder, blocks=store, encrypt=True, now=day(2))
    assert new.key_id != old.key_id
    assert verify(old.file).ok and verify(new.file).ok
    with pytest.raises(TerminalError, match="--blocks"):
        backup(app, folder, encrypt=True)


def test_the_command_that_the_error_names_makes_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with os.popen(keys.MAKE_ONE) as made:
        monkeypatch.setenv(keys.VARIABLE, made.read())
    assert keys.encrypting_cipher().key_id


@pytest.mark.parametrize("encrypt", [False, True])
def test_a_damaged_block_is_found_and_the_next_backup_sends_it_again(
    app: Path, folder: Path, store: Path, tmp_path: Path, key: str, encrypt: bool
) -> None:
    first = backup(app, folder, blocks=store, encrypt=encrypt, now=day(1))
    block = blocks_in(store)[7]
    bad = bytearray(block.read_bytes())
    bad[len(bad) // 2] ^= 1
    block.write_bytes(bad)
    found = verify(first.file)
    assert not found.ok and f"The block {block.stem}" in found.sentence
    assert not status(folder, "app").ok
    target = tmp_path / "restored.db"
    with pytest.raises(Damaged, match="choose an older one"):
        restore(first.file, target)
    assert not target.exists() and not drill(folder, "app").ok
    second = backup(app, folder, blocks=store, encrypt=encrypt, now=day(2))
    assert verify(second.file).ok and verify(first.file).ok


def test_a_missing_block_is_found(app: Path, folder: Path, store: Path) -> None:
    taken = backup(app, folder, blocks=store)
    blocks_in(store)[3].unlink()
    assert "is missing" in verify(taken.file).sentence
    shutil.rmtree(store / "backups" / "manifests")
    assert "The manifest" in verify(taken.file).sentence


def test_a_backup_that_was_cut_off_goes_on_where_it_was(
    app: Path, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, created = Objects.create, []

    def until_the_tenth(self: Objects, name: str, content: bytes) -> bool:
        if len(created) == 10:
            raise BlockStoreUnavailable("cut off")
        created.append(name)
        return create(self, name, content)

    monkeypatch.setattr(Objects, "create", until_the_tenth)
    with pytest.raises(BlockStoreUnavailable):
        backup(app, folder, blocks=store)
    monkeypatch.undo()
    assert backups(folder) == [] and not list(folder.glob(".tmp-*"))
    before = {path: path.stat().st_mtime_ns for path in blocks_in(store)}
    assert len(before) >= 10
    taken = backup(app, folder, blocks=store)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert verify(taken.file).ok
    assert taken.used_bytes < bytes_in(store) - 9 * BLOCK_BYTES // 2


@pytest.mark.parametrize("each", [1000, 1])
def test_blocks_of_a_folder_are_on_the_disk_before_the_manifest_that_names_them(
    app: Path, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch, each: int
) -> None:
    synced: set[Path] = set()
    at_the_manifest: list[bool] = []
    create = Objects.create

    def noting(self: Objects, name: str, content: bytes) -> bool:
        if "/manifests/" in name:
            at_the_manifest.append(synced >= {*blocks_in(store)})
        return create(self, name, content)

    monkeypatch.setattr(objects, "SYNC_EACH", each)  # more objects are synced by one call
    monkeypatch.setattr(objects, "fsync_file", synced.add)
    monkeypatch.setattr(os, "sync", lambda: synced.update(blocks_in(store)))
    monkeypatch.setattr(Objects, "create", noting)
    backup(app, folder, blocks=store)
    assert at_the_manifest == [True]
    (manifest,) = store.glob("backups/manifests/*")
    assert manifest in synced


def test_retention_gives_blocks_back_a_day_later(
    app: Path, folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        change(app)
        backup(app, folder, blocks=store, now=day(number))
    all_blocks = blocks_in(store)
    two_days_ago = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    for path in all_blocks:
        os.utime(path, (two_days_ago, two_days_ago))
    cleanup(folder, "app", keep_days=0, keep_count=1, now=day(4))
    (kept,) = backups(folder)
    marked = blocks_in(store, "unused")
    assert 0 < len(marked) < 8 and len(blocks_in(store)) + len(marked) == len(all_blocks)
    assert verify(kept.file).ok
    # What is needed again is taken out of the marked ones; the rest goes.
    for path in marked:
        past = datetime.now(UTC) - timedelta(days=2)
        aged = path.parent.with_name(f"{past:%Y%m%dT%H%M%SZ}")
        path.parent.exists() and path.parent.rename(aged)
    cleanup(folder, "app", keep_days=0, keep_count=1, now=day(4))
    assert blocks_in(store, "unused") == []
    restored = restore(kept.file, tmp_path / "restored.db").file
    assert content(restored) == content(app)


@pytest.mark.parametrize("jump", [timedelta(days=3650), timedelta(days=-3650)])
def test_a_clock_that_jumps_ten_years_removes_no_block_that_is_needed(
    app: Path, folder: Path, store: Path, jump: timedelta
) -> None:
    first = backup(app, folder, blocks=store, now=day(1))
    blocks, now = BackupBlocks(store, None), datetime.now(UTC)
    # A backup of another host is on its way: its blocks are there, its manifest is not yet.
    (store / "backups" / "manifests").rename(store / "aside")
    blocks.prune(now + jump)
    blocks.prune(now + jump)
    (store / "aside").rename(store / "backups" / "manifests")
    assert verify(first.file).ok  # read from where they are marked
    blocks.prune(now)
    assert blocks_in(store, "unused") == []
    change(app)
    second = backup(app, folder, blocks=store, now=day(2))
    assert verify(first.file).ok and verify(second.file).ok


def test_a_prune_that_cannot_read_a_manifest_removes_nothing(
    app: Path, folder: Path, store: Path
) -> None:
    taken = backup(app, folder, blocks=store)
    two_days_ago = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    for path in blocks_in(store):
        os.utime(path, (two_days_ago, two_days_ago))
    (manifest,) = store.glob("backups/manifests/*")
    manifest.write_bytes(manifest.read_bytes()[:-5])
    before = blocks_in(store)
    with pytest.raises(TerminalError, match="nothing was removed"):
        BackupBlocks(store, None).prune()
    assert blocks_in(store) == before and taken.manifest.exists()


def test_blocks_that_a_prune_removes_during_a_backup_are_sent_again(
    app: Path, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another host the backup that this one relies on is deleted, with its blocks."""
    backup(app, folder, blocks=store, now=day(1))
    send = BackupBlocks.send

    def and_then_all_is_removed(self: BackupBlocks, *given: object, **named: object) -> object:
        sent = send(self, *given, **named)  # type: ignore[arg-type]
        shutil.rmtree(store / "backups" / "manifests")
        shutil.rmtree(store / "backups" / "blocks")
        return sent

    monkeypatch.setattr(BackupBlocks, "send", and_then_all_is_removed)
    change(app)
    taken = backup(app, folder, blocks=store, now=day(2))
    assert verify(taken.file).ok


@pytest.mark.parametrize("encrypt", [False, True])
def test_another_host_finds_and_restores_them(
    app: Path, folder: Path, store: Path, tmp_path: Path, key: str, encrypt: bool
) -> None:
    taken = backup(app, folder, blocks=store, encrypt=encrypt)
    rows = content(app)
    shutil.rmtree(folder)
    app.unlink()
    new_home = tmp_path / "elsewhere"
    store.rename(new_home)
    (found,) = fetch_manifests(new_home, folder)
    assert (found.sha256, found.blocks) == (taken.sha256, str(new_home))
    assert fetch_manifests(new_home, folder) == []
    assert content(restore(found.file, tmp_path / "restored.db").file) == rows


def test_two_hosts_that_use_one_name_in_one_second_do_not_mix(
    app: Path, folder: Path, store: Path, tmp_path: Path
) -> None:
    first = backup(app, folder, blocks=store, now=day(1))
    change(app)
    with pytest.raises(NameTaken, match="another name"):
        backup(app, tmp_path / "other", blocks=store, now=day(1))
    assert backups(tmp_path / "other") == [] and verify(first.file).ok


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A function that makes a bucket on moto's S3 server and returns its URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)

    def make() -> str:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket="kept")
        return "s3://kept/nightly"

    yield make
    server.stop()


def test_blocks_in_a_bucket(
    app: Path, folder: Path, tmp_path: Path, key: str, bucket: Callable[[], str]
) -> None:
    url = bucket()
    first = backup(app, folder, blocks=url, encrypt=True, now=day(1))
    change(app)
    second = backup(app, folder, blocks=url, encrypt=True, now=day(2))
    assert second.used_bytes < 3 * BLOCK_BYTES < first.used_bytes
    cleanup(folder, "app", keep_days=0, keep_count=1, now=day(9))
    (found,) = fetch_manifests(url, tmp_path / "other")
    assert found.sha256 == second.sha256
    assert content(restore(found.file, tmp_path / "restored.db").file) == content(app)


def test_a_plain_backup_stays_the_default_and_both_live_in_one_folder(
    app: Path, folder: Path, store: Path
) -> None:
    plain = backup(app, folder, now=day(1))
    as_blocks = backup(app, folder, blocks=store, now=day(2))
    assert plain.file.exists() and plain.blocks is None
    assert not as_blocks.file.exists()
    assert [taken.file for taken in backups(folder)] == [as_blocks.file, plain.file]
    assert cleanup(folder, "app", keep_days=0, keep_count=1, now=day(9)) == [plain.file]
