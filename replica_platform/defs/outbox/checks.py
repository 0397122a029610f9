"""Whether everything that was acknowledged has arrived, and arrives in time."""

import dagster as dg

from replica_platform.defs.outbox.assets import conversations
from replica_platform.outbox import backlog, reconcile
from replica_platform.policies import TARGET_POOL, plain_failures
from replica_platform.resources.outboxes import Outboxes
from replica_platform.resources.postgres import PostgresDatabase

BACKLOG_BUDGET_S = 900


@dg.asset_check(asset=conversations, blocking=True, pool=TARGET_POOL)
def nothing_is_missing(outboxes: Outboxes, target: PostgresDatabase) -> dg.AssetCheckResult:
    """The target holds, by ledger and digest, whatever an outbox marks as delivered."""
    with plain_failures():
        found = reconcile(outboxes.paths(), target.dsn)
    return dg.AssetCheckResult(
        passed=found.ok,
        description=found.sentence,
        metadata={
            "rows_checked": found.rows_checked,
            "rows_missing": found.rows_missing,
            "batches_missing": found.batches_missing,
        },
    )


@dg.asset_check(asset=conversations)
def no_row_is_dead(outboxes: Outboxes) -> dg.AssetCheckResult:
    """No record waits for somebody to mend it."""
    found = backlog(outboxes.paths())
    return dg.AssetCheckResult(
        passed=found.dead == 0,
        description=(
            "No record is dead."
            if found.dead == 0
            else f"{found.dead:,} records cannot be delivered as they are; "
            "`replica dead --outbox FILE` lists them, `--replay` tries them again."
        ),
        metadata={"dead_rows": found.dead},
    )


@dg.asset_check(asset=conversations)
def backlog_is_fresh(outboxes: Outboxes) -> dg.AssetCheckResult:
    """The oldest record that waits is younger than its budget."""
    found = backlog(outboxes.paths())
    age_s = found.oldest_pending_age_s
    return dg.AssetCheckResult(
        passed=age_s <= BACKLOG_BUDGET_S,
        severity=dg.AssetCheckSeverity.WARN,
        description=found.sentence,
        metadata={"oldest_pending_seconds": age_s, "backlog": found.pending},
    )
