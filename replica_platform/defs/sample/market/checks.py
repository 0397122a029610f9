"""Checks of the master: rules that hold before publication, and the age of its data."""

from datetime import date

import dagster as dg

from replica_platform.defs.sample.market.assets import indicators, ohlcv, symbols, watchlist
from replica_platform.market.checks import BEGINNING, NEVER, broken_rules, rules_of
from replica_platform.market.sessions import last_delivered_session
from replica_platform.market.sources import open_source
from replica_platform.market.tables import newest_day
from replica_platform.metadata import markdown_rows
from replica_platform.policies import MASTER_POOL, translate_errors
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.platform import PlatformConfig

# What else a person can do about a broken rule, by table.
ACCEPT = {"symbols": ", with accept_delistings in its config if the symbols are really gone"}


def rules_check(asset: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    """Return the blocking check that every rule of this asset's table holds."""
    table = asset.key.path[-1]

    @dg.asset_check(
        asset=asset,
        name="rules_hold",
        blocking=True,
        pool=MASTER_POOL,
        description="; ".join(rules_of(table)) + ".",
    )
    def rules_hold(
        context: dg.AssetCheckExecutionContext, master: MasterDuckDB
    ) -> dg.AssetCheckResult:
        since = written_since(context, asset.key)
        with translate_errors(), master.read() as connection:
            broken = broken_rules(connection, table, since)
        names = ", ".join(f"“{one.rule}”" for one in broken)
        return dg.AssetCheckResult(
            passed=not broken,
            description=(
                f"{table} breaks {names}; correct its source and materialise {table} again"
                f"{ACCEPT.get(table, '')}."
                if broken
                else f"All {len(rules_of(table))} rules hold."
            ),
            metadata={
                "broken_rules": len(broken),
                "checked_since": "the beginning" if since == BEGINNING else str(since),
                **{one.rule: dg.MetadataValue.md(markdown_rows(one.rows)) for one in broken},
            },
        )

    return rules_hold


def written_since(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> date:
    """Return the first day that this run wrote; all days where it did not write the table.

    So a check costs as much as the day's run, and one that is run alone reads everything.
    """
    event = context.instance.get_latest_materialization_event(key)
    if event is None or event.run_id != context.run.run_id or not event.asset_materialization:
        return BEGINNING
    metadata = event.asset_materialization.metadata
    if not metadata["changed"].value:
        return NEVER
    written = str(metadata["first_day_changed"].value)
    return BEGINNING if written == "None" else date.fromisoformat(written)


symbols_rules = rules_check(symbols)
ohlcv_rules = rules_check(ohlcv)
indicators_rules = rules_check(indicators)
watchlist_rules = rules_check(watchlist)


@dg.asset_check(asset=ohlcv, pool=MASTER_POOL)
def newest_bar_is_fresh(master: MasterDuckDB, platform: PlatformConfig) -> dg.AssetCheckResult:
    """Bars reach the last session that closed, by the exchange's calendar."""
    with translate_errors():
        source = open_source(platform.bars, platform.symbols)
        with master.read() as connection:
            newest = newest_day(connection)
    expected = min(source.expected_day, last_delivered_session())
    fresh = newest is not None and newest >= expected
    return dg.AssetCheckResult(
        passed=fresh,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"The newest bar is of {newest}, as expected of {source.name}."
            if fresh
            else f"The newest bar is of {newest}, but {source.name} should reach "
            f"{expected}; see whether its delivery is late, then materialise ohlcv."
        ),
        metadata={
            "newest_day": str(newest),
            "expected_day": str(expected),
            "days_behind": (expected - newest).days if newest else None,
        },
    )


@dg.asset_check(asset=ohlcv, pool=MASTER_POOL)
def every_symbol_was_read(
    context: dg.AssetCheckExecutionContext,
) -> dg.AssetCheckResult:
    """No symbol failed when the bars were read the last time."""
    event = context.instance.get_latest_materialization_event(ohlcv.key)
    materialisation = event.asset_materialization if event else None
    failed = str(materialisation.metadata["failed"].value) if materialisation else ""
    return dg.AssetCheckResult(
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"Not read: {failed}; they are read again with the next run. The run's log has the "
            "reasons."
            if failed
            else "Every symbol was read."
        ),
    )
