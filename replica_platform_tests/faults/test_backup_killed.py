"""kill -9 at every step of a backup, a retention run and a restore."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.backup import backup, backups, cleanup, restore, stats
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.faults import backup_writer
from replica_platform_tests.faults.backup_killed import killed_before_step

START = datetime(2026, 1, 1, 3, 0, tzinfo=UTC)
NAMED = "app_backup_*.db"


def at(day: int) -> datetime:
    return START + timedelta(days=day)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    file = tmp_path / "app.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table t (v text)")
        db.execute("insert into t values ('a'), ('b')")
    return file


def is_whole(file: Path) -> bool:
    """Whether a file under a backup's name is a sound database with both rows."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?immutable=1", uri=True)) as db:
            checked = db.execute("pragma integrity_check").fetchall()
            return checked == [("ok",)] and db.execute("select count(*) from t").fetchone() == (2,)
    except sqlite3.Error:
        return False


def must_be_in_order(folder: Path) -> None:
    """Require what a finished run leaves: files with their manifests, and nothing else."""
    listed = backups(folder)
    assert {b.file for b in listed} == set(folder.glob(NAMED))
    for each in listed:
        assert hashlib.sha256(each.file.read_bytes()).hexdigest() == each.sha256
        assert is_whole(each.file)
    assert not list(folder.glob(".tmp-*"))


def test_a_backup_killed_at_any_step(app: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    backup(app, folder, now=at(0))
    kills = finished_by_the_next = 0
    while True:
        moment = at(2 * kills + 1)
        if not killed_before_step(kills + 1, lambda now=moment: backup(app, folder, now=now)):
            break
        kills += 1
        # A file with a backup's name is whole at every moment; no other file is listed.
        assert all(is_whole(file) for file in folder.glob(NAMED))
        assert {b.file for b in backups(folder)} <= set(folder.glob(NAMED))
        finished_by_the_next += stats(folder).unlisted
        backup(app, folder, now=at(2 * kills))
        must_be_in_order(folder)
    print(f"backup: {kills} kills, {finished_by_the_next} finished by the next run, 0 in disorder")
    assert kills >= 8
    assert finished_by_the_next >= 1  # killed between the two renames


def test_a_backup_killed_while_it_copies(tmp_path: Path, torture: bool) -> None:
    """The caller is killed at other moments of the copy; the child then ends by itself."""
    app, folder = tmp_path / "app.db", tmp_path / "backups"
    backup_writer.make(app)
    kills = 60 if torture else 4
    caller = (
        "import sys; from datetime import datetime; from pathlib import Path\n"
        "from replica_platform.backup.take import backup\n"
        "app, to, now = sys.argv[1:]; print('on', flush=True)\n"
        "backup(Path(app), Path(to), now=datetime.fromisoformat(now))"
    )
    seen_half_done = 0
    for number in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", caller, app, folder, at(number + 1).isoformat()],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout and process.stdout.readline()
            before = set(folder.glob(".tmp-*"))
            while process.poll() is None and set(folder.glob(".tmp-*")) <= before:
                time.sleep(0.001)
            time.sleep(0.1 * number / kills)
            process.send_signal(signal.SIGKILL)
        seen_half_done += bool(list(folder.glob(".tmp-*")))
        assert all(backup_writer.is_sound(file) for file in folder.glob(NAMED))
    taken = backup(app, folder, now=at(0))
    assert {b.file for b in backups(folder)} == set(folder.glob(NAMED)) >= {taken.file}
    assert not list(folder.glob(".tmp-*"))
    print(f"copying: {kills} kills, {seen_half_done} left a temporary file, all cleared")
    assert seen_half_done > 0


def four_backups(app: Path, folder: Path) -> None:
    first = backup(app, folder, now=at(0))
    for day in range(1, 4):
        file = folder / f"app_backup_{at(day):%Y%m%d_%H%M%S}.db"
        shutil.copyfile(first.file, file)
        replace(first, file=file, taken_at=at(day)).save()


def keep_two(folder: Path) -> list[Path]:
    return cleanup(folder, "app", keep_days=1, keep_count=2, now=at(9))


def test_a_retention_run_killed_at_any_step(app: Path, tmp_path: Path) -> None:
    template = tmp_path / "template"
    four_backups(app, template)
    kills = 0
    while True:
        folder = tmp_path / f"backups{kills}"
        shutil.copytree(template, folder)
        if not killed_before_step(kills + 1, lambda folder=folder: keep_two(folder)):
            break
        kills += 1
        assert [b.taken_at for b in backups(folder) if b.ok][:2] == [at(3), at(2)]
        keep_two(folder)
        must_be_in_order(folder)
        assert [b.taken_at for b in backups(folder)] == [at(3), at(2)]
    print(f"retention: {kills} kills, the next run ended each with the same two backups")
    assert kills >= 10


def test_naive_retention_leaves_files_for_ever(app: Path, tmp_path: Path) -> None:
    """For comparison: the manifest first. A kill in between leaves a file without one."""
    folder = tmp_path / "backups"
    four_backups(app, folder)

    def naive() -> None:
        for old in backups(folder)[2:]:
            old.manifest.unlink()
            old.file.unlink()

    assert killed_before_step(2, naive)
    naive()
    with pytest.raises(AssertionError):
        must_be_in_order(folder)


def test_a_naive_backup_killed_half_way_leaves_half_a_file_with_a_backups_name(
    tmp_path: Path,
) -> None:
    """For comparison: the copy under its final name."""
    app, copy = tmp_path / "app.db", tmp_path / "app_backup_20260101_030000.db"
    backup_writer.make(app)
    pid = os.fork()
    if pid == 0:
        half = app.stat().st_size // 2
        with app.open("rb") as source, copy.open("wb") as to:
            to.write(source.read(half))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert copy.exists() and not backup_writer.is_sound(copy)


def test_a_restore_killed_at_any_step(app: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    taken = backup(app, folder, now=at(0)).file
    kills = 0
    while True:
        target = tmp_path / f"target{kills}" / "app.db"
        target.parent.mkdir()
        shutil.copyfile(app, target)
        with closing(sqlite3.connect(target, isolation_level=None)) as db:
            db.execute("insert into t values ('newer')")
        newer = target.read_bytes()
        if not killed_before_step(kills + 1, lambda target=target: restore(taken, target)):
            break
        kills += 1
        # At every moment the target is the old file or the new one, and the old one is kept.
        assert target.read_bytes() == newer or is_whole(target)
        assert newer in [path.read_bytes() for path in target.parent.glob("app*.db")]
        restore(taken, target)
        assert is_whole(target)
        assert not list(target.parent.glob(".tmp-*"))
    print(f"restore: {kills} kills, the target was the old file or the new one each time")
    assert kills >= 5
