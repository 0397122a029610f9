"""Whether the market's replica was published since the last session of its exchange closed."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from replica_platform.core.reports import format_age
from replica_platform.market.sessions import last_close
from replica_platform.policies import after
from replica_platform.replica import status
from replica_platform.resources.platform import PlatformConfig

MARKET_REPLICA = dg.AssetKey("market_replica")
STORE = "replica"  # as in replica/defs.yaml
# From the close of a session to the publication of its bars.
PIPELINE_TAKES = timedelta(hours=2)


@dg.asset_check(asset=MARKET_REPLICA, automation_condition=after(MARKET_REPLICA))
def published_since_the_last_session(platform: PlatformConfig) -> dg.AssetCheckResult:
    """At least one publication or confirmation since the last session closed."""
    age_s = status(platform.path(STORE)).publication_age_s
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
