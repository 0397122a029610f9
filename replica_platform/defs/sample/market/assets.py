"""The master's tables: symbols → ohlcv → indicators, watchlist."""

from collections.abc import Callable

import dagster as dg
import duckdb

from replica_platform.market import tables
from replica_platform.market.bars import Bars, load_bars
from replica_platform.metadata import change, table_schema
from replica_platform.policies import EACH_SESSION, MASTER_POOL, TRANSIENT, translate_errors
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.platform import PlatformConfig


def market_asset(
    *, deps: list[dg.AssetsDefinition | dg.AssetKey]
) -> Callable[..., dg.AssetsDefinition]:
    """Return the asset decorator with the settings that all tables of the master share."""
    return dg.asset(
        deps=deps,
        group_name="market",
        kinds={"duckdb", "table"},
        owners=["team:market"],
        code_version="1",
        pool=MASTER_POOL,
        retry_policy=TRANSIENT,
        freshness_policy=EACH_SESSION,
    )


@market_asset(deps=[dg.AssetKey(["source", "daily_bars"])])
def symbols(master: MasterDuckDB, platform: PlatformConfig) -> dg.MaterializeResult:
    """One row per symbol: its name, and the first and last day with a bar."""
    return _write(master, platform, lambda to, bars: tables.write_symbols(to, bars.frame))


@market_asset(deps=[symbols])
def ohlcv(master: MasterDuckDB, platform: PlatformConfig) -> dg.MaterializeResult:
    """One bar per symbol and day: open, high, low, close in US dollars, volume in shares."""
    return _write(master, platform, lambda to, bars: tables.write_ohlcv(to, bars.frame))


@market_asset(deps=[ohlcv])
def indicators(master: MasterDuckDB, platform: PlatformConfig) -> dg.MaterializeResult:
    """SMA, EMA, RSI, MACD and Bollinger bands of every bar, by TA-Lib."""
    return _write(master, platform, lambda to, _: tables.write_indicators(to))


@market_asset(deps=[symbols, ohlcv])
def watchlist(master: MasterDuckDB, platform: PlatformConfig) -> dg.MaterializeResult:
    """Symbols that the quote producer follows, with their newest close and its change."""
    return _write(master, platform, lambda to, _: tables.write_watchlist(to))


def _write(
    master: MasterDuckDB,
    platform: PlatformConfig,
    write: Callable[[duckdb.DuckDBPyConnection, Bars], tables.Written],
) -> dg.MaterializeResult:
    with translate_errors():
        bars = load_bars(platform.bars_file)
        with master.write() as connection:
            written = write(connection, bars)
    return dg.MaterializeResult(
        metadata={
            **change(written.changed, f"{written.rows:,} rows written"),
            "dagster/row_count": written.rows,
            "dagster/table_name": f"stock_data.main.{written.table}",
            "dagster/column_schema": table_schema(written.columns),
            "source": bars.source,
        }
    )
