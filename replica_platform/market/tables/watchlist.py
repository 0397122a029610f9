"""The table `watchlist`: the symbols that the quote producer follows, with their newest close."""

from datetime import timedelta

import pandas as pd

from replica_platform.market.reader import MarketReader
from replica_platform.market.tables.master import Connection, MarketMaster, Written, newest_day
from replica_platform.market.tables.small import replace_table
from replica_platform.market.watch import WatchRules

# Calendar days that surely hold as many sessions, holidays included.
DAYS_PER_SESSION = 2
SLACK_DAYS = 14


def write_watchlist(master: MarketMaster, rules: WatchRules) -> Written:
    """Write the listed symbols that the rules choose, with the newest close and its change.

    Args:
        master: The master, with symbols and bars.
        rules: Which symbols are watched.

    Returns:
        The table after the write.
    """

    def query(connection: Connection) -> str:
        newest = newest_day(connection)
        days = timedelta(days=rules.sessions * DAYS_PER_SESSION + SLACK_DAYS)
        top = "null" if rules.top is None else rules.top
        since = "0001-01-01" if newest is None else (newest - days).isoformat()
        return f"""
            with bars as (
                select symbol, day, close, volume,
                    row_number() over (partition by symbol order by day desc) as age
                from ohlcv where day >= date '{since}'
            ), recent as (
                select symbol, max(day) as day,
                    max(close) filter (age = 1) as close, max(close) filter (age = 2) as previous,
                    avg(volume) as average_volume, avg(close * volume) as average_turnover
                from bars where age <= {rules.sessions} group by symbol
            ), ranked as (
                select symbol, name, day, close, previous, average_turnover,
                    symbol in (select symbol from included) as chosen
                from recent join symbols using (symbol)
                where delisted_on is null and symbol not in (select symbol from excluded)
                and (symbol in (select symbol from included)
                    or (not {rules.only_included} and close >= {rules.min_price}
                        and average_volume >= {rules.min_average_volume}
                        and average_turnover >= {rules.min_average_turnover}))
            )
            select symbol, name, day as as_of, close as last_price,
                close / previous - 1 as change
            from ranked
            qualify chosen or {top} is null or row_number()
                over (partition by chosen order by average_turnover desc, symbol) <= {top}
            order by symbol
        """

    frames = {
        "included": pd.DataFrame({"symbol": pd.Series(rules.include, dtype="str")}),
        "excluded": pd.DataFrame({"symbol": pd.Series(rules.exclude, dtype="str")}),
    }
    return replace_table(master, "watchlist", query, frames)


def read_watchlist(reader: MarketReader) -> pd.DataFrame:
    """Return symbol, name, as_of, last_price and change of the watchlist, by symbol."""
    return reader.df("select * from watchlist order by symbol")
