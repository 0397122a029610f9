"""Verified backups of SQLite files, of this host or of another one, listed in a `defs.yaml`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Resolvable

from replica_platform.app.entries import FileEntry, SqliteBackupsEntry
from replica_platform.app.entries.base import host_pool
from replica_platform.app.entries.sqlite_files import names_of
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
from replica_platform.components.scaffolding import ExampleScaffolder, with_attributes
from replica_platform.metadata import change, history
from replica_platform.policies import (
    TRANSIENT,
    by_a_person,
    fresh_within,
    named_job,
    repair_key,
    translate_errors,
)
from replica_platform.resources.platform import PlatformConfig


@with_attributes
@dg.scaffold_with(ExampleScaffolder)
class SqliteBackups(Component, SqliteBackupsEntry, Resolvable):
    """Verified backups of SQLite files, of this host or of another one, each night.

    The check `is_intact` blocks when the newest backup does not verify, and warns when SQLite
    cannot check all of it; `is_fresh` warns when it is too old. `is_restorable` restores one kept
    backup to a scratch folder, the one that waited longest, and runs the file's queries on it. A
    sensor requests another backup when the newest one is gone, has another size, or was found
    damaged.

    Example:
        name: shop
        files:
          - path: shop/app.db # below the data folder, or absolute
            keep_days: 30
            keep_count: 7
            drill: # queries that a restored backup must answer
              - {sql: select count(*) from sqlite_schema, at_least: 0}
        cron_schedule: 0 3 * * *
    """

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return an asset and three checks for each file, and the schedules that they need."""
        named = dict(zip(names_of(self.files), self.files, strict=True))
        kinds: dict[str, list[str]] = {}
        for name, file in named.items():
            kinds.setdefault(_kind(file), []).append(name)
        return dg.Definitions(
            assets=[self._asset(name, file) for name, file in named.items()],
            asset_checks=[self._check(name, file) for name, file in named.items()],
            schedules=[self._schedule(kind, names) for kind, names in sorted(kinds.items())],
            sensors=[self._repair(named)] if named else [],
        )

    def _key(self, name: str) -> dg.AssetKey:
        return dg.AssetKey([self.name, name])

    def _folder(self, platform: PlatformConfig, name: str, file: FileEntry) -> Path:
        return self.backups_of(platform.backups, file, name)

    def _group(self, kind: str) -> str:
        base = self.group or self.name
        if kind == "backups":
            return base
        return "remote" if base == "backups" else f"{base}_remote"

    def _schedule(self, kind: str, names: Sequence[str]) -> dg.ScheduleDefinition:
        # The first entry's schedules have the names from before there could be others.
        first = {"backups": "nightly_backups", "remote": "remote_pulls"}
        own = {"backups": f"{self.name}_nightly", "remote": f"{self.name}_pulls"}
        remote = kind == "remote"
        name = (first if self.name == "backups" else own)[kind]
        description = (
            "Every SQLite file of another host, copied here and backed up."
            if remote
            else "A verified backup of every SQLite file."
        )
        return dg.ScheduleDefinition(
            name=name,
            target=named_job(name, dg.AssetSelection.assets(*map(self._key, names)), description),
            cron_schedule=self.remote_cron_schedule if remote else self.cron_schedule,
            execution_timezone=self.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=description,
        )

    def _repair(self, named: Mapping[str, FileEntry]) -> dg.SensorDefinition:
        """Return the sensor that takes another backup when the newest is known to be damaged."""
        name = "backups_repair" if self.name == "backups" else f"{self.name}_backups_repair"
        description = "Takes another backup when the newest one is known to be damaged."
        assets = dg.AssetSelection.assets(*map(self._key, named))

        @dg.sensor(
            name=name,
            target=named_job(name, assets, description),
            minimum_interval_seconds=self.repair_interval_s,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description=description,
        )
        def repair(
            context: dg.SensorEvaluationContext, platform: PlatformConfig
        ) -> Iterator[dg.RunRequest | dg.SkipReason]:
            damaged = 0
            for name, file in named.items():
                kept = backups(self._folder(platform, name, file), Path(file.path).stem)
                if not kept or kept[0].ok:
                    continue  # the first backup is the schedule's
                damaged += 1
                context.log.warning(kept[0].sentence)
                yield dg.RunRequest(
                    run_key=f"{name}-{repair_key(context, kept[0].file.name)}",
                    asset_selection=[self._key(name)],
                )
            if not damaged:
                yield dg.SkipReason("No newest backup is known to be damaged.")

        return repair

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
            with translate_errors():
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
            owners=list(self.owners),
            tags=self.asset_tags,
            pool=host_pool(self.pool, self.host) if self.pool else None,
            retry_policy=TRANSIENT,
            freshness_policy=fresh_within(self.fresh_within_s),
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
                    **history(
                        platform.stills(by_a_person=by_a_person(context.run)).of_backups(
                            f"{self.name}/{name}",
                            (one.taken_at for one in backups(folder, path.stem) if one.ok),
                        )
                    ),
                }
            )

        return newest_backup


def _drill(key: dg.AssetKey, file: FileEntry, folder: Path) -> dg.AssetCheckResult:
    """Restore the backup whose last drill is the oldest; report it and the drills so far.

    Once a night: other runs of the check report the last drill, unless that found a problem.
    """
    name = Path(file.path).stem
    queries = [DrillQuery(one.sql, one.at_least, one.at_most) for one in file.drill]
    found, report = drill_status(folder, name), None
    age_s = found.newest_drill_age_s
    if not found.ok or age_s is None or age_s >= DRILL_EVERY_S:
        with translate_errors():
            report = drill(folder, name, queries)
        found = drill_status(folder, name)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="is_restorable",
        passed=found.ok and (report is None or report.ok),
        description=f"{report.sentence} {found.sentence}" if report else found.sentence,
        metadata={
            "restore_seconds": report.restore_s if report else found.restore_s,
            "oldest_drill_age_seconds": found.oldest_drill_age_s,
            "backups_with_a_drill": found.drilled,
            "copies": found.count,
            **({"answers": report.answers} if report else {}),
        },
    )


# A second backup of an unchanged file keeps no second copy, but the next night's does.
REPEATED_WITHIN_S = 20 * 3600
# Checks run more often: after each publication, and whenever somebody asks for them.
DRILL_EVERY_S = 20 * 3600


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
