"""The watchlist's prices in the target, read from the replica as any reader does."""

import dagster as dg
import pandas as pd

from replica_platform.market.tables import read_watchlist
from replica_platform.policies import AFTER_PARENTS, EACH_SESSION, TRANSIENT, after
from replica_platform.replica import ReplicaReader


@dg.asset(
    group_name="warehouse",
    kinds={"postgres", "table"},
    owners=["team:market"],
    io_manager_key="xmin_merge",
    metadata={"key": ["symbol"]},
    retry_policy=TRANSIENT,
    freshness_policy=EACH_SESSION,
    automation_condition=AFTER_PARENTS,
)
def watchlist_prices(market_replica: ReplicaReader) -> pd.DataFrame:
    """Newest prices of the watchlist in the target, merged by symbol."""
    with market_replica as reader:
        return read_watchlist(reader)


@dg.asset_check(
    asset=watchlist_prices,
    additional_ins={"market_replica": dg.AssetIn("market_replica")},
    blocking=True,
    automation_condition=after(watchlist_prices.key),
)
def prices_are_the_replicas(
    watchlist_prices: pd.DataFrame, market_replica: ReplicaReader
) -> dg.AssetCheckResult:
    """Every watched symbol has the replica's price in the target."""
    with market_replica as reader:
        expected = read_watchlist(reader).set_index("symbol")["last_price"].to_dict()
    found = watchlist_prices.set_index("symbol")["last_price"].to_dict()
    other = sorted(symbol for symbol in expected if found.get(symbol) != expected[symbol])
    return dg.AssetCheckResult(
        passed=not other,
        description=(
            f"The target differs from the replica for {', '.join(other)}; "
            "materialise watchlist_prices again."
            if other
            else f"All {len(expected)} prices equal those of the replica."
        ),
        metadata={"different": len(other)},
    )
