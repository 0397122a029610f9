"""Tables synced from the source Postgres to the target Postgres, listed in a `defs.yaml`."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.components.sample import without_sample
from replica_platform.core.reports import format_age
from replica_platform.metadata import change, markdown_rows, table_schema
from replica_platform.policies import EVERY_FEW_MINUTES, TARGET_POOL, TRANSIENT, translate_errors
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform.xmin import Integrity, Proving, SyncReport, TableSpec, sync_group, validate
from replica_platform.xmin.names import TableName


class TableEntry(Model, Resolvable):
    """A table of the source, and how it is synced.

    Attributes:
        table: Its name in the source, `schema.table`.
        mode: How changes are found: `scan` reads every row's xmin, `timestamp` the rows above the
            newest timestamp, `full` all rows; `auto` chooses.
        timestamp_column: The column that `timestamp` reads by.
        timestamp_zone: The writers' time zone, for a timestamp column that has none.
        deletes: Whether rows that the source deleted are deleted here: `auto` compares keys when
            the numbers of rows differ, `keys` always, `never` keeps them.
        sample: Whether the table belongs to the sample.
    """

    table: str
    mode: Literal["auto", "scan", "timestamp", "full"] = "auto"
    timestamp_column: str | None = None
    timestamp_zone: str | None = None
    deletes: Literal["auto", "keys", "never"] = "auto"
    sample: bool = False


class XminTables(Component, Model, Resolvable):
    """An asset for each table of a group, all synced in one step from one source snapshot.

    The check `is_intact` compares keys and xmin of both sides and blocks below a score; `is_fresh`
    warns when the last sync is too old.

    Attributes:
        tables: The tables of the group.
        into: The schema in the target.
        name: The name of the group; its schedule is `name_sync`.
        threshold: The integrity score, 0 to 1, below which dependent assets are blocked.
        prove_within_s: The seconds in which the syncs compare the whole content of each table
            once, a part at each sync, and repair what differs; null compares nothing.
        fresh_within_s: The age in seconds above which the last sync counts as too old.
        cron_schedule: When the group is synced.
    """

    tables: Sequence[TableEntry]
    into: str = "raw_data"
    name: str = "fds"
    threshold: float = 0.9
    prove_within_s: int | None = 86_400
    fresh_within_s: int = 1800
    cron_schedule: str = "*/5 * * * *"

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return the external source tables, the synced assets, their checks and the schedule."""
        tables = without_sample(self.tables)
        if len(tables) < len(self.tables):
            return self.model_copy(update={"tables": tables}).build_defs(context)
        if not tables:
            return dg.Definitions()
        self._refuse_shared_targets()
        external = [
            dg.AssetSpec(
                self._source_key(table),
                group_name="source",
                kinds={"postgres"},
                description=f"{table.table} in the source database; others write it.",
            )
            for table in self.tables
        ]
        sync = self._sync()
        schedule = dg.ScheduleDefinition(
            name=f"{self.name}_sync",
            target=dg.AssetSelection.assets(sync),
            cron_schedule=self.cron_schedule,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=f"Every table of {self.name}, by xmin.",
        )
        return dg.Definitions(
            assets=[*external, sync],
            asset_checks=[self._integrity_check(table) for table in self.tables],
            schedules=[schedule],
        )

    def _refuse_shared_targets(self) -> None:
        """Refuse two entries with one target table.

        Raises:
            dg.DagsterInvalidDefinitionError: It names both entries.
        """
        seen: dict[TableName, str] = {}
        for table in self.tables:
            target = self._target(table)
            if target in seen:
                raise dg.DagsterInvalidDefinitionError(
                    f"{seen[target]} and {table.table} both arrive as {target}; list one of them, "
                    "or move one to another component with another `into`."
                )
            seen[target] = table.table

    def _target(self, table: TableEntry) -> TableName:
        return self._spec(table).target_name

    def _source_key(self, table: TableEntry) -> dg.AssetKey:
        name = TableName.parse(table.table)
        return dg.AssetKey(["source", name.schema, name.table])

    def _target_key(self, table: TableEntry) -> dg.AssetKey:
        return dg.AssetKey([self.into, TableName.parse(table.table).table])

    def _sync(self) -> dg.AssetsDefinition:
        by_key = {self._target_key(table): table for table in self.tables}
        specs = [
            dg.AssetSpec(
                key,
                deps=[self._source_key(table)],
                group_name="warehouse",
                kinds={"postgres", "table"},
                owners=["team:warehouse"],
                skippable=True,
                freshness_policy=EVERY_FEW_MINUTES,
                description=f"{table.table} of the source: every committed change, once.",
            )
            for key, table in by_key.items()
        ]

        @dg.multi_asset(
            name=f"{self.name}_tables",
            specs=specs,
            can_subset=True,
            pool=TARGET_POOL,
            retry_policy=TRANSIENT,
        )
        def sync(
            context: dg.AssetExecutionContext,
            platform: PlatformConfig,
            source: dg.ResourceParam[PostgresDatabase],
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[dg.MaterializeResult]:
            selected = context.selected_asset_keys
            wanted = {str(self._target(by_key[key])): key for key in selected}
            with translate_errors():
                group = sync_group(
                    source.dsn,
                    target.dsn,
                    [self._spec(table) for key, table in by_key.items() if key in selected],
                    workers=platform.xmin_workers,
                    batch_bytes=platform.xmin_batch_bytes,
                    prove=Proving(self.prove_within_s) if self.prove_within_s else None,
                )
            for table, report in group.reports.items():
                context.log.info(f"{table}: {report.mode}. {report.why}")
                yield dg.MaterializeResult(asset_key=wanted[table], metadata=_sync_metadata(report))
            if group.failures:
                # The others are committed; the schedule repeats those that failed.
                raise dg.Failure(
                    "; ".join(f"{table}: {why}" for table, why in group.failures.items()),
                    allow_retries=False,
                )

        return sync

    def _spec(self, table: TableEntry) -> TableSpec:
        return TableSpec(
            table.table,
            into=self.into,
            mode=table.mode,
            timestamp_column=table.timestamp_column,
            timestamp_zone=table.timestamp_zone,
            deletes=table.deletes,
        )

    def _integrity_check(self, table: TableEntry) -> dg.AssetChecksDefinition:
        key = self._target_key(table)
        specs = [
            dg.AssetCheckSpec(
                "is_intact",
                asset=key,
                blocking=True,
                description=f"The integrity score is at least {self.threshold}: "
                "no key is missing, stale or extra.",
            ),
            dg.AssetCheckSpec(
                "is_fresh",
                asset=key,
                description=f"The last sync was at most {self.fresh_within_s} seconds ago.",
            ),
        ]

        @dg.multi_asset_check(
            name=f"{key.to_python_identifier()}_checks",
            specs=specs,
            can_subset=True,
            pool=TARGET_POOL,
        )
        def checks(
            source: dg.ResourceParam[PostgresDatabase], target: dg.ResourceParam[PostgresDatabase]
        ) -> Iterator[dg.AssetCheckResult]:
            with translate_errors():
                found = validate(source.dsn, target.dsn, table.table, into=self.into)
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name="is_intact",
                passed=found.score >= self.threshold,
                description=found.sentence,
                metadata=_integrity_metadata(found),
            )
            gap_s = found.gap_s
            fresh = gap_s is not None and gap_s <= self.fresh_within_s
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name="is_fresh",
                passed=fresh,
                severity=dg.AssetCheckSeverity.WARN,
                description=self._freshness(gap_s, fresh),
                metadata={"gap_seconds": gap_s, "gap_xids": found.gap_xids},
            )

        return checks

    def _freshness(self, gap_s: float | None, fresh: bool) -> str:
        if gap_s is None:
            return "It was never synced; materialise it, and see whether the schedule runs."
        ago = f"The last sync was {format_age(gap_s)} ago"
        return (
            f"{ago}."
            if fresh
            else (
                f"{ago}, but should be at most {format_age(self.fresh_within_s)} ago; "
                "see whether the schedule runs."
            )
        )


def _sync_metadata(report: SyncReport) -> dict[str, Any]:
    moved = report.rows_inserted + report.rows_updated + report.rows_deleted
    return {
        **change(
            report.changed,
            f"{report.rows_inserted:,} inserted, {report.rows_updated:,} updated, "
            f"{report.rows_deleted:,} deleted",
        ),
        "dagster/row_count": report.rows,
        "dagster/table_name": report.target_table,
        "dagster/column_schema": table_schema(report.columns),
        "mode": report.mode,
        "why": report.why,
        "rows_read": report.rows_read,
        "rows_moved": moved,
        "bytes": report.bytes,
        "sync_seconds": report.seconds,
        "lag_xids": report.lag_xids,
        "content_rows_proven": report.proof.rows if report.proof else 0,
        "content_rows_repaired": report.proof.repaired if report.proof else 0,
    }


def _integrity_metadata(found: Integrity) -> dict[str, Any]:
    keys = {"missing": found.missing, "stale": found.stale, "extra": found.extra}
    differing = [(difference, key) for difference, some in keys.items() for key in some]
    return {
        "score": found.score,
        **{f"score/{name}": float(term) for name, term in found.terms.items()},
        "missing": found.missing_count,
        "stale": found.stale_count,
        "extra": found.extra_count,
        "pending": found.pending_count,
        "keys": dg.MetadataValue.md(markdown_rows(differing, ("difference", "key"))),
        "source_rows": found.source_rows,
        "target_rows": found.target_rows,
        "gap_xids": found.gap_xids,
        "content_rows": found.content_rows,
        "content_age_seconds": found.content_age_s,
        "content_coverage": found.content_coverage,
        "xmin_ages": dg.MetadataValue.md(_histogram(found)),
        "held_back_by": found.held_back_by or "nobody",
    }


def _histogram(found: Integrity) -> str:
    """Return the rows of both sides by the age of their xmin, as bars side by side."""
    source, target = found.source_ages or {}, found.target_ages or {}
    most = max([*source.values(), *target.values(), 1])
    return markdown_rows(
        [
            (f"2^{age}", _bar(source.get(age, 0), most), _bar(target.get(age, 0), most))
            for age in sorted({*source, *target})
        ],
        ("age in xids", "source", "target"),
    )


def _bar(rows: int, most: int) -> str:
    return f"{'█' * round(20 * rows / most)} {rows:,}"
