"""Bytes of a live file are copied only while they are one committed state, and writers go on."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.backup import backup
from replica_platform.core.sqlite import sqlite3

PAGE = 4096
# The first and the last page of the table change in each commit.
CHANGE = "update t set n = n + 1 where id in (select min(id) from t union select max(id) from t)"
PAUSE = """
from pathlib import Path
import os, time
folder = Path({folder!r})

def pause_once():
    if not (folder / "paused").exists():
        (folder / "paused").touch()
        until = time.monotonic() + 20
        while not (folder / "go_on").exists() and time.monotonic() < until:
            time.sleep(0.01)

"""
# After the first bytes of the file were copied.
PAUSE_IN_WAL_MODE = """
original = os.copy_file_range
file_copy.BLOCK_BYTES = 4096

def copy_file_range(*arguments):
    done = original(*arguments)
    pause_once()
    return done

os.copy_file_range = copy_file_range
"""
# After the first step, when its lock is free.
PAUSE_BETWEEN_STEPS = """
original = file_copy._reading
file_copy.STEP_S = 0

@file_copy.contextmanager
def reading(source):
    with original(source):
        yield
    pause_once()

file_copy._reading = reading
"""
WITHOUT_A_TRANSACTION = """
@file_copy.contextmanager
def reading(source):
    yield

file_copy._reading = reading
"""
WITHOUT_A_SECOND_ROUND = """
once = file_copy._copy_once
file_copy._copy_once = lambda *arguments: once(*arguments) or True
"""


def make_wide(file: Path, journal_mode: str, rows: int = 400) -> sqlite3.Connection:
    """Make a table with a page for each row."""
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    db.execute(f"pragma page_size={PAGE}")
    db.execute(f"pragma journal_mode={journal_mode}")
    db.execute("create table t (id integer primary key, n int, v blob)")
    db.execute("begin")
    db.executemany("insert into t (n, v) values (0, ?)", [(b"x" * 3000,)] * rows)
    db.execute("commit")
    return db


def ends_of(file: Path) -> list[int]:
    """Return the counter in the first and in the last row of a backup."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        text = "select n from t where id in (select min(id) from t union select max(id) from t)"
        return [n for (n,) in db.execute(text)]


def back_up_while_it_changes(app: Path, journal_mode: str, folder: Path) -> list[int]:
    """Commit 20 times while the child pauses; return the two counters of the backup."""
    with closing(make_wide(app, journal_mode)) as db:
        for _ in range(3):
            db.execute(CHANGE)

        def change() -> None:
            until = time.monotonic() + 20
            while not (app.parent / "paused").exists() and time.monotonic() < until:
                time.sleep(0.01)
            for _ in range(20):
                db.execute(CHANGE)
                db.execute("pragma wal_checkpoint(passive)").fetchall()
            (app.parent / "go_on").touch()

        writer = threading.Thread(target=change)
        writer.start()
        taken = backup(app, folder)
        writer.join()
        assert db.execute("select max(n) from t").fetchone() == (23,)
    return ends_of(taken.file)


def test_commits_and_checkpoints_do_not_reach_a_file_in_wal_mode_while_it_is_copied(
    tmp_path: Path, folder: Path, in_the_child: Callable[[str], None]
) -> None:
    in_the_child(PAUSE.format(folder=str(tmp_path)) + PAUSE_IN_WAL_MODE)
    assert back_up_while_it_changes(tmp_path / "app.db", "wal", folder) == [3, 3]
    assert (tmp_path / "paused").exists()


def test_without_the_read_transaction_such_a_copy_is_torn(
    tmp_path: Path, folder: Path, in_the_child: Callable[[str], None]
) -> None:
    """The same harness without the lock, for comparison."""
    in_the_child(PAUSE.format(folder=str(tmp_path)) + PAUSE_IN_WAL_MODE + WITHOUT_A_TRANSACTION)
    first, last = back_up_while_it_changes(tmp_path / "app.db", "wal", folder)
    assert first != last


def test_a_file_that_changes_between_two_steps_is_compared_again(
    tmp_path: Path, folder: Path, in_the_child: Callable[[str], None]
) -> None:
    in_the_child(PAUSE.format(folder=str(tmp_path)) + PAUSE_BETWEEN_STEPS)
    assert back_up_while_it_changes(tmp_path / "app.db", "delete", folder) == [23, 23]


def test_without_a_second_round_such_a_copy_is_torn(
    tmp_path: Path, folder: Path, in_the_child: Callable[[str], None]
) -> None:
    """The same harness without the comparison, for comparison."""
    in_the_child(PAUSE.format(folder=str(tmp_path)) + PAUSE_BETWEEN_STEPS + WITHOUT_A_SECOND_ROUND)
    first, last = back_up_while_it_changes(tmp_path / "app.db", "delete", folder)
    assert first != last


def test_a_wal_with_rows_and_a_shrunken_file_are_copied_whole(tmp_path: Path, folder: Path) -> None:
    with closing(make_wide(tmp_path / "app.db", "wal")) as db:
        db.execute(CHANGE)
        taken = backup(tmp_path / "app.db", folder, skip_checkpoint=True)
        assert ends_of(taken.file) == [1, 1]
    with closing(make_wide(tmp_path / "less.db", "delete")) as db:
        db.execute("delete from t where id > 10")
        db.execute("vacuum")
        taken = backup(tmp_path / "less.db", folder)
        assert taken.bytes == (tmp_path / "less.db").stat().st_size == taken.pages * PAGE


WRITER = """
import sys, time
from replica_platform.core.sqlite import sqlite3
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0.5)
failed = commits = 0
print("on", flush=True)
while not sys.stdin.closed and not __import__("select").select([sys.stdin], [], [], 0)[0]:
    try:
        db.execute(sys.argv[2])
        commits += 1
    except sqlite3.OperationalError:
        failed += 1
    time.sleep(0.005)
print(failed, commits, flush=True)
"""
# As a slow disk: the file takes some seconds to copy.
SLOW = """
import time
original = file_copy.copy_bytes
file_copy.BLOCK_BYTES = 1 << 16

def copy_bytes(*arguments):
    time.sleep(0.03)
    original(*arguments)

file_copy.copy_bytes = copy_bytes
"""
IN_ONE_STEP = "\nfile_copy.STEP_S = 3600\n"


@pytest.mark.parametrize("in_steps", [True, False])
def test_a_writer_without_wal_never_waits_half_a_second(
    tmp_path: Path, folder: Path, in_the_child: Callable[[str], None], in_steps: bool
) -> None:
    """A copy in one step, in the same harness, makes it fail."""
    in_the_child(SLOW + ("" if in_steps else IN_ONE_STEP))
    app = tmp_path / "app.db"
    make_wide(app, "delete", rows=1200).close()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(app), CHANGE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdin and writer.stdout and writer.stdout.readline() == "on\n"
        taken = backup(app, folder)
        writer.stdin.write("end\n")
        writer.stdin.flush()
        failed, commits = map(int, writer.stdout.readline().split())
    first, last = ends_of(taken.file)
    assert first == last
    assert (failed == 0) == in_steps
    assert commits > (10 if in_steps else 0)
