"""Verified backups of SQLite files, of this host or of another one, listed in a `defs.yaml`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.app.configured import backup_folder, names_of
from replica_platform.backup import (
    DrillQuery,
    backup,
    backups,
    cleanup,
    drill,
    drill_status,
    keep_one_of_equal,
    pull,
    status,
    verify,
)
from replica_platform.components.sample import without_sample
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
        name: Its name among the backups. When absent, the stem of the file, preceded by its
            folder's name where an earlier file has the same stem.
        pulled_from: For a file on another host, its address `ssh://user@host:port/path.db`; it
            is copied to `path` before each backup.
        method: How it is copied: `query` transfers the rows that differ, `scp` the whole file.
        known_hosts: The file of host keys to trust; those of `~/.ssh` when absent.
        client_key: The private key to log in with; those of `~/.ssh` when absent.
        keep_days: Backups younger than this many days are kept.
        keep_count: The newest backups that are kept at any age.
        blocks: The block store that keeps the content: a folder, absolute or below the data
            folder, or a URL such as s3://bucket/prefix. When absent each backup is a file.
        encrypted: Whether the blocks are encrypted, with the first key in `REPLICA_BACKUP_KEY`.
        drill: Queries that are run on a restored backup, one backup a night.
        sample: Whether the file belongs to the sample.
    """

    path: str
    name: str | None = None
    pulled_from: str | None = None
    method: Literal["query", "scp"] = "query"
    known_hosts: str | None = None
    client_key: str | None = None
    keep_days: int = 30
    keep_count: int = 7
    blocks: str | None = None
    encrypted: bool = False
    drill: Sequence[DrillEntry] = ()
    sample: bool = False


class SqliteBackups(Component, Model, Resolvable):
    """An asset for each SQLite file: its newest verified backup.

    The check `is_intact` blocks when the newest backup does not verify, and warns when SQLite
    cannot check all of it; `is_fresh` warns when it is too old. `is_restorable` restores one kept
    backup to a scratch folder, the one that waited longest, and runs the file's queries on it.
    Files of this host (group `backups`) are backed up at 03:00, files of other hosts (group
    `remote`) at 09:00.

    Attributes:
        files: The files to back up.
        name: The first part of the assets' keys. Schedules, groups and the folder of backups of
            another name than `backups` carry it too, so that several entries live side by side.
        fresh_within_s: The age in seconds above which the newest backup counts as too old.
    """

    files: Sequence[FileEntry]
    name: str = "backups"
    fresh_within_s: int = 26 * 3600

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return an asset and three checks for each file, and the schedules that they need."""
        files = without_sample(self.files)
        named = dict(zip(names_of(files), files, strict=True))
        return dg.Definitions(
            assets=[self._asset(name, file) for name, file in named.items()],
            asset_checks=[self._check(name, file) for name, file in named.items()],
            schedules=[self._schedule(kind) for kind in sorted({_kind(file) for file in files})],
        )

    def _key(self, name: str) -> dg.AssetKey:
        return dg.AssetKey([self.name, name])

    def _folder(self, platform: PlatformConfig, name: str, file: FileEntry) -> Path:
        return backup_folder(platform.backups, self.name, file, name)

    def _group(self, kind: str) -> str:
        if self.name == "backups":
            return kind
        return self.name if kind == "backups" else f"{self.name}_{kind}"

    def _schedule(self, kind: str) -> dg.ScheduleDefinition:
        if self.name == "backups":
            return SCHEDULES[kind]
        name = f"{self.name}_{'nightly' if kind == 'backups' else 'pulls'}"
        return _schedule(kind, name, self._group(kind))

    def _check(self, name: str, file: FileEntry) -> dg.AssetChecksDefinition:
        key = self._key(name)
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

        @dg.multi_asset_check(
            name=f"{key.to_python_identifier()}_checks",
            specs=specs,
            can_subset=True,
        )
        def checks(platform: PlatformConfig) -> Iterator[dg.AssetCheckResult]:
            folder, stem = self._folder(platform, name, file), Path(file.path).stem
            found = status(folder, stem)
            newest = next(iter(backups(folder, stem)), None)
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
            yield _drill(key, file, folder)

        return checks

    def _asset(self, name: str, file: FileEntry) -> dg.AssetsDefinition:
        @dg.asset(
            key=self._key(name),
            group_name=self._group(_kind(file)),
            kinds={"sqlite", "file"},
            owners=["team:platform"],
            retry_policy=TRANSIENT,
            freshness_policy=DAILY,
            description=f"A verified backup of {file.pulled_from or file.path}, "
            "its write-ahead log included.",
        )
        def newest_backup(
            context: dg.AssetExecutionContext, platform: PlatformConfig
        ) -> dg.MaterializeResult:
            path, folder = platform.path(file.path), self._folder(platform, name, file)
            with translate_errors():
                if file.pulled_from:
                    context.log.info(_pull(file, file.pulled_from, path))
                known = {earlier.sha256 for earlier in backups(folder, path.stem)}
                made = backup(
                    path, folder, blocks=_block_store(platform, file), encrypt=file.encrypted
                )
                kept = keep_one_of_equal(made, path.stem, within_s=REPEATED_WITHIN_S)
                removed = cleanup(
                    folder, path.stem, keep_days=file.keep_days, keep_count=file.keep_count
                )
            return dg.MaterializeResult(
                metadata={
                    **change(
                        made.sha256 not in known,
                        f"{kept.file.name} made, {len(removed)} old removed",
                    ),
                    "dagster/row_count": made.rows,
                    "dagster/uri": str(kept.file),
                    "bytes": made.bytes,
                    "used_bytes": made.used_bytes,
                    "sha256": made.sha256,
                    "backup_seconds": made.seconds,
                }
            )

        return newest_backup


def _drill(key: dg.AssetKey, file: FileEntry, folder: Path) -> dg.AssetCheckResult:
    """Restore the backup whose last drill is the oldest; report it and the drills so far."""
    name = Path(file.path).stem
    queries = [DrillQuery(one.sql, one.at_least, one.at_most) for one in file.drill]
    with translate_errors():
        report = drill(folder, name, queries)
    found = drill_status(folder, name)
    return dg.AssetCheckResult(
        asset_key=key,
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


# A second backup of an unchanged file keeps no second copy, but the next night's does.
REPEATED_WITHIN_S = 20 * 3600
CRON = {"backups": "0 3 * * *", "remote": "0 9 * * *"}
WHAT = {
    "backups": "A verified backup of every SQLite file, at 03:00.",
    "remote": "Every SQLite file of another host, copied here and backed up, at 09:00.",
}


def _schedule(kind: str, name: str, group: str) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=name,
        target=dg.AssetSelection.groups(group),
        cron_schedule=CRON[kind],
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=WHAT[kind],
    )


# The same for every entry of the name `backups`, so that several of them share it.
SCHEDULES = {
    "backups": _schedule("backups", "nightly_backups", "backups"),
    "remote": _schedule("remote", "remote_pulls", "remote"),
}


def _block_store(platform: PlatformConfig, file: FileEntry) -> Path | str | None:
    """Return the address of a file's block store; a path is below the data folder."""
    if file.blocks is None or "://" in file.blocks:
        return file.blocks
    return platform.path(file.blocks)


def _kind(file: FileEntry) -> str:
    return "remote" if file.pulled_from else "backups"


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
