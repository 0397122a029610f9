"""What the target keeps of the replica: an asset that reads as any reader does."""

import dagster as dg
import pandas as pd

from replica_platform.policies import EACH_SESSION, TRANSIENT
from replica_platform.replica import ReplicaReader


@dg.asset(
    group_name="warehouse",
    kinds={"postgres", "table"},
    owners=["team:market"],
    io_manager_key="xmin_merge",
    metadata={"key": ["symbol"]},
    retry_policy=TRANSIENT,
    freshness_policy=EACH_SESSION,
    automation_condition=dg.AutomationCondition.eager()
    & dg.AutomationCondition.all_deps_blocking_checks_passed(),
)
def watchlist_prices(market_replica: ReplicaReader) -> pd.DataFrame:
    """The watchlist's newest prices in the target, merged by symbol."""
    with market_replica as reader:
        return reader.df("select * from watchlist order by symbol")
