"""A verification reads the whole backup again and compares it with its manifest."""

import json
import os
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from replica_platform.backup import Backup, backup, backups, drill, stats, status, verify
from replica_platform.backup.errors import Unreadable
from replica_platform.core.reports import format_bytes
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.conftest import day

# `replica_platform.backup.verify` is the function.
verification = sys.modules["replica_platform.backup.verify"]


def test_an_unchanged_backup_is_sound_and_its_manifest_records_the_verification(
    taken: Backup, folder: Path
) -> None:
    seen = verify(taken.file)
    assert seen.ok and seen.problems == [] and seen.tables == {"t": 2}
    assert seen.sentence == f"{taken.file.name} is sound: 1 tables, 2 rows."
    assert backups(folder)[0].verified_at == seen.checked_at > taken.verified_at


def test_the_outcome_of_a_drill_that_ended_meanwhile_stays(
    taken: Backup, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = verification.compare_with_manifest

    def and_a_drill_ends(known: Backup, progress: object = None) -> object:
        outcome = compare(known)
        assert drill(folder, "app", now=day(2)).ok
        return outcome

    monkeypatch.setattr(verification, "compare_with_manifest", and_a_drill_ends)
    seen = verify(taken.file)
    (known,) = backups(folder)
    assert (known.drilled_at, known.verified_at) == (day(2), seen.checked_at)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def append_row(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("insert into t values ('late')")


def leave_wal(file: Path) -> None:
    file.with_name(file.name + "-wal").write_bytes(b"x")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (flip, "SHA-256 differs"),
        (append_row, "SHA-256 differs"),
        (cut, "bytes where the manifest says"),
        (leave_wal, "a program wrote to it"),
        (Path.unlink, "Cannot read"),
    ],
)
def test_every_damage_is_found_and_recorded(
    taken: Backup, folder: Path, damage, finding: str
) -> None:
    damage(taken.file)
    seen = verify(taken.file)
    assert not seen.ok
    assert finding in seen.sentence
    assert not backups(folder)[0].ok
    assert not stats(folder).ok and stats(folder).verified == 0


def test_a_changed_manifest_is_noticed(taken: Backup, folder: Path) -> None:
    manifest = json.loads(taken.manifest.read_text())
    taken.manifest.write_text(json.dumps({**manifest, "tables": {"t": 3}}))
    assert "tables or their rows" in verify(taken.file).sentence
    taken.manifest.write_text("{")
    with pytest.raises(Unreadable, match="no readable manifest"):
        verify(taken.file)
    assert stats(folder).unlisted == 1


def test_status_gives_the_age_of_the_newest(app: Path, folder: Path) -> None:
    assert stats(folder).ok is False and "No backup" in stats(folder).sentence
    first, second = (backup(app, folder, now=day(n)) for n in (1, 4))
    seen = stats(folder, "app", now=day(5))
    assert (seen.count, seen.verified, seen.ok) == (2, 2, True)
    assert seen.newest_age_s == 86400
    assert (seen.oldest_at, seen.newest_at) == (day(1), day(4))
    assert seen.bytes == first.bytes + second.bytes
    assert json.dumps(seen.as_dict())
    assert stats(folder, "other").count == 0
    assert stats is status


def test_status_says_what_the_backups_use_what_is_free_and_which_is_the_newest_verified(
    app: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replica_platform.core.disk_space.free_bytes", lambda _: 3 << 30)
    empty = status(folder, "app")
    assert empty.free_bytes == 3 << 30 and "3.0 GiB are free" in empty.sentence
    assert empty.newest_verified is None
    first, second = (backup(app, folder, now=day(n)) for n in (1, 4))
    seen = status(folder, "app", now=second.verified_at + timedelta(hours=5))
    assert seen.newest_verified == second.file
    assert seen.newest_verified_at == second.verified_at
    assert f"{second.file.name} is the newest verified, 5 hours ago" in seen.sentence
    used = format_bytes(first.bytes + second.bytes)
    assert f"They use {used}; 3.0 GiB are free" in seen.sentence
    cut(second.file)
    seen = status(folder, "app", now=day(5))
    assert seen.newest_verified == first.file and first.file.name in seen.sentence
