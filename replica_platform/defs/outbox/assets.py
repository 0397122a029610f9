"""Records that workers wrote to their outboxes, delivered to the target."""

import dagster as dg

from replica_platform.metadata import described
from replica_platform.outbox import drain
from replica_platform.policies import EVERY_FEW_MINUTES, TARGET_POOL, TRANSIENT, plain_failures
from replica_platform.resources.outboxes import Outboxes
from replica_platform.resources.postgres import PostgresDatabase

# A run gives way to the next one before the schedule's 5 minutes are over.
DRAIN_BUDGET_S = 240

worker_outboxes = dg.AssetSpec(
    "worker_outboxes",
    group_name="source",
    kinds={"sqlite"},
    description="The local SQLite files that workers append to, one a slot; others write them.",
)


@dg.asset(
    deps=[worker_outboxes],
    group_name="outbox",
    kinds={"postgres", "table"},
    owners=["team:platform"],
    pool=TARGET_POOL,
    retry_policy=TRANSIENT,
    freshness_policy=EVERY_FEW_MINUTES,
)
def conversations(outboxes: Outboxes, target: PostgresDatabase) -> dg.MaterializeResult:
    """Every record that a worker's `append` acknowledged, once, in `outbox.record`."""
    with plain_failures():
        report = drain(outboxes.paths(), target.dsn, budget_s=DRAIN_BUDGET_S)
    if report.trouble:
        raise dg.Failure(report.sentence)
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
