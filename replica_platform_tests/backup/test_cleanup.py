"""Retention deletes what is old AND beyond the count AND has a newer sound backup."""

import os
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.backup import Backup, backup, backups, cleanup, status
from replica_platform.backup.manifest import manifest_of
from replica_platform.core.errors import TerminalError
from replica_platform_tests.backup.conftest import day, make


def days_left(folder: Path) -> list[int]:
    return [taken.taken_at.day for taken in reversed(backups(folder))]


@pytest.fixture
def five(taken: Backup, folder: Path) -> list[Path]:
    """Five backups, one of each of the first days; all are copies of the first."""
    for n in range(2, 6):
        file = folder / f"app_backup_2026010{n}_030000.db"
        shutil.copyfile(taken.file, file)
        replace(taken, file=file, taken_at=day(n)).save()
    return [each.file for each in reversed(backups(folder))]


@pytest.mark.parametrize(
    ("keep_days", "keep_count", "left"),
    [
        (2, 1, [4, 5]),  # older than two days at day 6, 03:00: before day 4
        (2, 4, [2, 3, 4, 5]),  # old, but within the count
        (100, 1, [1, 2, 3, 4, 5]),  # beyond the count, but young
        (0, 1, [5]),
    ],
)
def test_both_days_and_count_protect(
    five: list[Path], folder: Path, keep_days: int, keep_count: int, left: list[int]
) -> None:
    deleted = cleanup(folder, "app", keep_days=keep_days, keep_count=keep_count, now=day(6))
    assert days_left(folder) == left
    assert deleted == five[: 5 - len(left)]
    assert not any(path.exists() or manifest_of(path).exists() for path in deleted)


def test_times_come_from_manifests_not_from_the_file_system(five: list[Path], folder: Path) -> None:
    for path in five:
        os.utime(path, (0, 0))
    assert cleanup(folder, "app", keep_days=30, keep_count=1, now=day(6)) == []


def test_a_damaged_backup_does_not_count_as_a_newer_sound_one(
    five: list[Path], folder: Path
) -> None:
    for path in five[1:]:  # same size, other content: only reading it shows it
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert cleanup(folder, "app", keep_days=0, keep_count=1, now=day(6)) == []
    assert days_left(folder) == [1, 2, 3, 4, 5]
    assert [taken.ok for taken in reversed(backups(folder))] == [True, False, False, False, False]


def test_a_half_deleted_backup_is_finished(five: list[Path], folder: Path) -> None:
    five[0].unlink()  # where a kill between file and manifest leaves it
    deleted = cleanup(folder, "app", keep_days=2, keep_count=1, now=day(6))
    assert five[0] in deleted
    assert days_left(folder) == [4, 5]


def test_another_source_of_the_same_name_is_counted_separately(
    five: list[Path], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "app.db"
    make(other, "z").close()
    backup(other, folder, now=day(7))
    assert cleanup(folder, "app", keep_days=0, keep_count=1, now=day(9)) == five[:4]
    assert days_left(folder) == [5, 7]


def test_a_rule_that_would_keep_nothing_is_refused(five: list[Path], folder: Path) -> None:
    with pytest.raises(TerminalError, match="would leave none"):
        cleanup(folder, "app", keep_days=0, keep_count=0)
    assert days_left(folder) == [1, 2, 3, 4, 5]


def copies_of(taken: Backup, moments: list[datetime]) -> None:
    """Make a copy of a backup for each moment."""
    for moment in moments:
        file = taken.file.with_name(f"app_backup_{moment:%Y%m%d_%H%M%S}.db")
        shutil.copyfile(taken.file, file)
        replace(taken, file=file, taken_at=moment).save()


TEN_YEARS = timedelta(days=3650)


@pytest.mark.parametrize("one_was_taken", [False, True])
def test_a_clock_that_is_ten_years_ahead_deletes_no_month_of_backups(
    taken: Backup, folder: Path, one_was_taken: bool
) -> None:
    copies_of(taken, [day(n) for n in range(2, 61)])
    ahead = day(60) + TEN_YEARS
    copies_of(taken, [ahead] if one_was_taken else [])
    cleanup(folder, "app", keep_days=30, keep_count=7, now=ahead + timedelta(minutes=1))
    left = {backup.taken_at for backup in backups(folder)}
    # With a right clock days 30 to 60 are left; a jump counts as two days at most.
    assert left >= {day(n) for n in range(33, 61)}


def test_a_pause_in_the_backups_is_over_when_they_go_on(taken: Backup, folder: Path) -> None:
    moments = [day(n) for n in (*range(2, 11), *range(100, 141))]
    copies_of(taken, moments)
    cleanup(folder, "app", keep_days=30, keep_count=7, now=day(140))
    assert {backup.taken_at for backup in backups(folder)} == {day(n) for n in range(110, 141)}


def test_a_backup_dated_in_the_future_neither_counts_nor_goes(
    five: list[Path], taken: Backup, folder: Path
) -> None:
    copies_of(taken, [day(6) + TEN_YEARS])
    assert cleanup(folder, "app", keep_days=0, keep_count=1, now=day(6)) == five[:4]
    assert [backup.taken_at for backup in backups(folder)] == [day(6) + TEN_YEARS, day(5)]


def test_a_backup_dated_in_the_future_is_not_the_newest(
    five: list[Path], taken: Backup, folder: Path
) -> None:
    copies_of(taken, [day(6) + TEN_YEARS])
    found = status(folder, now=day(8))
    assert (found.newest_at, found.newest_age_s) == (day(5), 3 * 86400)
    assert "dated in the future" in found.sentence and found.count == 6
    assert status(folder, now=day(5) + 2 * TEN_YEARS).newest_at == day(6) + TEN_YEARS
    alone = status(folder, now=day(1) - TEN_YEARS)
    assert not alone.ok and alone.newest_age_s is None
