"""Workers' outboxes drained to the target, by node, listed in a `defs.yaml`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.app.settings import Settings
from replica_platform.metadata import described
from replica_platform.outbox import backlog, drain, reconcile
from replica_platform.policies import EVERY_FEW_MINUTES, TARGET_POOL, TRANSIENT, plain_failures
from replica_platform.resources.postgres import PostgresDatabase

# A run gives way to the next one before the schedule's 5 minutes are over.
DRAIN_BUDGET_S = 240
# The tags of a run that no person asked for.
BY_ITSELF = {"dagster/schedule_name", "dagster/sensor_name"}


class WorkerOutboxes(Component, Model, Resolvable):
    """One asset for all records, a partition a node where there are several nodes.

    `nodes` maps a node to the folder of its outbox files, absolute or below the data folder;
    `mappings` gives a kind a typed table beside `outbox.record`. A record that waits for longer
    than `backlog_within_s` warns.
    """

    name: str = "conversations"
    nodes: Mapping[str, str]
    mappings: Mapping[str, Mapping[str, Any]] = {}
    backlog_within_s: int = 900

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """The external outboxes, the drained asset with its checks, its schedule and sensor."""
        outboxes = dg.AssetSpec(
            "worker_outboxes",
            group_name="source",
            kinds={"sqlite"},
            description="The local SQLite files that workers append to, one a slot.",
        )
        return dg.Definitions(
            assets=[outboxes, self._drained()],
            asset_checks=[self._nothing_is_missing(), self._no_row_is_dead(), self._is_fresh()],
            schedules=[self._schedule()],
            sensors=[self._sensor()],
        )

    @property
    def _folders(self) -> dict[str, Path]:
        return {node: Settings().data_dir / folder for node, folder in self.nodes.items()}

    @property
    def _partitions(self) -> dg.PartitionsDefinition | None:
        nodes = list(self.nodes)
        return dg.StaticPartitionsDefinition(nodes) if len(nodes) > 1 else None

    def _requests(self, nodes: Sequence[str], reason: str | None = None) -> list[dg.RunRequest]:
        """A run for each of these nodes; the same `reason` is asked for once."""
        if self._partitions is None:
            return [dg.RunRequest(run_key=reason)] if nodes else []
        return [
            dg.RunRequest(run_key=reason and f"{node} {reason}", partition_key=node)
            for node in nodes
        ]

    def _drained(self) -> dg.AssetsDefinition:
        @dg.asset(
            name=self.name,
            deps=["worker_outboxes"],
            partitions_def=self._partitions,
            group_name="outbox",
            kinds={"postgres", "table"},
            owners=["team:platform"],
            pool=TARGET_POOL,
            retry_policy=TRANSIENT,
            freshness_policy=EVERY_FEW_MINUTES,
            description="Every record that a worker's `append` acknowledged, once, "
            "in `outbox.record`.",
        )
        def drained(
            context: dg.AssetExecutionContext, target: PostgresDatabase
        ) -> dg.MaterializeResult:
            # A person is not kept waiting by the breaker, and gets lost rows sent again.
            by_person = not BY_ITSELF & context.run.tags.keys()
            nodes = [context.partition_key] if context.has_partition_key else list(self.nodes)
            with plain_failures():
                report = drain(
                    [self._folders[node] for node in nodes],
                    target.dsn,
                    budget_s=DRAIN_BUDGET_S,
                    mappings=self.mappings,
                    force=by_person,
                    repair=by_person,
                )
            if report.trouble:
                # The next run tries again; each file's breaker knows when that makes sense.
                raise dg.Failure(report.sentence, allow_retries=False)
            return dg.MaterializeResult(
                metadata={
                    **described(report.delivered > 0, f"{report.delivered:,} records delivered"),
                    "dagster/row_count": report.landed,
                    "dagster/table_name": "outbox.record",
                    "delivered": report.delivered,
                    "resends_absorbed": report.absorbed,
                    "dead_rows": report.dead_rows,
                    "conflicts": report.conflicts,
                    "backlog": report.pending,
                    "drain_seconds": report.seconds,
                    "rows_per_second": report.rows_per_s,
                }
            )

        return drained

    def _nothing_is_missing(self) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=self.name, blocking=True, pool=TARGET_POOL)
        def nothing_is_missing(target: PostgresDatabase) -> dg.AssetCheckResult:
            """The target holds, by ledger and digest, whatever an outbox marks as delivered."""
            with plain_failures():
                found = reconcile(list(self._folders.values()), target.dsn)
            return dg.AssetCheckResult(
                passed=found.ok,
                description=found.sentence,
                metadata={
                    "rows_checked": found.rows_checked,
                    "rows_missing": found.rows_missing,
                    "batches_missing": found.batches_missing,
                },
            )

        return nothing_is_missing

    def _no_row_is_dead(self) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=self.name)
        def no_row_is_dead() -> dg.AssetCheckResult:
            """No record waits for somebody to mend it, and none came twice with other content."""
            found = backlog(list(self._folders.values()))
            return dg.AssetCheckResult(
                passed=not found.dead and not found.conflicts,
                description=(
                    f"{found.dead:,} records cannot be delivered as they are and "
                    f"{found.conflicts:,} came again with other content; `replica dead --outbox "
                    "FILE` lists them, `--replay` tries them again."
                    if found.dead or found.conflicts
                    else "No record is dead."
                ),
                metadata={"dead_rows": found.dead, "conflicts": found.conflicts},
            )

        return no_row_is_dead

    def _is_fresh(self) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=self.name)
        def backlog_is_fresh() -> dg.AssetCheckResult:
            """The oldest record that waits is younger than its budget, and every file reads."""
            found = backlog(list(self._folders.values()))
            age_s = found.oldest_pending_age_s
            return dg.AssetCheckResult(
                passed=age_s <= self.backlog_within_s and not found.unreachable,
                severity=dg.AssetCheckSeverity.WARN,
                description=found.sentence,
                metadata={"oldest_pending_seconds": age_s, "backlog": found.pending},
            )

        return backlog_is_fresh

    def _schedule(self) -> dg.ScheduleDefinition:
        @dg.schedule(
            name="outbox_drain",
            target=dg.AssetSelection.assets(self.name),
            cron_schedule="*/5 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Whatever waits in an outbox, every 5 minutes.",
        )
        def outbox_drain() -> list[dg.RunRequest]:
            return self._requests(list(self.nodes))

        return outbox_drain

    def _sensor(self) -> dg.SensorDefinition:
        @dg.sensor(
            name="outbox_backlog",
            target=dg.AssetSelection.assets(self.name),
            minimum_interval_seconds=30,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description="Asks for a drain when records wait that no run was asked for yet, "
            "and once at the start.",
        )
        def outbox_backlog(
            context: dg.SensorEvaluationContext,
        ) -> Iterator[dg.SensorResult | dg.SkipReason]:
            found = {node: backlog([folder]) for node, folder in self._folders.items()}
            waiting = [node for node, one in found.items() if one.pending]
            # Another delivery or another number of records is another reason to ask. A drain
            # that fails is asked for again by the schedule, not here.
            reason = "; ".join(
                f"{node}: {found[node].pending} since {found[node].last_delivery}"
                for node in waiting
            )
            if not waiting:
                yield dg.SkipReason("Every record is delivered.")
            elif reason == context.cursor:
                yield dg.SkipReason("A drain is already asked for; the schedule tries again.")
            else:
                yield dg.SensorResult(self._requests(waiting, reason), cursor=reason)

        return outbox_backlog
