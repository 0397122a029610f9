"""Tables synced from the source Postgres to the target Postgres, listed in a `defs.yaml`."""

from collections.abc import Iterator, Sequence
from typing import Literal

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.components.changed_only import Reported, reported, unreported
from replica_platform.components.sample import without_sample
from replica_platform.components.xmin_metadata import integrity_metadata, sync_metadata
from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import format_age
from replica_platform.policies import TARGET_POOL, TRANSIENT, reported_every, translate_errors
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform.xmin import GroupReport, TableSpec, sync_group, validate
from replica_platform.xmin.names import TableName

BLOCKING = frozenset({"is_intact"})


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
    warns when the last sync is too old. The job of the schedule reports and checks the tables that
    changed; it reports an unchanged one every `report_unchanged_s` seconds.

    Attributes:
        tables: The tables of the group.
        into: The schema in the target.
        name: The name of the group; its schedule is `name_sync`.
        threshold: The integrity score, 0 to 1, below which dependent assets are blocked.
        fresh_within_s: The age in seconds above which the last sync counts as too old.
        cron_schedule: When the group is synced.
        report_unchanged_s: The seconds after which the schedule reports and checks a table again
            that did not change.
    """

    tables: Sequence[TableEntry]
    into: str = "raw_data"
    name: str = "fds"
    threshold: float = 0.9
    fresh_within_s: int = 1800
    cron_schedule: str = "*/5 * * * *"
    report_unchanged_s: int = 7200

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
        job = self._job()
        schedule = dg.ScheduleDefinition(
            name=f"{self.name}_sync",
            target=job,
            cron_schedule=self.cron_schedule,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=f"Every table of {self.name}, by xmin.",
        )
        return dg.Definitions(
            assets=[*external, self._sync()],
            asset_checks=[self._checks()],
            jobs=[job],
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
                freshness_policy=reported_every(self.report_unchanged_s, self.fresh_within_s),
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
            tables = [table for key, table in by_key.items() if key in selected]
            group = self._sync_tables(tables, platform, source, target)
            wanted = {str(self._target(table)): self._target_key(table) for table in tables}
            for table, report in group.reports.items():
                context.log.info(f"{table}: {report.mode}. {report.why}")
                yield dg.MaterializeResult(asset_key=wanted[table], metadata=sync_metadata(report))
            _raise_failures(group)

        return sync

    def _job(self) -> dg.JobDefinition:
        """Return the job of the schedule: one step, with events of what changed."""
        tables = {str(self._target(table)): table for table in self.tables}
        keys = {name: self._target_key(table) for name, table in tables.items()}

        @dg.op(name=f"sync_{self.name}", out={}, pool=TARGET_POOL, retry_policy=TRANSIENT)
        def sync_changed(
            context: dg.OpExecutionContext,
            platform: PlatformConfig,
            source: dg.ResourceParam[PostgresDatabase],
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[Reported]:
            due = unreported(context.instance, keys.values(), self.report_unchanged_s)
            group = self._sync_tables(self.tables, platform, source, target)
            problems = []
            for name, report in group.reports.items():
                if not report.changed and keys[name] not in due:
                    continue
                context.log.info(f"{name}: {report.mode}. {report.why}")
                results = self._evaluate(tables[name], source, target)
                for event in reported(
                    context.instance, keys[name], sync_metadata(report), results, BLOCKING
                ):
                    yield event
                    problems += _problem(event)
            context.log.info(group.sentence)
            _raise_failures(group)
            if problems:
                raise dg.Failure("; ".join(problems), allow_retries=False)

        @dg.job(
            name=f"{self.name}_sync",
            description=f"Every table of {self.name}, by xmin; reports those that changed, and "
            f"the others every {format_age(self.report_unchanged_s)}.",
        )
        def job() -> None:
            sync_changed()

        return job

    def _sync_tables(
        self,
        tables: Sequence[TableEntry],
        platform: PlatformConfig,
        source: PostgresDatabase,
        target: PostgresDatabase,
    ) -> GroupReport:
        with translate_errors():
            return sync_group(
                source.dsn,
                target.dsn,
                [self._spec(table) for table in tables],
                workers=platform.xmin_workers,
                batch_bytes=platform.xmin_batch_bytes,
            )

    def _spec(self, table: TableEntry) -> TableSpec:
        return TableSpec(
            table.table,
            into=self.into,
            mode=table.mode,
            timestamp_column=table.timestamp_column,
            timestamp_zone=table.timestamp_zone,
            deletes=table.deletes,
        )

    def _checks(self) -> dg.AssetChecksDefinition:
        """Return the checks of all tables as one step: a step each costs more than most checks."""
        by_key = {self._target_key(table): table for table in self.tables}
        specs = [spec for key in by_key for spec in self._check_specs(key)]

        @dg.multi_asset_check(
            name=f"{self.name}_checks", specs=specs, can_subset=True, pool=TARGET_POOL
        )
        def checks(
            context: dg.AssetCheckExecutionContext,
            source: dg.ResourceParam[PostgresDatabase],
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[dg.AssetCheckResult]:
            selected = context.selected_asset_check_keys
            for key in sorted({check.asset_key for check in selected}):
                for result in self._evaluate(by_key[key], source, target):
                    if dg.AssetCheckKey(key, result.check_name or "") in selected:
                        yield result

        return checks

    def _check_specs(self, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
        return [
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

    def _evaluate(
        self, table: TableEntry, source: PostgresDatabase, target: PostgresDatabase
    ) -> Iterator[dg.AssetCheckResult]:
        """Yield the result of each check of a table; an engine's error fails both by its text."""
        key = self._target_key(table)
        try:
            found = validate(source.dsn, target.dsn, table.table, into=self.into)
        except PlatformError as error:
            for spec in self._check_specs(key):
                yield dg.AssetCheckResult(
                    asset_key=key, check_name=spec.name, passed=False, description=str(error)
                )
            return
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name="is_intact",
            passed=found.score >= self.threshold,
            description=found.sentence,
            metadata=integrity_metadata(found),
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


def _raise_failures(group: GroupReport) -> None:
    """Raise what failed; the other tables are committed, and the schedule repeats those."""
    if group.failures:
        raise dg.Failure(
            "; ".join(f"{table}: {why}" for table, why in group.failures.items()),
            allow_retries=False,
        )


def _problem(event: Reported) -> list[str]:
    """Return the sentence of a blocking check that failed, as a list of at most one."""
    if isinstance(event, dg.AssetMaterialization) or event.passed or not event.blocking:
        return []
    return [f"{event.asset_key.to_user_string()}: {event.description}"]
