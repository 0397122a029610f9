"""The outboxes of a folder: other databases and backups are left out, restored copies are not."""

from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.backup import backup, restore, verify
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox, backlog, doctor, drain, reconcile
from replica_platform.outbox.slots import outbox_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the outbox `worker-1.db`, in which two records wait."""
    folder = tmp_path / "outbox"
    with Outbox(folder / "worker-1.db") as box:
        box.append_many("note", [{"n": 1}, {"n": 2}])
    return folder


def test_another_database_is_left_out(folder: Path, target: str) -> None:
    with closing(sqlite3.connect(folder / "notes.db")) as connection:
        connection.execute("create table note (text)")
    before = (folder / "notes.db").read_bytes()
    assert outbox_files([folder]) == [folder / "worker-1.db"]
    assert backlog([folder]).ok
    assert drain([folder], target).ok
    assert reconcile([folder], target).ok
    assert not any("notes.db" in finding.name for finding in doctor([folder]))
    assert (folder / "notes.db").read_bytes() == before


def test_a_backup_beside_the_outbox_is_left_out_and_stays_sound(folder: Path, target: str) -> None:
    kept = backup(folder / "worker-1.db", folder)
    report = drain([folder], target)
    assert (report.delivered, report.absorbed, len(report.files)) == (2, 0, 1)
    assert verify(kept.file).ok


def test_an_outbox_restored_beside_the_first_is_drained(folder: Path, target: str) -> None:
    kept = backup(folder / "worker-1.db", folder)
    restore(kept.file, folder / "worker-2.db")
    assert outbox_files([folder]) == [folder / "worker-1.db", folder / "worker-2.db"]
    report = drain([folder], target)
    assert (report.delivered, report.absorbed, report.pending) == (2, 2, 0)


def test_an_outbox_whose_creation_is_in_the_log_only_is_found(tmp_path: Path) -> None:
    with Outbox(tmp_path / "worker-1.db") as box:
        box.append("note", {})
        assert (tmp_path / "worker-1.db-wal").stat().st_size > 0
        assert outbox_files([tmp_path]) == [box.path]


def test_a_file_that_cannot_be_read_is_named(folder: Path, target: str) -> None:
    (folder / "worker-2.db").write_bytes(b"x" * 8192)
    assert backlog([folder]).unreachable == (str(folder / "worker-2.db"),)
    assert drain([folder], target).unreachable == (str(folder / "worker-2.db"),)


def test_a_file_named_by_its_path_is_never_left_out(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "notes.db")) as connection:
        connection.execute("create table note (text)")
    assert "not an outbox" in backlog([folder / "notes.db"]).sentence
