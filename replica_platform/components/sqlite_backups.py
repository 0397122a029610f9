"""Verified backups of SQLite files, of this host or of another one, listed in a `defs.yaml`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.backup import (
    DrillQuery,
    backup,
    backups,
    cleanup,
    drill,
    drill_status,
    pull,
    status,
    verify,
)
from replica_platform.metadata import change
from replica_platform.policies import DAILY, TRANSIENT, translate_errors
from replica_platform.resources.platform import PlatformConfig


class DrillEntry(Model, Resolvable):
    """A query that a restored backup must answer with a number.

    Attributes:
        sql: The query; the first value of its first row counts.
        at_least: The least number that is right.
        at_most: The greatest number that is right.
    """

    sql: str
    at_least: float | None = None
    at_most: float | None = None


class FileEntry(Model, Resolvable):
    """A SQLite file, and how long its backups are kept.

    Attributes:
        path: The file, absolute or below the data folder.
        pulled_from: For a file on another host, its address `ssh://user@host:port/path.db`; it
            is copied to `path` before each backup.
        method: How it is copied: `query` transfers the rows that differ, `scp` the whole file.
        known_hosts: The file of host keys to trust; those of `~/.ssh` when absent.
        client_key: The private key to log in with; those of `~/.ssh` when absent.
        keep_days: Backups younger than this many days are kept.
        keep_count: The newest backups that are kept at any age.
        drill: Queries that are run on a restored backup, one backup a night.
    """

    path: str
    pulled_from: str | None = None
    method: Literal["query", "scp"] = "query"
    known_hosts: str | None = None
    client_key: str | None = None
    keep_days: int = 30
    keep_count: int = 7
    drill: Sequence[DrillEntry] = ()


class SqliteBackups(Component, Model, Resolvable):
    """An asset for each SQLite file: its newest verified backup.

    The check `is_intact` blocks when the newest backup does not verify, and warns when SQLite
    cannot check all of it; `is_fresh` warns when it is too old. `is_restorable` restores one kept
    backup to a scratch folder, the one that waited longest, and runs the file's queries on it.
    Files of this host (group `backups`) are backed up at 03:00, files of other hosts (group
    `remote`) at 09:00.

    Attributes:
        files: The files to back up.
        fresh_within_s: The age in seconds above which the newest backup counts as too old.
    """

    files: Sequence[FileEntry]
    fresh_within_s: int = 26 * 3600

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return an asset and three checks for each file, and the schedules that they need."""
        return dg.Definitions(
            assets=[_asset(file) for file in self.files],
            asset_checks=[self._check(file) for file in self.files],
            schedules=[SCHEDULES[group] for group in sorted({_group(file) for file in self.files})],
        )

    def _check(self, file: FileEntry) -> dg.AssetChecksDefinition:
        key = _key(file)
        specs = [
            dg.AssetCheckSpec(
                "is_intact",
                asset=key,
                blocking=True,
                description="The newest backup matches its manifest, and SQLite finds it sound.",
            ),
            dg.AssetCheckSpec(
                "is_fresh",
                asset=key,
                description="The newest backup is at most "
                f"{self.fresh_within_s / 3600:g} hours old.",
            ),
            dg.AssetCheckSpec(
                "is_restorable",
                asset=key,
                description="One kept backup after another is restored to a scratch folder and "
                "answers the file's queries.",
            ),
        ]

        @dg.multi_asset_check(name=f"{key.path[-1]}_checks", specs=specs, can_subset=True)
        def checks(platform: PlatformConfig) -> Iterator[dg.AssetCheckResult]:
            folder, name = platform.backups, key.path[-1]
            found = status(folder, name)
            newest = next(iter(backups(folder, name)), None)
            verification = verify(newest.file) if newest else None
            fresh = found.newest_age_s is not None and found.newest_age_s <= self.fresh_within_s
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name="is_intact",
                passed=verification is not None and verification.ok and not verification.unchecked,
                severity=dg.AssetCheckSeverity.WARN
                if verification and verification.ok
                else dg.AssetCheckSeverity.ERROR,
                description=verification.sentence if verification else found.sentence,
            )
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name="is_fresh",
                passed=fresh,
                severity=dg.AssetCheckSeverity.WARN,
                description=found.sentence,
                metadata={"newest_age_seconds": found.newest_age_s, "copies": found.count},
            )
            yield _drill(file, folder)

        return checks


def _drill(file: FileEntry, folder: Path) -> dg.AssetCheckResult:
    """Restore the backup whose last drill is the oldest; report it and the drills so far."""
    name = _key(file).path[-1]
    queries = [DrillQuery(one.sql, one.at_least, one.at_most) for one in file.drill]
    with translate_errors():
        report = drill(folder, name, queries)
    found = drill_status(folder, name)
    return dg.AssetCheckResult(
        asset_key=_key(file),
        check_name="is_restorable",
        passed=report.ok and found.ok,
        description=f"{report.sentence} {found.sentence}",
        metadata={
            "restore_seconds": report.restore_s,
            "oldest_drill_age_seconds": found.oldest_drill_age_s,
            "backups_with_a_drill": found.drilled,
            "copies": found.count,
            "answers": report.answers,
        },
    )


SCHEDULES = {
    "backups": dg.ScheduleDefinition(
        name="nightly_backups",
        target=dg.AssetSelection.groups("backups"),
        cron_schedule="0 3 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="A verified backup of every SQLite file, at 03:00.",
    ),
    "remote": dg.ScheduleDefinition(
        name="remote_pulls",
        target=dg.AssetSelection.groups("remote"),
        cron_schedule="0 9 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every SQLite file of another host, copied here and backed up, at 09:00.",
    ),
}


def _group(file: FileEntry) -> str:
    return "remote" if file.pulled_from else "backups"


def _key(file: FileEntry) -> dg.AssetKey:
    return dg.AssetKey(["backups", Path(file.path).stem])


def _asset(file: FileEntry) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(file),
        group_name=_group(file),
        kinds={"sqlite", "file"},
        owners=["team:platform"],
        retry_policy=TRANSIENT,
        freshness_policy=DAILY,
        description=f"A verified backup of {file.pulled_from or file.path}, its write-ahead log "
        "included.",
    )
    def newest_backup(
        context: dg.AssetExecutionContext, platform: PlatformConfig
    ) -> dg.MaterializeResult:
        path, folder = platform.path(file.path), platform.backups
        with translate_errors():
            if file.pulled_from:
                context.log.info(_pull(file, file.pulled_from, path))
            known = {earlier.sha256 for earlier in backups(folder, path.stem)}
            made = backup(path, folder)
            removed = cleanup(
                folder, path.stem, keep_days=file.keep_days, keep_count=file.keep_count
            )
        return dg.MaterializeResult(
            metadata={
                **change(
                    made.sha256 not in known,
                    f"{made.file.name} made, {len(removed)} old removed",
                ),
                "dagster/row_count": made.rows,
                "dagster/uri": str(made.file),
                "bytes": made.bytes,
                "sha256": made.sha256,
                "backup_seconds": made.seconds,
            }
        )

    return newest_backup


def _pull(file: FileEntry, url: str, to: Path) -> str:
    """Bring the file of the other host here; return a sentence about what was transferred."""
    pulled = pull(
        url,
        to,
        method=file.method,
        known_hosts=Path(file.known_hosts) if file.known_hosts else None,
        client_keys=[Path(file.client_key)] if file.client_key else None,
    )
    return pulled.sentence
