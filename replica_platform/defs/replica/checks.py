"""Checks of the published replica: intact, in sync with the master, and fresh."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from replica_platform.components.scrubbed import scrub_result
from replica_platform.core.reports import format_age
from replica_platform.defs.replica.assets import market_replica
from replica_platform.market.sessions import last_close
from replica_platform.policies import MASTER_POOL, after
from replica_platform.replica import status, verify
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.store import MARKET_REPLICA, ReplicaStore

# From the close of a session to the publication of its bars.
PIPELINE_TAKES = timedelta(hours=2)
AFTER_PUBLICATION = after(market_replica.key)


@dg.asset_check(asset=market_replica, blocking=True, automation_condition=AFTER_PUBLICATION)
def published_bytes_are_intact(store: ReplicaStore) -> dg.AssetCheckResult:
    """Every byte of the current generation matches its manifest, and every table can be read."""
    verification = verify(store.path)
    return dg.AssetCheckResult(passed=verification.ok, description=verification.sentence)


@dg.asset_check(asset=market_replica)
def kept_bytes_are_intact(store: ReplicaStore) -> dg.AssetCheckResult:
    """Every byte of the kept generations is read within a week, and damage is repaired.

    Without blocks to repair it from, the current generation is published again by `replica_repair`.
    """
    return scrub_result(store, MARKET_REPLICA)


@dg.asset_check(asset=market_replica, pool=MASTER_POOL, automation_condition=AFTER_PUBLICATION)
def replica_is_in_sync(master: MasterDuckDB, store: ReplicaStore) -> dg.AssetCheckResult:
    """Readers see the master's present content, by lineage."""
    found = status(store.path, master.path)
    return dg.AssetCheckResult(passed=found.ok, description=found.sentence)


@dg.asset_check(asset=market_replica, automation_condition=AFTER_PUBLICATION)
def publication_is_fresh(store: ReplicaStore) -> dg.AssetCheckResult:
    """At least one publication or confirmation since the last session closed."""
    age_s = status(store.path).publication_age_s
    now = datetime.now(UTC)
    closed = last_close(now - PIPELINE_TAKES)
    fresh = age_s is not None and now - timedelta(seconds=age_s) >= closed
    return dg.AssetCheckResult(
        passed=fresh,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"Published or confirmed {format_age(age_s)} ago, after the close of {closed}."
            if fresh
            else f"Nothing was published since the close of {closed}; "
            "see why the pipeline did not run, then materialise market_replica."
        ),
        metadata={"publication_age_seconds": age_s},
    )
