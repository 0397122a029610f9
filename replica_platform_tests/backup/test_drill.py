"""Each kept backup in turn is restored to a scratch folder, and the user's queries run on it."""

import json
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from replica_platform.backup import Backup, DrillQuery, backup, backups, drill, drill_status
from replica_platform_tests.backup.conftest import day, make

COUNT = DrillQuery("select count(*) from t", at_least=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def take(count: int, tmp_path: Path, folder: Path) -> list[Backup]:
    with closing(make(tmp_path / "app.db", "a", "b")):
        return [backup(tmp_path / "app.db", folder, now=day(n)) for n in range(1, count + 1)]


@pytest.mark.parametrize(("count", "queries"), [(0, 5), (1, 2), (2, 0), (2, 5), (5, 1)])
def test_the_one_whose_drill_is_oldest_is_next(
    tmp_path: Path, folder: Path, count: int, queries: int
) -> None:
    taken = take(count, tmp_path, folder)
    before = names(folder) if count else []
    asked = [COUNT] * queries
    seen = []
    for number in range(2 * count):
        report = drill(folder, "app", asked, now=day(10) + timedelta(days=number))
        assert report.ok and report.answers == [2] * queries and report.problems == []
        assert report.restore_s is not None and report.restore_s > 0
        seen.append(report.file)
    assert seen == [one.file for one in taken] * 2
    if not count:
        report = drill(folder, "app", asked)
        assert not report.ok and report.file is None and "No backup" in report.sentence
    assert (names(folder) if count else []) == before  # no scratch left
    status = drill_status(folder, "app", now=day(10) + timedelta(days=2 * count))
    assert (status.count, status.drilled, status.ok) == (count, count, bool(count))
    assert status.newest_drill_age_s == (86400 if count else None)
    assert status.oldest_drill_age_s == (count * 86400 if count else None)
    assert json.dumps(status.as_dict())


def test_status_counts_those_without_a_drill(tmp_path: Path, folder: Path) -> None:
    take(2, tmp_path, folder)
    assert "No backup of app was restored as a drill yet" in drill_status(folder, "app").sentence
    report = drill(folder, "app", [], now=day(3))
    assert "restored in" in report.sentence
    status = drill_status(folder, "app", now=day(4))
    assert (status.drilled, status.ok) == (1, True) and "1 of 2" in status.sentence
    assert status.restore_s == report.restore_s
    assert all(one.ok for one in backups(folder))


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        (DrillQuery("select count(*) from t", at_least=3), "gave 2, and at least 3 is asked for"),
        (DrillQuery("select count(*) from t", at_most=1), "gave 2, and at most 1 is asked for"),
        (DrillQuery("select count(*) from absent"), "no such table: absent"),
        (DrillQuery("select max(v) from t", at_least=1), "gave 'b', which is no number"),
        (DrillQuery("select 1 where false"), "gave nothing"),
        (DrillQuery("delete from t"), "readonly"),
    ],
)
def test_an_answer_out_of_bounds_is_a_problem_of_that_backup(
    tmp_path: Path, folder: Path, query: DrillQuery, problem: str
) -> None:
    take(1, tmp_path, folder)
    report = drill(folder, "app", [COUNT, query], now=day(3))
    assert not report.ok and problem in report.sentence and len(report.problems) == 1
    status = drill_status(folder, "app", now=day(3))
    assert not status.ok and problem in status.sentence
    assert drill(folder, "app", [COUNT], now=day(4)).ok
    assert drill_status(folder, "app", now=day(4)).ok


def test_a_damaged_backup_fails_its_drill(tmp_path: Path, folder: Path) -> None:
    (taken,) = take(1, tmp_path, folder)
    content = bytearray(taken.file.read_bytes())
    content[-1] ^= 1
    taken.file.write_bytes(content)
    report = drill(folder, "app", [COUNT])
    assert not report.ok and "SHA-256 differs" in report.sentence and report.answers == []
    assert not drill_status(folder, "app").ok


def test_what_a_killed_drill_left_is_removed(tmp_path: Path, folder: Path) -> None:
    take(1, tmp_path, folder)
    before = names(folder)
    (folder / ".drill-app-left").mkdir()
    (folder / ".drill-app-left" / "app.db").touch()
    (folder / ".drill-apple-left").mkdir()
    assert drill(folder, "app", []).ok
    assert names(folder) == sorted([*before, ".drill-apple-left"])
