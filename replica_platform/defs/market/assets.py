"""The master's tables: symbols → ohlcv → indicators, watchlist."""

from collections.abc import Callable

import dagster as dg
import duckdb

from replica_platform.app.settings import Settings
from replica_platform.market import tables
from replica_platform.market.bars import Bars, load_bars
from replica_platform.metadata import described, table_schema
from replica_platform.policies import EACH_SESSION, MASTER_POOL, TRANSIENT, plain_failures
from replica_platform.resources.master import MasterDuckDB


def market_asset(*, deps: list[dg.AssetsDefinition]) -> Callable[..., dg.AssetsDefinition]:
    """What all tables of the master have in common."""
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


@market_asset(deps=[])
def symbols(master: MasterDuckDB) -> dg.MaterializeResult:
    """One row a symbol: its name, and the first and last day it has a bar for."""
    return _write(master, lambda connection, bars: tables.write_symbols(connection, bars.frame))


@market_asset(deps=[symbols])
def ohlcv(master: MasterDuckDB) -> dg.MaterializeResult:
    """One bar a symbol and trading day: open, high, low, close in US dollars, volume in shares."""
    return _write(master, lambda connection, bars: tables.write_ohlcv(connection, bars.frame))


@market_asset(deps=[ohlcv])
def indicators(master: MasterDuckDB) -> dg.MaterializeResult:
    """SMA, EMA, RSI, MACD and Bollinger bands of every bar, by TA-Lib."""
    return _write(master, lambda connection, _: tables.write_indicators(connection))


@market_asset(deps=[symbols, ohlcv])
def watchlist(master: MasterDuckDB) -> dg.MaterializeResult:
    """The symbols that the quote producer follows, with their newest close and its change."""
    return _write(master, lambda connection, _: tables.write_watchlist(connection))


def _write(
    master: MasterDuckDB,
    write: Callable[[duckdb.DuckDBPyConnection, Bars], tables.Written],
) -> dg.MaterializeResult:
    with plain_failures():
        bars = load_bars(Settings().bars)
        with master.write() as connection:
            written = write(connection, bars)
    return dg.MaterializeResult(
        metadata={
            **described(written.changed, f"{written.rows:,} rows written"),
            "dagster/row_count": written.rows,
            "dagster/table_name": f"stock_data.main.{written.table}",
            "dagster/column_schema": table_schema(written.columns),
            "source": bars.source,
        }
    )
