"""A verification reads the file again and believes nothing."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.backup import Backup, backup, backups, stats, verify
from replica_platform.backup.errors import Unreadable
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.conftest import day


def test_an_untouched_backup_is_sound_and_the_manifest_remembers_the_look(
    taken: Backup, shelf: Path
) -> None:
    seen = verify(taken.file)
    assert seen.ok and seen.problems == [] and seen.tables == {"t": 2}
    assert seen.sentence == f"{taken.file.name} is sound: 1 tables, 2 rows."
    assert backups(shelf)[0].verified_at == seen.checked_at > taken.verified_at


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
    ("harm", "finding"),
    [
        (flip, "SHA-256 differs"),
        (append_row, "SHA-256 differs"),
        (cut, "bytes where the manifest says"),
        (leave_wal, "somebody wrote to it"),
        (Path.unlink, "Cannot read"),
    ],
)
def test_every_harm_is_found_and_remembered(taken: Backup, shelf: Path, harm, finding: str) -> None:
    harm(taken.file)
    seen = verify(taken.file)
    assert not seen.ok
    assert finding in seen.sentence
    assert not backups(shelf)[0].sound
    assert not stats(shelf).ok and stats(shelf).verified == 0


def test_a_changed_manifest_does_not_vouch(taken: Backup, shelf: Path) -> None:
    told = json.loads(taken.manifest.read_text())
    taken.manifest.write_text(json.dumps({**told, "tables": {"t": 3}}))
    assert "tables or their rows" in verify(taken.file).sentence
    taken.manifest.write_text("{")
    with pytest.raises(Unreadable, match="no readable manifest"):
        verify(taken.file)
    assert stats(shelf).unlisted == 1


def test_stats_say_how_old_the_newest_is(app: Path, shelf: Path) -> None:
    assert stats(shelf).ok is False and "No backup" in stats(shelf).sentence
    first, second = (backup(app, shelf, now=day(n)) for n in (1, 4))
    seen = stats(shelf, "app", now=day(5))
    assert (seen.count, seen.verified, seen.ok) == (2, 2, True)
    assert seen.newest_age_s == 86400
    assert (seen.oldest_at, seen.newest_at) == (day(1), day(4))
    assert seen.bytes == first.bytes + second.bytes
    assert json.dumps(seen.as_dict())
    assert stats(shelf, "other").count == 0
