"""A restore brings back a backup, and loses nothing that is at the target."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from replica_platform.backup import Backup, backup, cleanup, restore, stats, verify
from replica_platform.backup.child.outbox import (
    OUTBOX_APPLICATION_ID,
    renew_identity,
    undelivered,
)
from replica_platform.backup.child.outbox import (
    identities as identities_by_backup,
)
from replica_platform.backup.errors import (
    Busy,
    Damaged,
    NoRoom,
    TargetExists,
    Unreadable,
    Unsaved,
)
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox, drain
from replica_platform.outbox import status as outbox_status
from replica_platform.outbox.file import (
    APPLICATION_ID,
    identities,
    open_existing,
    pending,
    renew,
)
from replica_platform_tests.backup.conftest import day, make, rows_of


def test_the_rows_of_the_backup_are_back(
    app: Path, live: sqlite3.Connection, taken: Backup
) -> None:
    live.execute("delete from t")
    live.close()
    done = restore(taken.file, app)
    with closing(sqlite3.connect(app)) as db:
        assert db.execute("select v from t").fetchall() == [("a",), ("b",)]
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)  # as it was
    assert done.kept is not None and rows_of(done.kept) == []
    assert done.tables == {"t": 2} and done.file_uuid is None
    assert json.dumps(done.as_dict())
    assert not list(app.parent.glob(".tmp-*"))


def test_a_restore_to_a_new_path(taken: Backup, tmp_path: Path) -> None:
    done = restore(taken.file, tmp_path / "new" / "app.db")
    assert rows_of(done.file) == ["a", "b"] and done.kept is None
    assert [path.name for path in done.file.parent.iterdir()] == ["app.db"]


def test_a_target_that_is_open_is_refused(
    app: Path, live: sqlite3.Connection, taken: Backup
) -> None:
    with pytest.raises(Busy, match="stop that program"):
        restore(taken.file, app)
    assert live.execute("select count(*) from t").fetchone() == (2,)


def test_unsaved_changes_beside_the_target_are_never_lost(
    app: Path, live: sqlite3.Connection, taken: Backup, tmp_path: Path
) -> None:
    wal = (app.parent / "app.db-wal").read_bytes()
    assert wal
    crashed = tmp_path / "crashed" / "app.db"
    crashed.parent.mkdir()
    crashed.write_bytes(app.read_bytes())
    left = crashed.with_name("app.db-wal")
    left.write_bytes(wal)
    with pytest.raises(Unsaved, match=r"app\.db-wal holds changes"):
        restore(taken.file, crashed)
    assert left.read_bytes() == wal
    crashed.unlink()  # a WAL alone is kept too
    with pytest.raises(Unsaved):
        restore(taken.file, crashed)
    assert left.read_bytes() == wal


def test_an_old_wal_left_in_place_would_be_applied_silently(tmp_path: Path, taken: Backup) -> None:
    """The naive restore, for comparison: a plain copy over a file with a WAL beside it."""
    app = tmp_path / "app.db"
    db = make(tmp_path / "other.db", "foreign")
    wal = (tmp_path / "other.db-wal").read_bytes()
    db.close()
    app.write_bytes(taken.file.read_bytes())
    app.with_name("app.db-wal").write_bytes(wal)
    with closing(sqlite3.connect(app)) as db:
        assert db.execute("select v from t").fetchall() == [("foreign",)]  # not what was backed up
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


def test_empty_sidecars_are_removed_before_the_new_file_gets_its_name(
    app: Path, live, taken: Backup
) -> None:
    live.close()
    for suffix in ("-wal", "-shm"):
        app.with_name(app.name + suffix).touch()
    restore(taken.file, app)
    assert not app.with_name("app.db-wal").exists() and not app.with_name("app.db-shm").exists()
    assert rows_of(app) == ["a", "b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_owner_and_mode_of_the_replaced_file_are_kept(app: Path, live, taken: Backup) -> None:
    live.close()
    for mode in (0o660, 0o606):
        app.chmod(mode)
        os.chown(app, 1234, 2345)
        done = restore(taken.file, app)
        assert done.kept is not None
        for path in (app, done.kept):
            found = path.stat()
            assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1234, 2345, mode)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes root and setpriv"
)
def test_an_owner_that_cannot_be_kept_is_refused(app: Path, live, taken: Backup) -> None:
    live.close()
    os.chown(app, 1234, 2345)
    before = app.read_bytes()
    # Root without the right to give files away; the child that is started keeps all others.
    program = (
        "import sys; from pathlib import Path; from replica_platform.backup import restore\n"
        "try: restore(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    finished = subprocess.run(
        [
            *("setpriv", "--bounding-set", "-chown", "--inh-caps", "-chown"),
            *(sys.executable, "-c", program, taken.file, app),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert finished.stdout.startswith("Unreadable"), finished.stdout + finished.stderr
    assert "run the command as root" in finished.stdout
    assert app.read_bytes() == before and app.stat().st_uid == 1234
    assert sorted(path.name for path in app.parent.iterdir()) == ["app.db", "backups"]


def test_the_file_behind_a_symbolic_link_is_restored(
    app: Path, live: sqlite3.Connection, taken: Backup, tmp_path: Path
) -> None:
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(Path("..") / "app.db")
    with pytest.raises(Busy, match="stop that program"):
        restore(taken.file, link)
    live.execute("delete from t")
    live.close()
    done = restore(taken.file, link)
    assert link.is_symlink() and not app.is_symlink()
    assert rows_of(app) == ["a", "b"]
    assert done.file == app and done.kept is not None and rows_of(done.kept) == []
    assert list(link.parent.iterdir()) == [link]


def test_changes_beside_the_file_behind_a_link_are_never_lost(
    app: Path, live: sqlite3.Connection, taken: Backup, tmp_path: Path
) -> None:
    real, link = tmp_path / "real" / "app.db", tmp_path / "link.db"
    real.parent.mkdir()
    real.with_name("app.db-wal").write_bytes((app.parent / "app.db-wal").read_bytes())
    link.symlink_to(real)  # the database itself is not there
    with pytest.raises(Unsaved):
        restore(taken.file, link)
    real.with_name("app.db-wal").unlink()
    restore(taken.file, link)
    assert link.is_symlink() and rows_of(real) == ["a", "b"]


def test_a_disk_that_fills_during_a_restore_is_no_room(
    tmp_path: Path, folder: Path, disk: Callable[[int], Path]
) -> None:
    make(tmp_path / "big.db", *["x" * 3000] * 1000).close()
    taken = backup(tmp_path / "big.db", folder)
    small = disk(taken.bytes // 2)
    with pytest.raises(NoRoom, match="make room"):
        restore(taken.file, small / "app.db")
    assert list(small.iterdir()) == []


def test_a_damaged_backup_is_not_restored(
    app: Path, live: sqlite3.Connection, taken: Backup
) -> None:
    live.close()
    content = bytearray(taken.file.read_bytes())
    content[-1] ^= 1
    taken.file.write_bytes(content)
    before = app.read_bytes()
    with pytest.raises(Damaged, match="Nothing was restored"):
        restore(taken.file, app)
    taken.manifest.unlink()
    with pytest.raises(Unreadable, match="no readable manifest"):
        restore(taken.file, app)
    assert app.read_bytes() == before


def test_a_restored_outbox_gets_a_new_identity_and_continues(
    tmp_path: Path, folder: Path, target: str
) -> None:
    path = tmp_path / "worker-1.db"
    with Outbox(path) as box:
        box.append_many("note", [{"n": n} for n in range(3)])
        assert drain([path], target).delivered == 3
        (first,) = identities_of(path)
        taken = backup(path, folder, now=day(1))
        box.append_many("note", [{"n": n} for n in range(3, 6)])
        assert drain([path], target).delivered == 3
    done = restore(taken.file, path)
    assert done.file_uuid not in (None, first)
    assert identities_of(path) == [done.file_uuid, first]
    with Outbox(path) as box:  # its numbers continue after those of the backup
        box.append_many("note", [{"n": n} for n in range(6, 10)])
        assert drain([path], target).delivered == 4
        taken = backup(path, folder, now=day(2))
    with psycopg.connect(target) as target_db:
        landed = target_db.execute("select payload->>'n' from outbox.record order by 1").fetchall()
        by_new = target_db.execute(
            "select count(*) from outbox.record where file_uuid = %s", [done.file_uuid]
        ).fetchone()
    assert [int(n) for (n,) in landed] == list(range(10))
    assert by_new == (4,)
    again = restore(taken.file, tmp_path / "again.db")
    assert identities_of(again.file) == [again.file_uuid, done.file_uuid, first]


def test_backup_and_outbox_agree_on_what_an_outbox_is(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.db"
    with Outbox(path) as box:
        box.append("note", {})
    before = identities_of(path)
    by_backup = tmp_path / "by_backup.db"
    shutil.copy(path, by_backup)
    with closing(sqlite3.connect(by_backup, isolation_level=None)) as db:
        assert renew_identity(db) == identities_of(by_backup)[0]
    with closing(open_existing(path)) as db:
        renew(db)
    assert identities_of(by_backup)[1:] == identities_of(path)[1:] == before
    assert set(meta_of(by_backup)) == set(meta_of(path))
    assert OUTBOX_APPLICATION_ID == APPLICATION_ID


def test_a_restored_outbox_says_what_is_delivered_again(
    tmp_path: Path, folder: Path, target: str
) -> None:
    path = tmp_path / "worker-1.db"
    with Outbox(path) as box:
        box.append_many("note", [{"n": n} for n in range(3)])
        assert drain([path], target).delivered == 3
        box.append_many("note", [{"n": n} for n in range(3, 7)])
    taken = backup(path, folder, now=day(1))
    assert taken.pending == 4
    assert json.loads(taken.manifest.read_text())["pending"] == 4
    assert "4 rows were not delivered yet" in taken.sentence
    with Outbox(path) as box:
        assert drain([path], target).delivered == 4
        box.append_many("note", [{"n": n} for n in range(7, 9)])  # never delivered
    done = restore(taken.file, path)
    assert (done.pending, done.delivered_again, done.only_in_kept) == (4, 4, 2)
    assert done.kept is not None
    assert "4 rows that this copy holds as undelivered" in done.sentence
    assert "4 of them were delivered since" in done.sentence
    assert f"2 undelivered rows are only in {done.kept}" in done.sentence
    assert outbox_status([path]).pending == 4
    assert drain([tmp_path], target).delivered == 2  # of the kept file; the four are there
    assert outbox_status([tmp_path]).pending == 0
    with psycopg.connect(target) as target_db:
        found = target_db.execute("select payload->>'n' from outbox.record order by 1").fetchall()
    assert [int(n) for (n,) in found] == list(range(9))  # each once


def test_what_is_delivered_again_is_not_guessed(tmp_path: Path, folder: Path, app: Path) -> None:
    path = tmp_path / "worker-1.db"
    with Outbox(path) as box:
        box.append_many("note", [{"n": n} for n in range(3)])
    taken = backup(path, folder)
    fresh = restore(taken.file, tmp_path / "fresh.db")
    assert (fresh.pending, fresh.delivered_again, fresh.only_in_kept) == (3, None, None)
    other = tmp_path / "other.db"
    Outbox(other).close()
    over = restore(taken.file, other)  # another outbox: its numbers say nothing of these rows
    assert (over.pending, over.delivered_again, over.only_in_kept) == (3, None, None)
    plain = backup(app, folder)
    assert plain.pending is None and "outbox" not in plain.sentence
    assert restore(plain.file, tmp_path / "plain.db").pending is None


def test_backup_and_outbox_count_the_same_undelivered_rows(tmp_path: Path, target: str) -> None:
    path = tmp_path / "worker-1.db"
    with Outbox(path) as box:
        box.append_many("note", [{"n": n} for n in range(5)])
        drain([path], target)
        box.append_many("note", [{"n": n} for n in range(2)])
    with closing(open_existing(path)) as db:
        db.execute("insert into again values (2, 1)")
        assert undelivered(db) == pending(db) == 3
        assert identities_by_backup(db) == identities(db)


def test_an_existing_file_is_replaced_only_when_that_is_asked_for(
    app: Path, live: sqlite3.Connection, taken: Backup
) -> None:
    live.execute("delete from t")
    live.close()
    before = app.read_bytes()
    with pytest.raises(TargetExists, match="--replace"):
        restore(taken.file, app, replace=False)
    assert app.read_bytes() == before and len(list(app.parent.glob("*.db"))) == 1
    done = restore(taken.file, app, replace=True)
    assert done.kept is not None and rows_of(done.kept) == [] and rows_of(app) == ["a", "b"]
    assert restore(taken.file, app.parent / "new.db", replace=False).kept is None


def test_a_file_that_only_resembles_an_outbox_is_restored_as_it_was(
    app: Path, live: sqlite3.Connection, folder: Path
) -> None:
    live.execute("create table meta (key text primary key, value text not null)")
    live.execute("insert into meta values ('file_uuid', 'one')")
    done = restore(backup(app, folder).file, app.parent / "again.db")
    assert done.file_uuid is None
    assert meta_of(done.file) == {"file_uuid": "one"}


def test_an_outbox_without_an_identity_is_not_restored(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "worker-1.db"
    Outbox(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("delete from meta where key = 'file_uuid'")
    taken = backup(path, folder)
    with pytest.raises(Damaged, match="has no identity"):
        restore(taken.file, tmp_path / "again.db")
    assert not (tmp_path / "again.db").exists()


def meta_of(file: Path) -> dict[str, str]:
    """Return the settings in a file's table `meta`."""
    with closing(sqlite3.connect(file)) as db:
        return dict(db.execute("select key, value from meta").fetchall())


def identities_of(file: Path) -> list[str]:
    """Return an outbox's identity, then its former ones."""
    with closing(open_existing(file)) as db:
        return identities(db)


def test_copies_of_killed_restores_are_cleared(taken: Backup, tmp_path: Path) -> None:
    target = tmp_path / "new" / "app.db"
    target.parent.mkdir()
    for pid in (1, 4194305):  # one that runs, one that cannot exist
        target.with_name(f".tmp-app.db-{pid}-00ff").touch()
    restore(taken.file, target)
    assert sorted(path.name for path in target.parent.iterdir()) == [".tmp-app.db-1-00ff", "app.db"]


def test_relative_paths_from_any_folder(
    app: Path, live: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    taken = backup(Path("../app.db"), Path("bk"))
    relative = Path("bk") / taken.file.name
    assert verify(relative).ok and stats(Path("bk")).ok
    done = restore(relative, Path("again.db"))
    assert done.ok and rows_of(tmp_path / "cwd" / "again.db") == ["a", "b"]
    assert cleanup(Path("bk"), "app", keep_days=0, keep_count=1) == []
