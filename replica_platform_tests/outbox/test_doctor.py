"""`doctor`: each check with a bad case."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from psycopg import sql

from replica_platform.backup import backup, verify
from replica_platform.outbox import Outbox, doctor, file
from replica_platform.outbox.delivery.doctor import (
    clock_skew,
    disk_reserve,
    file_system,
    fsync_latency,
    loaded_libraries,
    sqlite_libraries,
    sqlite_version,
)

Ask = Callable[..., list[tuple[Any, ...]]]


def test_every_check_passes_here(path: Path, target: str) -> None:
    """In another process, which has one SQLite library; pytest's may have more."""
    program = (
        "import sys, pathlib\n"
        "from replica_platform.outbox import Outbox, doctor\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "with Outbox(path) as box:\n"
        "    box.append('note', {})\n"
        "    for f in doctor([path], sys.argv[2]): print(f.ok, f.name, f.sentence, sep='|')\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path), target],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    findings = [line.split("|") for line in answer]
    assert [name for ok, name, _ in findings if ok != "True" and "fsync" not in name] == []
    assert len(findings) == 11
    assert "pysqlite3" in findings[1][2]


def test_an_old_sqlite_is_found() -> None:
    assert not sqlite_version((3, 40, 1)).ok
    assert not sqlite_version((3, 51, 2)).ok
    assert sqlite_version((3, 51, 3)).ok


def test_a_second_sqlite_library_is_found() -> None:
    program = (
        "import sqlite3\n"
        "from replica_platform.outbox.delivery.doctor import loaded_libraries\n"
        "print(*sorted(loaded_libraries()))\n"
    )
    for more, expected in (("", "libsqlite3 pysqlite3"), ("import apsw\n", "apsw libsqlite3")):
        answer = subprocess.run(
            [sys.executable, "-c", more + program], check=True, capture_output=True, text=True
        ).stdout
        assert answer.startswith(expected), answer
    two = {"libsqlite3", "pysqlite3"}
    assert sqlite_libraries(two, []).ok
    assert not sqlite_libraries(two, [Path("worker-1.db")]).ok


def test_a_file_open_in_this_process_is_known(box: Outbox, path: Path) -> None:
    finding = doctor([path])[1]
    assert finding.ok == (len(loaded_libraries()) < 2)
    assert finding.ok or str(path) in finding.sentence


def test_without_a_memory_map_the_modules_are_listed(tmp_path: Path) -> None:
    assert "pysqlite3" in loaded_libraries(tmp_path / "absent")


def test_network_and_memory_file_systems_are_found(tmp_path: Path) -> None:
    assert not file_system(tmp_path, "nfs4").ok
    assert not file_system(tmp_path, "tmpfs").ok
    assert file_system(tmp_path, "ext4").ok
    assert not next(f for f in doctor([Path("/dev/shm")]) if "file system" in f.name).ok


def test_too_small_a_disk_is_found(small_disk: Path) -> None:
    found = {finding.name: finding for finding in doctor([small_disk])}
    assert not found[f"disk reserve of {small_disk}"].ok
    assert not found[f"file system of {small_disk}"].ok
    assert disk_reserve(small_disk, 1024**3).ok


def test_a_slow_disk_and_a_skewed_clock_are_found(tmp_path: Path) -> None:
    assert not fsync_latency(tmp_path, 0.05).ok
    assert fsync_latency(tmp_path, 0.001).ok
    assert not clock_skew(-3).ok
    assert clock_skew(0.5).ok


def test_a_target_without_synchronous_commit_is_found(path: Path, target: str, ask: Ask) -> None:
    [(name,)] = ask("select current_database()")
    ask(sql.SQL("alter database {} set synchronous_commit = off").format(sql.Identifier(name)))
    found = {finding.name: finding for finding in doctor([], target)}
    assert not found["target's synchronous_commit"].ok
    assert found["target's fsync"].ok


def test_a_record_from_the_future_is_found(box: Outbox, path: Path) -> None:
    box.append("note", {})
    connection = file.open_existing(path)
    connection.execute("update record set created_at = created_at + 3600")
    connection.close()
    assert not next(f for f in doctor([path]) if f.name.startswith("clock of")).ok


def test_what_cannot_be_checked_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "gone.db"
    findings = doctor([absent], "postgresql://u:secret@127.0.0.1:1/x")
    bad = {finding.name: finding.sentence for finding in findings if not finding.ok}
    assert {"outbox gone.db", "target"} <= set(bad)
    assert "secret" not in str(bad)
    assert not absent.exists()


def test_the_durability_of_the_worker_is_checked(path: Path) -> None:
    """Not that of the doctor's own connection, which is always FULL."""
    for durability, ok in (("normal", False), ("full", True)):
        with Outbox(path, durability=durability):
            found = {finding.name: finding for finding in doctor([path])}
        finding = found["durability of worker-1.db"]
        assert finding.ok is ok
        assert durability.upper() in finding.sentence


def test_an_unknown_durability_is_not_called_full(box: Outbox, path: Path) -> None:
    """In a file whose worker runs an earlier version."""
    with closing(file.open_existing(path)) as connection:
        connection.execute("delete from meta where key = 'durability'")
    finding = next(f for f in doctor([path]) if f.name.startswith("durability of"))
    assert finding.ok
    assert "unknown" in finding.sentence


def test_a_checked_file_is_not_changed(path: Path, tmp_path: Path) -> None:
    """A backup, which is not in WAL mode, stays as its manifest describes it."""
    with Outbox(path) as box:
        box.append("note", {})
    kept = backup(path, tmp_path / "backups")
    doctor([kept.file])
    assert verify(kept.file).ok
