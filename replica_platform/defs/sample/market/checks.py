"""Checks of the master: rules that hold before publication, and the age of its data."""

import dagster as dg

from replica_platform.defs.sample.market.assets import indicators, ohlcv, symbols, watchlist
from replica_platform.market.bars import load_bars
from replica_platform.market.checks import RULES, broken_rules
from replica_platform.market.tables import newest_day
from replica_platform.metadata import markdown_rows
from replica_platform.policies import MASTER_POOL
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.platform import PlatformConfig


def rules_check(asset: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    """Return the blocking check that every rule of this asset's table holds."""
    table = asset.key.path[-1]

    @dg.asset_check(
        asset=asset,
        name="rules_hold",
        blocking=True,
        pool=MASTER_POOL,
        description="; ".join(RULES[table]) + ".",
    )
    def rules_hold(master: MasterDuckDB) -> dg.AssetCheckResult:
        with master.read() as connection:
            broken = broken_rules(connection, table)
        names = ", ".join(f"“{one.rule}”" for one in broken)
        return dg.AssetCheckResult(
            passed=not broken,
            description=(
                f"{table} breaks {names}; correct its source and materialise {table} again."
                if broken
                else f"All {len(RULES[table])} rules hold."
            ),
            metadata={
                "broken_rules": len(broken),
                **{one.rule: dg.MetadataValue.md(markdown_rows(one.rows)) for one in broken},
            },
        )

    return rules_hold


symbols_rules = rules_check(symbols)
ohlcv_rules = rules_check(ohlcv)
indicators_rules = rules_check(indicators)
watchlist_rules = rules_check(watchlist)


@dg.asset_check(asset=ohlcv, pool=MASTER_POOL)
def newest_bar_is_fresh(master: MasterDuckDB, platform: PlatformConfig) -> dg.AssetCheckResult:
    """Bars reach the last day that the source should have."""
    bars = load_bars(platform.bars_file)
    with master.read() as connection:
        newest = newest_day(connection)
    fresh = newest is not None and newest >= bars.expected_day
    return dg.AssetCheckResult(
        passed=fresh,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"The newest bar is of {newest}, as expected of {bars.source}."
            if fresh
            else f"The newest bar is of {newest}, but {bars.source} should reach "
            f"{bars.expected_day}; see whether its delivery is late, then materialise ohlcv."
        ),
        metadata={
            "newest_day": str(newest),
            "expected_day": str(bars.expected_day),
            "days_behind": (bars.expected_day - newest).days if newest else None,
        },
    )
