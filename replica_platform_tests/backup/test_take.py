"""A backup has everything that was in the database, is one file, and describes it."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from replica_platform.backup import backup, backups, verify
from replica_platform.backup.errors import Busy, Damaged, NameTaken, NoRoom, Unreadable
from replica_platform.backup.folder import folder_lock
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.conftest import day, make, rows_of


@pytest.mark.parametrize("skip_checkpoint", [False, True])
def test_rows_that_are_only_in_the_wal_are_in_the_copy(
    app: Path, folder: Path, skip_checkpoint: bool
) -> None:
    assert (app.parent / "app.db-wal").stat().st_size > 0
    taken = backup(app, folder, skip_checkpoint=skip_checkpoint, now=day(1))
    assert taken.file == folder / "app_backup_20260101_030000.db"
    assert rows_of(taken.file) == ["a", "b"]
    assert (taken.checkpoint is None) == skip_checkpoint
    assert [path.name for path in sorted(folder.iterdir())] == [
        ".app.lock",
        "app_backup_20260101_030000.db",
        "app_backup_20260101_030000.db.json",
    ]


def test_checkpoint_folds_the_wal_and_skipping_it_leaves_the_source_alone(
    app: Path, folder: Path
) -> None:
    wal = app.parent / "app.db-wal"
    before = wal.stat().st_size
    backup(app, folder, skip_checkpoint=True, now=day(1))
    assert wal.stat().st_size == before
    taken = backup(app, folder, now=day(2))
    assert taken.checkpoint is not None and taken.checkpoint[0] == 0
    assert wal.stat().st_size == 0


def test_the_copy_is_not_in_wal_mode_and_the_manifest_says_that_the_source_was(
    app: Path, folder: Path
) -> None:
    taken = backup(app, folder)
    assert taken.file.read_bytes()[18:20] == b"\x01\x01"  # 2, 2 would be WAL
    assert taken.journal_mode == "wal"
    assert taken.md5 == ""


def test_the_manifest_describes_the_file(app: Path, live: sqlite3.Connection, folder: Path) -> None:
    live.execute('create table "visit ""s" (id integer primary key, seen_at text)')
    live.execute("insert into \"visit \"\"s\" (seen_at) values ('2026-01-01'), ('2026-02-03')")
    taken = backup(app, folder, md5=True, now=day(1))
    content = taken.file.read_bytes()
    manifest = json.loads(taken.manifest.read_text())
    assert manifest["file"] == taken.file.name
    assert manifest["source"] == str(app)
    assert manifest["bytes"] == len(content)
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["md5"] == hashlib.md5(content).hexdigest()
    assert manifest["tables"] == {"t": 2, 'visit "s': 2}
    assert manifest["newest"] == {'visit "s.seen_at': "2026-02-03"}
    assert manifest["integrity"] == "ok"
    assert manifest["pages"] * manifest["page_size"] == len(content)
    assert manifest["sqlite_version"] == sqlite3.sqlite_version
    assert manifest["taken_at"] == "2026-01-01T03:00:00+00:00"
    shown = {"ok": True, "problem": None, "rows": 4, "sentence": taken.sentence}
    shown["used_bytes"] = len(content)
    paths = {"file": str(taken.file), "manifest": str(taken.manifest)}
    assert taken.as_dict() == {**manifest, **shown, **paths}
    assert backups(folder) == [taken]


def test_a_name_that_exists_is_never_overwritten(app: Path, folder: Path) -> None:
    first = backup(app, folder, now=datetime(2026, 1, 1, 3))
    content = first.file.read_bytes()
    with pytest.raises(NameTaken, match="never overwritten"):
        backup(app, folder, now=day(1))
    assert first.file.read_bytes() == content
    soon = [backup(app, folder) for _ in range(2)]  # perhaps in one second: then the next is used
    assert len({first.file, *(taken.file for taken in soon)}) == 3
    assert verify(first.file).ok


def test_a_damaged_source_gets_no_backup_and_names_the_last_sound_one(
    app: Path, live: sqlite3.Connection, folder: Path
) -> None:
    live.execute("create index i on t (v)")
    live.execute("pragma wal_checkpoint(truncate)")
    first = backup(app, folder, now=day(1))
    live.close()
    with closing(sqlite3.connect(app, isolation_level=None)) as db:
        root = db.execute("select rootpage from sqlite_master where name = 'i'").fetchone()[0]
        size = db.execute("pragma page_size").fetchone()[0]
    with app.open("r+b") as file:  # an index that has lost its entries
        file.seek((root - 1) * size + 3)
        file.write(b"\x00\x00")
    with pytest.raises(Damaged, match=first.file.name):
        backup(app, folder, now=day(2))
    assert backups(folder) == [first]
    assert not list(folder.glob(".tmp-*"))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(Unreadable, match="There is no file"):
        backup(tmp_path / "absent.db", folder)
    with pytest.raises(Unreadable, match="There is no file"):
        backup(tmp_path, folder)
    (tmp_path / "text.db").write_text("not a database, though long enough to be one")
    with pytest.raises(Unreadable, match="not a SQLite database"):
        backup(tmp_path / "text.db", folder)
    (tmp_path / "empty.db").touch()
    with pytest.raises(Unreadable, match="it is empty"):
        backup(tmp_path / "empty.db", folder)
    assert not list(folder.glob("*.db*"))


def test_missing_disk_space_is_reported_before_anything_is_copied(
    app: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FREE_BYTES, lambda _: 1000)
    with pytest.raises(NoRoom, match="1000 B free"):
        backup(app, folder)
    assert not list(folder.glob("*.db"))


FREE_BYTES = "replica_platform.core.disk_space.free_bytes"
BIG = ["x" * 3000] * 1000
PLENTY = 1 << 40


def test_a_disk_that_fills_under_the_copy_is_no_room(
    tmp_path: Path, disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = tmp_path / "big.db"
    make(app, *BIG).close()
    folder = disk(app.stat().st_size // 2)
    monkeypatch.setattr(FREE_BYTES, lambda _: PLENTY)  # as before the copy
    with pytest.raises(NoRoom, match="make room"):
        backup(app, folder)
    assert [path.name for path in folder.iterdir()] == [".big.lock"]


# In WAL mode the index of the copy's WAL does not fit, otherwise the manifest.
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_disk_with_space_for_the_rows_alone_is_no_room(
    tmp_path: Path, disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    app = tmp_path / "big.db"
    with closing(make(app, *BIG)) as db:
        db.execute(f"pragma journal_mode={mode}")
    monkeypatch.setattr(FREE_BYTES, lambda _: PLENTY)
    folder = disk(app.stat().st_size)
    with pytest.raises(NoRoom, match="make room"):
        backup(app, folder)
    assert [path.name for path in folder.iterdir()] == [".big.lock"]
    assert verify(backup(app, disk(app.stat().st_size + 65536)).file).ok


LOCKED_AFTER_IT_IS_OPENED = """
import threading
snapshot.BUSY_WAIT_MS = 100
original = snapshot._checkpoint

def checkpoint(source):
    done = original(source)
    (_, _, file), = source.execute("pragma database_list")
    other = snapshot.sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("begin exclusive")
    # So that the test fails instead of hanging if the copy waits for ever.
    release = threading.Timer(5, other.close)
    release.daemon = True
    release.start()
    return done

snapshot._checkpoint = checkpoint
"""


@pytest.mark.parametrize("skip_checkpoint", [False, True])
def test_a_source_that_stays_locked_is_busy(
    tmp_path: Path, folder: Path, in_the_child: Callable[[str], None], skip_checkpoint: bool
) -> None:
    app = tmp_path / "locked.db"
    in_the_child("snapshot.BUSY_WAIT_MS = 100")
    with closing(make(app, "a")) as db:
        db.execute("pragma journal_mode=delete")  # in WAL mode readers are never locked out
        db.execute("begin exclusive")
        with pytest.raises(Busy, match=r"locked\.db stayed locked .* try again"):
            backup(app, folder, skip_checkpoint=skip_checkpoint)
        db.execute("rollback")
        assert not list(folder.glob("*.db"))
        assert rows_of(backup(app, folder, skip_checkpoint=skip_checkpoint).file) == ["a"]


def test_a_source_that_is_locked_after_it_was_opened_is_busy(
    tmp_path: Path, folder: Path, in_the_child: Callable[[str], None]
) -> None:
    app = tmp_path / "locked.db"
    in_the_child(LOCKED_AFTER_IT_IS_OPENED)
    with closing(make(app, "a")) as db:
        db.execute("pragma journal_mode=delete")
    with pytest.raises(Busy, match=r"locked\.db stayed locked .* try again"):
        backup(app, folder)
    assert not list(folder.glob("*.db"))


def test_a_rollback_journal_left_by_a_crash_is_undone_also_without_checkpoint(
    tmp_path: Path, folder: Path
) -> None:
    app = tmp_path / "crashed.db"
    with closing(sqlite3.connect(app, isolation_level=None)) as db:
        db.execute("create table t (v text)")
        db.execute("insert into t values ('kept')")
    pid = os.fork()
    if pid == 0:
        db = sqlite3.connect(app, isolation_level=None)
        db.execute("pragma cache_size=5")
        db.execute("begin")
        db.executemany("insert into t values (?)", [("x" * 3000,) for _ in range(100)])
        os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / "crashed.db-journal").exists()
    assert rows_of(backup(app, folder, skip_checkpoint=True).file) == ["kept"]


def test_a_private_file_has_a_private_backup(app: Path, folder: Path) -> None:
    app.chmod(0o600)
    taken = backup(app, folder, now=day(1))
    assert {path.stat().st_mode & 0o777 for path in (taken.file, taken.manifest)} == {0o600}
    app.chmod(0o666)
    taken = backup(app, folder, now=day(2))
    assert taken.file.stat().st_mode & 0o777 == 0o644


def test_one_run_at_a_time_works_on_a_name_in_a_folder(app: Path, folder: Path) -> None:
    with (
        folder_lock(folder, "app"),
        pytest.raises(Busy, match="try again"),
        folder_lock(folder, "app", wait_s=0.1),
    ):
        pass
    with folder_lock(folder, "app"), folder_lock(folder, "another", wait_s=0):
        pass


def test_progress_ends_at_the_total(app: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    backup(app, folder, progress=lambda done, total, unit: seen.append((done, total)))
    assert seen and seen[-1][0] == seen[-1][1]
    assert [done / total for done, total in seen] == sorted(done / total for done, total in seen)
