"""SQLite files that are backed up and verified, here or on another host, in a `defs.yaml`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.app.settings import Settings
from replica_platform.backup import backup, backups, cleanup, pull, status, verify
from replica_platform.metadata import described
from replica_platform.policies import DAILY, TRANSIENT, plain_failures


class File(Model, Resolvable):
    """One file: its path, absolute or below the data folder, and how long copies are kept.

    A file of another host is brought home to `path` first: `pulled_from` is its address,
    `ssh://user@host:port/path.db`, `method` how it comes (`query` moves the rows that differ,
    `scp` the file). Whom to trust and which key to show are those of `~/.ssh` when left out.
    """

    path: str
    pulled_from: str | None = None
    method: Literal["query", "scp"] = "query"
    known_hosts: str | None = None
    client_key: str | None = None
    keep_days: int = 30
    keep_count: int = 7


class SqliteBackups(Component, Model, Resolvable):
    """An asset a SQLite file: a verified copy, and the old ones that may go.

    A newest copy older than `fresh_within_s` warns; one that does not verify blocks. Files of
    other hosts are a group of their own, `remote`, that is fetched at 09:00.
    """

    files: Sequence[File]
    fresh_within_s: int = 26 * 3600

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """An asset and its two checks for each file; their schedules where there are any."""
        return dg.Definitions(
            assets=[_asset(file) for file in self.files],
            asset_checks=[self._check(file) for file in self.files],
            schedules=[SCHEDULES[group] for group in sorted({_group(file) for file in self.files})],
        )

    def _check(self, file: File) -> dg.AssetChecksDefinition:
        key = _key(file)
        specs = [
            dg.AssetCheckSpec(
                "is_intact",
                asset=key,
                blocking=True,
                description="The newest copy is what its manifest says, and SQLite finds it sound.",
            ),
            dg.AssetCheckSpec(
                "is_fresh",
                asset=key,
                description=f"The newest copy is at most {self.fresh_within_s / 3600:g} hours old.",
            ),
        ]

        @dg.multi_asset_check(name=f"{key.path[-1]}_checks", specs=specs, can_subset=True)
        def checks() -> Iterator[dg.AssetCheckResult]:
            folder = Settings().backup_dir
            found = status(folder, _path(file).stem)
            newest = next(iter(backups(folder, _path(file).stem)), None)
            verification = verify(newest.file) if newest else None
            fresh = found.newest_age_s is not None and found.newest_age_s <= self.fresh_within_s
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name="is_intact",
                passed=verification is not None and verification.ok,
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

        return checks


SCHEDULES = {
    "backups": dg.ScheduleDefinition(
        name="nightly_backups",
        target=dg.AssetSelection.groups("backups"),
        cron_schedule="0 3 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="A verified copy of every SQLite file, at 03:00.",
    ),
    "remote": dg.ScheduleDefinition(
        name="remote_pulls",
        target=dg.AssetSelection.groups("remote"),
        cron_schedule="0 9 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every SQLite file of another host, brought home and kept, at 09:00.",
    ),
}


def _group(file: File) -> str:
    return "remote" if file.pulled_from else "backups"


def _path(file: File) -> Path:
    return Settings().data_dir / file.path  # an absolute path stays as it is


def _key(file: File) -> dg.AssetKey:
    return dg.AssetKey(["backups", Path(file.path).stem])


def _asset(file: File) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(file),
        group_name=_group(file),
        kinds={"sqlite", "file"},
        owners=["team:platform"],
        retry_policy=TRANSIENT,
        freshness_policy=DAILY,
        description=f"A verified copy of {file.pulled_from or file.path}, everything in its "
        "write-ahead log included.",
    )
    def copy(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        folder = Settings().backup_dir
        with plain_failures():
            if file.pulled_from:
                context.log.info(_pull(file, file.pulled_from))
            known = {copy.sha256 for copy in backups(folder, _path(file).stem)}
            made = backup(_path(file), folder)
            gone = cleanup(
                folder, _path(file).stem, keep_days=file.keep_days, keep_count=file.keep_count
            )
        return dg.MaterializeResult(
            metadata={
                **described(
                    made.sha256 not in known,
                    f"{made.file.name} made, {len(gone)} old removed",
                ),
                "dagster/row_count": made.rows,
                "dagster/uri": str(made.file),
                "bytes": made.bytes,
                "sha256": made.sha256,
                "backup_seconds": made.seconds,
            }
        )

    return copy


def _pull(file: File, url: str) -> str:
    """Make the file here the same as the one over there; says what came."""
    pulled = pull(
        url,
        _path(file),
        method=file.method,
        known_hosts=Path(file.known_hosts) if file.known_hosts else None,
        client_keys=[Path(file.client_key)] if file.client_key else None,
    )
    return pulled.sentence
