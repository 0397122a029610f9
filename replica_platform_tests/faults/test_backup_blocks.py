"""Backups as blocks: sixty copies and a restore of each, kill -9 at every step, retention too."""

import hashlib
import os
import random
import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.backup import backup, backups, cleanup, fetch_manifests, restore, verify
from replica_platform.backup.blocks.keys import VARIABLE
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.faults import backup_writer
from replica_platform_tests.faults.backup_killed import program_killed_before_step

START = datetime(2026, 1, 1, 3, 0, tzinfo=UTC)
NEVER = 1_000_000


def at(day: int) -> datetime:
    return START + timedelta(days=day)


def rows_of(file: Path) -> bytes:
    """Return a digest of all rows."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(file)) as db:
        for row in db.execute("select * from t order by id"):
            digest.update(repr(row).encode())
    return digest.digest()


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
    kept: dict[Path, bytes] = {}
    for number in range(copies):
        with closing(sqlite3.connect(app, isolation_level=None)) as db:
            db.execute("begin")
            for _ in range(5):
                row = (os.urandom(8).hex(), random.randint(1, backup_writer.ROWS))
                db.execute("update t set v = ? where id = ?", row)
            db.execute("commit")
        taken = backup(app, folder, blocks=store, encrypt=encrypt, now=at(number))
        kept[taken.file] = rows_of(app)
    one, all_of_them = max(b.used_bytes for b in backups(folder)), bytes_in(store)
    for file, rows in kept.items():
        restored = restore(file, tmp_path / "restored.db").file
        assert backup_writer.is_sound(restored)
        assert rows_of(restored) == rows
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


def take(folder: str, day: int) -> None:
    app, store = Path(folder, "app.db"), Path(folder, "store")
    backup(app, Path(folder, "backups"), blocks=store, now=at(day))


def take_and_check(folder: str, day: int) -> None:
    """Take another backup; require that nothing is left over and both sides know the same."""
    take(folder, day)
    kept, store = Path(folder, "backups"), Path(folder, "store")
    assert verify(backups(kept)[0].file).ok
    assert not list(kept.glob(".tmp-*"))
    assert fetch_manifests(store, kept) == []
    assert len(list(store.glob("backups/manifests/*"))) == len(backups(kept))


def test_a_backup_killed_at_any_step(tmp_path: Path, torture: bool) -> None:
    """Before every step, in the short form before every fourth."""
    folder, stride = str(tmp_path), 1 if torture else 4
    make(tmp_path / "app.db")
    kills = adopted = 0
    while program_killed_before_step(stride * kills + 1, take, folder, 2 * kills + 1):
        kills += 1
        assert not program_killed_before_step(NEVER, take_and_check, folder, 2 * kills)
        known = {taken.taken_at for taken in backups(tmp_path / "backups")}
        adopted += at(2 * kills - 1) in known
        change(tmp_path / "app.db")
    print(f"backup as blocks: {kills} kills, {adopted} finished by the next run, 0 in disorder")
    assert kills >= 10 / stride
    assert adopted >= 1  # killed after the store had its manifest


def take_manifest_first(folder: str) -> None:
    take(folder, 1)
    for block in list(Path(folder).glob("store/backups/blocks/*/*"))[2:]:
        block.unlink()


def test_a_manifest_before_its_blocks_would_be_noticed(tmp_path: Path) -> None:
    """For comparison: what a kill leaves where the manifest is sent first."""
    make(tmp_path / "app.db")
    assert not program_killed_before_step(NEVER, take_manifest_first, str(tmp_path))
    (taken,) = backups(tmp_path / "backups")
    assert not verify(taken.file).ok


def four_backups(folder: str) -> None:
    """Take four, whose blocks are two days old."""
    for day in range(4):
        take(folder, day)
        change(Path(folder, "app.db"))
    past = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    for block in Path(folder).glob("store/backups/blocks/*/*"):
        os.utime(block, (past, past))


def clean(folder: str) -> None:
    cleanup(Path(folder, "backups"), "app", keep_days=1, keep_count=2, now=at(9))


def test_retention_killed_at_any_step(tmp_path: Path, torture: bool) -> None:
    """Whatever a kill leaves, the kept backups restore, and the next run ends the same."""
    stride = 1 if torture else 6
    template = tmp_path / "template"
    template.mkdir()
    make(template / "app.db")
    four_backups(str(template))
    kills = 0
    while True:
        template.rename(tmp_path / "kept")  # the manifests name the store by its path
        shutil.copytree(tmp_path / "kept", template)
        was_killed = program_killed_before_step(stride * kills + 1, clean, str(template))
        kills += was_killed
        kept = [each for each in backups(template / "backups") if each.taken_at >= at(2)]
        assert len(kept) == 2 and all(verify(each.file).ok for each in kept)
        clean(str(template))
        kept = backups(template / "backups")
        assert [each.taken_at for each in kept] == [at(3), at(2)]
        assert all(verify(each.file).ok for each in kept)
        assert len(list(template.glob("store/backups/manifests/*"))) == 2
        shutil.rmtree(template)
        (tmp_path / "kept").rename(template)
        if not was_killed:
            break
    print(f"retention of blocks: {kills} kills, the next run ended each with the same two backups")
    assert kills >= 10 / stride
