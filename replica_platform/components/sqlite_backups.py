"""SQLite files that are backed up and verified, listed in a `defs.yaml`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.backup import backup, backups, cleanup, stats, verify
from replica_platform.metadata import described
from replica_platform.policies import DAILY, TRANSIENT, plain_failures
from replica_platform.settings import Settings


class File(Model, Resolvable):
    """One file: its path, absolute or below the data folder, and how long copies are kept."""

    path: str
    keep_days: int = 30
    keep_count: int = 7


class SqliteBackups(Component, Model, Resolvable):
    """An asset a SQLite file: a verified copy, and the old ones that may go.

    A newest copy older than `fresh_within_s` warns; one that does not verify blocks.
    """

    files: Sequence[File]
    fresh_within_s: int = 26 * 3600

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """An asset and its two checks for each file."""
        assets = [_asset(file) for file in self.files]
        checks = [self._check(file) for file in self.files]
        return dg.Definitions(assets=assets, asset_checks=checks)

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
            found = stats(folder, _path(file).stem)
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


def _path(file: File) -> Path:
    return Settings().data_dir / file.path  # an absolute path stays as it is


def _key(file: File) -> dg.AssetKey:
    return dg.AssetKey(["backups", Path(file.path).stem])


def _asset(file: File) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(file),
        group_name="backups",
        kinds={"sqlite", "file"},
        owners=["team:platform"],
        retry_policy=TRANSIENT,
        freshness_policy=DAILY,
        description=f"A verified copy of {file.path}, everything in its write-ahead log included.",
    )
    def copy() -> dg.MaterializeResult:
        folder = Settings().backup_dir
        with plain_failures():
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
