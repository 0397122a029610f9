"""The child process answers with the dataclasses that both sides share, and starts quickly."""

import filecmp
import os
import subprocess
from pathlib import Path

import pytest

from replica_platform.backup import Backup, restore
from replica_platform.backup.child.contents import digest_blocks
from replica_platform.backup.child.messages import (
    Advance,
    Copied,
    Failure,
    FileCheck,
    Message,
    RestoredCopy,
    Snapshot,
    decode,
    encode,
)
from replica_platform.backup.child.process import check_file, clone, command, environment
from replica_platform.backup.errors import OF_THE_CHILD, ChildFailed, NoRoom, Unreadable

CHECK = FileCheck(
    bytes=8,
    sha256="a",
    md5="b",
    integrity="ok",
    unchecked=None,
    tables={"t": None, "u": 2},
    newest={"u.at": 1.5},
    pending=3,
    pages=1,
    page_size=8,
    sqlite_version="3.53.4",
    check_s=0.1,
)


@pytest.mark.parametrize(
    "message",
    [
        CHECK,
        Snapshot(CHECK, [0, 1, 1], "wal", 0.2),
        Snapshot(CHECK, None, "delete", 0.2),
        RestoredCopy(CHECK, None, None, None),
        Advance(1, 2, "bytes"),
        Copied(),
        Failure("Busy", "It stayed locked;\ntry again."),
    ],
)
def test_a_message_is_one_line_and_comes_back_equal(message: Message) -> None:
    line = encode(message)
    assert "\n" not in line
    assert decode(line) == message


def test_an_error_of_the_child_is_raised_as_its_own_class(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="Cannot read"):
        check_file(tmp_path / "absent.db", drop_cache=False)
    assert all(name == kind.__name__ for name, kind in OF_THE_CHILD.items())


def test_a_child_that_dies_without_an_answer_is_an_error(taken: Backup, in_the_child) -> None:
    in_the_child("import os; snapshot.sqlite3.connect = lambda *_, **__: os._exit(7)")
    with pytest.raises(ChildFailed, match="exit code 7"):
        check_file(taken.file, drop_cache=False)


CHECK_AWAITS_FSYNC = """
from threading import Event
from replica_platform.backup.child import check
begun, fsync, integrity = Event(), check.fsync_file, check.check_integrity
def sync(file):
    begun.set()
    fsync(file)
def after_sync(db):
    if not begun.wait(1):
        raise OSError("no fsync had begun")
    return integrity(db)
check.fsync_file, check.check_integrity = sync, after_sync
"""


def test_a_file_reaches_the_disk_while_it_is_checked(taken: Backup, in_the_child) -> None:
    in_the_child(CHECK_AWAITS_FSYNC)
    assert check_file(taken.file, drop_cache=False, make_durable=True).integrity == "ok"
    with pytest.raises(Unreadable, match="no fsync had begun"):
        check_file(taken.file, drop_cache=False)


def test_a_disk_that_fills_during_a_restore_is_reported(
    taken: Backup, tmp_path: Path, in_the_child
) -> None:
    in_the_child(
        "import errno\n"
        "from replica_platform.backup.child import check\n"
        "def sync(file): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "check.fsync_file = sync"
    )
    with pytest.raises(NoRoom, match="No space left"):
        restore(taken.file, tmp_path / "restored.db")
    assert not (tmp_path / "restored.db").exists()


@pytest.mark.parametrize("blocks", [0, 1, 63.5, 64, 129.25])
def test_a_clone_and_its_digests_are_those_of_the_file(tmp_path: Path, blocks: float) -> None:
    size = 4096
    previous, copy = tmp_path / "previous", tmp_path / "copy"
    previous.write_bytes(os.urandom(int(blocks * size)))
    digests = clone(previous, copy, size)
    assert filecmp.cmp(copy, previous, shallow=False)
    with previous.open("rb", 0) as file:
        assert digests == digest_blocks(file, size)


def test_the_child_imports_only_what_it_needs(taken: Backup) -> None:
    with subprocess.Popen(
        command("check", file=str(taken.file), drop_cache=False),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(), "PYTHONPROFILEIMPORTTIME": "1"},
        text=True,
    ) as child:
        assert child.stdout and child.stderr
        imported = {line.rsplit("|", 1)[-1].strip() for line in child.stderr}
        assert isinstance(decode(child.stdout.readlines()[-1]), FileCheck)
    assert "replica_platform.backup.child.check" in imported
    unneeded = {"asyncio", "asyncssh", "psycopg", "dagster", "obstore", "tempfile"}
    assert not imported & {*unneeded, "replica_platform.backup", "replica_platform.backup.take"}
