"""Restore drills: a kept backup is restored to a scratch folder and answers the user's queries.

Each run takes the backup whose last drill is the oldest, so that each has its turn. The manifest
keeps when that was, how long the restore took, and what was wrong.
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from replica_platform.backup.child.process import ask_queries
from replica_platform.backup.errors import Busy
from replica_platform.backup.folder import backups, folder_lock
from replica_platform.backup.manifest import Backup, in_utc
from replica_platform.backup.restore import restore
from replica_platform.core.errors import TerminalError
from replica_platform.core.locks import LockHeld, file_lock
from replica_platform.core.reports import ReportFields, format_age

NEVER = datetime.min.replace(tzinfo=UTC)
Value = str | int | float | None


@dataclass(frozen=True)
class DrillQuery:
    """A query that gives one number, and the bounds of that number.

    Attributes:
        sql: The query; the first value of its first row counts.
        at_least: The least number that is right; no bound if None.
        at_most: The greatest number that is right; no bound if None.
    """

    sql: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class DrillReport(ReportFields):
    """What one restore drill found.

    Attributes:
        file: The backup that was restored; None if there is none.
        ok: Whether it could be restored and every answer was within its bounds.
        sentence: The same in words.
        problems: What was wrong, each as half a sentence.
        answers: The value of each query; None where it gave none.
        restore_s: How long the restore took, in seconds; None if it failed.
    """

    file: Path | None
    ok: bool
    sentence: str
    problems: list[str]
    answers: list[Value]
    restore_s: float | None


@dataclass(frozen=True)
class DrillStatus(ReportFields):
    """The drills of the backups of one name.

    Attributes:
        count: Backups with a readable manifest.
        drilled: Those that were restored as a drill at least once.
        newest_drill_age_s: How long ago the last drill was, in seconds; None if there was none.
        oldest_drill_age_s: How long ago it was for the backup whose drill is oldest.
        restore_s: How long the restore of the last drill took, in seconds.
        ok: Whether there was a drill, and none of those kept found a problem.
        sentence: The same in words.
    """

    count: int
    drilled: int
    newest_drill_age_s: float | None
    oldest_drill_age_s: float | None
    restore_s: float | None
    ok: bool
    sentence: str


def drill(
    to: Path, name: str, queries: Sequence[DrillQuery] = (), *, now: datetime | None = None
) -> DrillReport:
    """Restore the backup whose last drill is the oldest, ask it the queries, record the outcome.

    It is restored to a scratch folder in `to`, which is removed afterwards.

    Args:
        to: The folder of backups.
        name: The stem of the source's file name.
        queries: What the restored database must answer.
        now: The moment of the drill; the clock's if left out.

    Returns:
        The backup, the answers, how long the restore took; `ok` when nothing was wrong.

    Raises:
        Busy: Another process has a drill of these backups, or works on them.
        NoRoom: The folder's disk has no space for another copy.
        ChildFailed: A child process ended without an answer.
    """
    folder, moment = to.absolute(), in_utc(now or datetime.now(UTC))
    kept = backups(folder, name)
    if not kept:
        return DrillReport(
            None, False, f"No backup of {name} in {folder}; run `replica backup`.", [], [], None
        )
    chosen = min(kept, key=lambda backup: (backup.drilled_at or NEVER, backup.taken_at))
    try:
        with file_lock(folder / f".{name}.drill.lock", wait_s=0):
            _remove_scratch(folder, name)
            scratch = Path(tempfile.mkdtemp(prefix=f".drill-{name}-", dir=folder))
            try:
                report = _restore_and_ask(chosen, scratch / f"{name}.db", queries)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except LockHeld:
        raise Busy(
            f"Another process restores a backup of {name} as a drill; try again later."
        ) from None
    _record(chosen, report, moment)
    return report


def drill_status(to: Path, name: str, *, now: datetime | None = None) -> DrillStatus:
    """Say when the kept backups were restored as a drill, and how long that took.

    Args:
        to: The folder of backups.
        name: The stem of the source's file name.
        now: The moment from which ages are counted; the clock's if left out.

    Returns:
        The counts, ages in seconds, and a sentence.
    """
    moment = in_utc(now or datetime.now(UTC))
    kept = backups(to.absolute(), name)
    drilled = sorted((one for one in kept if one.drilled_at), key=_drilled_at)
    if not drilled:
        sentence = f"No backup of {name} was restored as a drill yet."
        return DrillStatus(len(kept), 0, None, None, None, False, sentence)
    newest_age_s, oldest_age_s = (
        max((moment - _drilled_at(one)).total_seconds(), 0.0) for one in (drilled[-1], drilled[0])
    )
    restored = [one.drill_restore_s for one in drilled if one.drill_restore_s is not None]
    sentence = (
        f"{len(drilled)} of {len(kept)} backups of {name} were restored as a drill, the last "
        f"{format_age(newest_age_s)} ago, the one whose drill is oldest {format_age(oldest_age_s)} "
        "ago" + (f"; a restore took {restored[-1]:.1f} s." if restored else ".")
    )
    failed = [one for one in drilled if one.drill_problem]
    for one in failed[-1:]:
        sentence += f" {one.file.name}: {one.drill_problem}."
    return DrillStatus(
        count=len(kept),
        drilled=len(drilled),
        newest_drill_age_s=newest_age_s,
        oldest_drill_age_s=oldest_age_s,
        restore_s=restored[-1] if restored else None,
        ok=not failed,
        sentence=sentence,
    )


def _drilled_at(backup: Backup) -> datetime:
    return backup.drilled_at or NEVER


def _restore_and_ask(backup: Backup, to: Path, queries: Sequence[DrillQuery]) -> DrillReport:
    try:
        restored = restore(backup.file, to)
    except TerminalError as error:  # the backup's fault; what may be tried again is raised
        problems = [str(error).rstrip(".")]
        return _report(backup, problems, [], None)
    answers = ask_queries(to, [query.sql for query in queries]) if queries else None
    values = answers.values if answers else []
    errors = answers.errors if answers else []
    found = [
        _problem(query, value, error)
        for query, value, error in zip(queries, values, errors, strict=True)
    ]
    problems = [problem for problem in found if problem]
    if restored.tables != backup.tables:
        problems.append("its tables or their rows are not those of the manifest")
    return _report(backup, problems, values, restored.seconds)


def _report(
    backup: Backup, problems: list[str], answers: list[Value], restore_s: float | None
) -> DrillReport:
    name = backup.file.name
    if problems:
        sentence = f"The drill of {name} failed: {'; '.join(problems)}."
    else:
        sentence = (
            f"{name} was restored in {restore_s:.1f} s; {len(answers)} queries answered rightly."
        )
    return DrillReport(backup.file, not problems, sentence, problems, answers, restore_s)


def _problem(query: DrillQuery, value: Value, error: str | None) -> str | None:
    """Return what is wrong with an answer; None if nothing."""
    if error:
        return f"`{query.sql}` failed ({error})"
    if value is None:
        return f"`{query.sql}` gave nothing"
    if isinstance(value, str):
        return f"`{query.sql}` gave {value!r}, which is no number"
    if query.at_least is not None and value < query.at_least:
        return f"`{query.sql}` gave {value:,}, and at least {query.at_least:,} is asked for"
    if query.at_most is not None and value > query.at_most:
        return f"`{query.sql}` gave {value:,}, and at most {query.at_most:,} is asked for"
    return None


def _record(chosen: Backup, report: DrillReport, moment: datetime) -> None:
    """Write the outcome into the manifest as it is now, if the backup is still kept."""
    folder = chosen.file.parent
    with folder_lock(folder, chosen.name):
        for backup in backups(folder, chosen.name):
            if backup.file == chosen.file:
                replace(
                    backup,
                    drilled_at=moment,
                    drill_restore_s=report.restore_s,
                    drill_problem="; ".join(report.problems) or None,
                ).save()


def _remove_scratch(folder: Path, name: str) -> None:
    """Remove what killed drills left; the caller holds the lock of drills."""
    pattern = re.compile(rf"\.drill-{re.escape(name)}-[^-]+")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
