"""Copies of a file that is rewritten at full speed: backups are sound, naive copies are torn.

At twenty commits a second every method passes; only full speed separates them.
"""

import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from replica_platform.backup import backup, restore
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.faults import backup_writer

PORTION_PAGES = 100


def with_backup(live: Path, folder: Path) -> Path:
    return backup(live, folder).file


def with_backup_skipping_checkpoint(live: Path, folder: Path) -> Path:
    return backup(live, folder, skip_checkpoint=True).file


def with_backup_as_blocks(live: Path, folder: Path) -> Path:
    taken = backup(live, folder, blocks=folder / "store")
    return restore(taken.file, folder / "restored.db").file


def cp(source: Path, to: Path) -> None:
    subprocess.run(["cp", source, to], check=True)  # a child, so that this process keeps its locks


def naive_file_alone(live: Path, folder: Path) -> Path:
    cp(live, folder / "copy.db")
    return folder / "copy.db"


def naive_file_then_wal(live: Path, folder: Path) -> Path:
    cp(live, folder / "copy.db")
    cp(Path(f"{live}-wal"), folder / "copy.db-wal")
    return folder / "copy.db"


def naive_wal_then_file(live: Path, folder: Path) -> Path:
    cp(Path(f"{live}-wal"), folder / "copy.db-wal")
    cp(live, folder / "copy.db")
    return folder / "copy.db"


def naive_checkpoint_then_file(live: Path, folder: Path) -> Path:
    with closing(sqlite3.connect(live, timeout=0.5)) as db:
        db.execute("pragma wal_checkpoint(truncate)").fetchone()
    return naive_file_alone(live, folder)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("live") / "busy.db"
    backup_writer.make(file)
    return file


@pytest.mark.parametrize(
    ("copy", "tears"),
    [
        (with_backup, False),
        (with_backup_skipping_checkpoint, False),
        (with_backup_as_blocks, False),
        (naive_file_alone, True),
        (naive_file_then_wal, True),
        (naive_wal_then_file, True),
        (naive_checkpoint_then_file, True),
    ],
)
def test_copies_under_a_writer_at_full_speed(
    live: Path,
    tmp_path: Path,
    torture: bool,
    copy: Callable[[Path, Path], Path],
    tears: bool,
) -> None:
    rounds = 50 if torture else 40 if tears else 3
    torn = done = 0
    with backup_writer.writing(live):
        # The short form stops at the first torn copy of a naive method.
        while done < rounds and (torture or not torn):
            folder = tmp_path / str(done)
            folder.mkdir()
            torn += not backup_writer.is_sound(copy(live, folder))
            done += 1
    print(f"{copy.__name__}: {torn} of {done} copies torn")
    assert (torn > 0) is tears


def test_in_pages_it_never_ends_and_in_one_step_it_does(live: Path, tmp_path: Path) -> None:
    """Why `pages=-1`: a commit of another connection restarts a copy in portions."""
    with backup_writer.writing(live):
        began = time.monotonic()
        backup(live, tmp_path)
        one_step_s = time.monotonic() - began

    class GivenUp(Exception):
        pass

    portions = 0
    finished = False
    with (
        closing(sqlite3.connect(live)) as source,
        closing(sqlite3.connect(live)) as writer,
        closing(sqlite3.connect(tmp_path / "portions.db")) as copy,
        suppress(GivenUp),
    ):
        writer.execute("create table noise (n)")

        def commit_between(status: int, remaining: int, total: int) -> None:
            nonlocal portions
            portions += 1
            if portions * PORTION_PAGES > 5 * total:
                raise GivenUp
            writer.execute("insert into noise values (1)")
            writer.commit()

        writer.commit()
        source.backup(copy, pages=PORTION_PAGES, progress=commit_between, sleep=0)
        finished = True
    print(f"one step: {one_step_s:.2f} s; in portions: not done after {portions} of them")
    assert not finished
    assert one_step_s < 30
