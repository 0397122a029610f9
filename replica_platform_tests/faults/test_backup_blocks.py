"""Backups as blocks: sixty copies and a restore of each, kill -9 at every step, retention too."""

import hashlib
import os
import random
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.backup import backup, backups, cleanup, fetch_manifests, restore, verify
from replica_platform.backup.blocks.keys import VARIABLE
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.faults import backup_writer
from replica_platform_tests.faults.backup_killed import killed_before_step

START = datetime(2026, 1, 1, 3, 0, tzinfo=UTC)
NEVER = 1_000_000


def at(day: int) -> datetime:
    return START + timedelta(days=day)


def in_a_fork(work: Callable[[], object]) -> None:
    """Run in a fork: the threads of the store's client do not live on in a later fork."""
    assert not killed_before_step(NEVER, work)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("encrypt", [False, True])
def test_many_copies_for_the_price_of_the_changes(
    tmp_path: Path, torture: bool, monkeypatch: pytest.MonkeyPatch, encrypt: bool
) -> None:
    """A restore of every kept copy has the bytes that were backed up."""
    monkeypatch.setenv(VARIABLE, os.urandom(32).hex())
    app, folder, store = tmp_path / "app.db", tmp_path / "backups", tmp_path / "store"
    backup_writer.make(app)
    copies = 60 if torture else 12
    kept: dict[Path, str] = {}
    for number in range(copies):
        with closing(sqlite3.connect(app, isolation_level=None)) as db:
            db.execute("begin")
            for _ in range(5):
                row = (os.urandom(8).hex(), random.randint(1, backup_writer.ROWS))
                db.execute("update t set v = ? where id = ?", row)
            db.execute("commit")
        taken = backup(app, folder, blocks=store, encrypt=encrypt, now=at(number))
        kept[taken.file] = taken.sha256
    one, all_of_them = max(b.used_bytes for b in backups(folder)), bytes_in(store)
    for file, sha256 in kept.items():
        restored = restore(file, tmp_path / "restored.db").file
        assert backup_writer.is_sound(restored)
        content = bytearray(restored.read_bytes())
        content[18:20] = b"\1\1"  # a restore brings WAL mode back; the backup is not in it
        assert hashlib.sha256(content).hexdigest() == sha256
        for leftover in tmp_path.glob("restored_before_restore_*"):
            leftover.unlink()
    print(
        f"{copies} copies as blocks: {all_of_them / one:.2f} x the first, each restored "
        f"({'encrypted' if encrypt else 'in clear'})"
    )
    assert all_of_them < 3 * one


def make(file: Path) -> None:
    """Make a database of five blocks."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("create table t (v)")
        db.executemany("insert into t values (?)", [(os.urandom(1000),) for _ in range(300)])


def change(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("update t set v = ? where rowid = 100", [os.urandom(1000)])


def test_a_backup_killed_at_any_step(tmp_path: Path) -> None:
    app, folder, store = tmp_path / "app.db", tmp_path / "backups", tmp_path / "store"
    make(app)
    kills = adopted = 0

    def take(day: int) -> None:
        backup(app, folder, blocks=store, now=at(day))

    def take_and_check(day: int) -> None:
        take(day)
        for each in backups(folder)[:2]:
            assert verify(each.file).ok
        assert not list(folder.glob(".tmp-*"))
        # No backup in the store is unknown here, and none here is not there.
        assert fetch_manifests(store, folder) == []
        assert len(list(store.glob("backups/manifests/*"))) == len(backups(folder))

    while killed_before_step(kills + 1, lambda day=2 * kills + 1: take(day)):
        kills += 1
        in_a_fork(lambda day=2 * kills: take_and_check(day))
        adopted += any(taken.taken_at == at(2 * kills - 1) for taken in backups(folder))
        change(app)
    print(f"backup as blocks: {kills} kills, {adopted} finished by the next run, 0 in disorder")
    assert kills >= 15
    assert adopted >= 1  # killed after the store had its manifest


def test_a_manifest_before_its_blocks_would_be_noticed(tmp_path: Path) -> None:
    """For comparison: what a kill leaves where the manifest is sent first."""
    app, folder, store = tmp_path / "app.db", tmp_path / "backups", tmp_path / "store"
    make(app)

    def manifest_first() -> None:
        taken = backup(app, folder, blocks=store, now=at(1))
        for block in list(store.glob("backups/blocks/*/*"))[2:]:
            block.unlink()
        assert not verify(taken.file).ok

    in_a_fork(manifest_first)


def test_retention_killed_at_any_step(tmp_path: Path) -> None:
    """Whatever a kill leaves, the kept backups restore, and the next run ends the same."""
    app = tmp_path / "app.db"
    make(app)
    kills = 0

    def age(store: Path) -> None:
        past = (datetime.now(UTC) - timedelta(days=2)).timestamp()
        for block in store.glob("backups/blocks/*/*"):
            os.utime(block, (past, past))

    while True:
        folder, store = tmp_path / f"backups{kills}", tmp_path / f"store{kills}"

        def take(folder: Path = folder, store: Path = store) -> None:
            for day in range(4):
                backup(app, folder, blocks=store, now=at(day))
                change(app)
            age(store)

        def clean(folder: Path = folder) -> None:
            cleanup(folder, "app", keep_days=1, keep_count=2, now=at(9))

        def clean_and_check(folder: Path = folder, store: Path = store) -> None:
            listed = [each for each in backups(folder) if each.taken_at >= at(2)]
            assert len(listed) == 2 and all(verify(each.file).ok for each in listed)
            cleanup(folder, "app", keep_days=1, keep_count=2, now=at(9))
            assert [each.taken_at for each in backups(folder)] == [at(3), at(2)]
            assert all(verify(each.file).ok for each in backups(folder))
            assert len(list(store.glob("backups/manifests/*"))) == 2

        in_a_fork(take)
        if not killed_before_step(kills + 1, clean):
            break
        kills += 1
        in_a_fork(clean_and_check)
    print(f"retention of blocks: {kills} kills, the next run ended each with the same two backups")
    assert kills >= 10
