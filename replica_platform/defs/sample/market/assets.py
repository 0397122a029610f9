"""The master's tables: symbols → ohlcv → indicators, watchlist."""

from collections.abc import Callable
from datetime import date
from typing import Any

import dagster as dg

from replica_platform.defs.sample.market.partitions import TRADING_DAYS
from replica_platform.market import chart
from replica_platform.market.sources import open_source
from replica_platform.market.tables import (
    Written,
    has_bars_since,
    load_bars,
    update_indicators,
    write_symbols,
    write_watchlist,
)
from replica_platform.market.watch import load_rules
from replica_platform.metadata import change, table_schema
from replica_platform.policies import (
    BY_DAY,
    EACH_SESSION,
    MASTER_POOL,
    TRANSIENT,
    translate_errors,
)
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.platform import PlatformConfig

# A page lists no more symbols than these by name.
NAMED = 50


class Listing(dg.Config):
    """Whether the present listing is accepted.

    Attributes:
        accept_delistings: Accept a listing that lacks many symbols at once.
    """

    accept_delistings: bool = False


class Rebuild(dg.Config):
    """Whether all indicators are computed again.

    Attributes:
        rebuild: Compute the indicators of every bar, as after a new version of TA-Lib.
    """

    rebuild: bool = False


class Picture(dg.Config):
    """Whose picture is drawn.

    Attributes:
        symbol: The symbol; the first of the watchlist when absent.
    """

    symbol: str | None = None


def market_asset(
    *,
    deps: list[dg.AssetsDefinition | dg.AssetKey],
    partitions_def: dg.PartitionsDefinition | None = None,
) -> Callable[..., dg.AssetsDefinition]:
    """Return the asset decorator with the settings that all tables of the master share."""
    return dg.asset(
        deps=deps,
        partitions_def=partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run() if partitions_def else None,
        group_name="market",
        tags=BY_DAY if partitions_def else None,
        kinds={"duckdb", "table"},
        owners=["team:market"],
        code_version="2",
        pool=MASTER_POOL,
        retry_policy=TRANSIENT,
        freshness_policy=EACH_SESSION,
    )


@market_asset(deps=[dg.AssetKey(["source", "daily_bars"])])
def symbols(
    config: Listing, master: MasterDuckDB, platform: PlatformConfig
) -> dg.MaterializeResult:
    """One row per symbol: its name and exchange, since when it is listed, when it was delisted."""
    with translate_errors():
        source = open_source(platform.bars, platform.symbols)
        written = write_symbols(master, source, accept_delistings=config.accept_delistings)
    return _result(written, source.name)


@market_asset(deps=[symbols], partitions_def=TRADING_DAYS)
def ohlcv(
    context: dg.AssetExecutionContext, master: MasterDuckDB, platform: PlatformConfig
) -> dg.MaterializeResult:
    """One bar per symbol and day: open, high, low, close in US dollars, volume in shares.

    A day after the last one brings all symbols up to it; days that are there are read again.
    """
    with translate_errors():
        source = open_source(platform.bars, platform.symbols)
        start, end = _days(context)
        if start and not has_bars_since(master, start):
            start = None
        loaded = load_bars(master, source, start=start, end=end)
    for symbol, reason in loaded.failed.items():
        context.log.warning(f"{symbol} was left out and is read the next time: {reason}")
    return _result(
        loaded,
        source.name,
        restated=_named(loaded.restated),
        failed=_named(loaded.failed),
    )


@market_asset(deps=[ohlcv])
def indicators(config: Rebuild, master: MasterDuckDB) -> dg.MaterializeResult:
    """SMA, EMA, RSI, MACD and Bollinger bands of every bar, by TA-Lib."""
    with translate_errors():
        written = update_indicators(master, rebuild=config.rebuild)
    return _result(written, "TA-Lib")


@market_asset(deps=[symbols, ohlcv])
def watchlist(
    config: Picture, master: MasterDuckDB, platform: PlatformConfig
) -> dg.MaterializeResult:
    """Symbols that the quote producer follows, with their newest close and its change."""
    with translate_errors():
        written = write_watchlist(master, load_rules(platform.watch_rules_file))
        # Only with news or when asked for: each picture stays in Dagster's database.
        wanted = written.changed or config.symbol is not None
        picture = chart.chart_markdown(master, config.symbol) if wanted else None
    return _result(
        written,
        str(platform.watch_rules_file or "default rules"),
        **({"chart": dg.MetadataValue.md(picture)} if picture else {}),
    )


def _days(context: dg.AssetExecutionContext) -> tuple[date | None, date | None]:
    """Return the first and last day of the run's partitions; None where it has none."""
    if not context.has_partition_key and not context.has_partition_key_range:
        return None, None
    days = context.partition_key_range
    return date.fromisoformat(days.start), date.fromisoformat(days.end)


def _named(symbols: object) -> str:
    names = list(symbols)  # type: ignore[call-overload]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _result(written: Written, source: str, **metadata: Any) -> dg.MaterializeResult:
    return dg.MaterializeResult(
        metadata={
            **change(
                written.changed, f"{written.inserted:,} rows new, {written.updated:,} corrected"
            ),
            "dagster/row_count": written.rows,
            "dagster/table_name": f"stock_data.main.{written.table}",
            "dagster/column_schema": table_schema(written.columns),
            "source": source,
            "first_day_changed": str(written.first_day),
            "master_held_seconds": round(written.held_s, 3),
            **metadata,
        }
    )
