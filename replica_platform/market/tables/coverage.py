"""The table `bar_coverage`: which bars each symbol has, and since when indicators are behind.

It answers in the time of 5,000 rows what would otherwise need all bars. It is counted again from
the bars when their number differs, as after a write by hand.
"""

from datetime import date

from replica_platform.market.tables.master import Connection, has_table, row_count, value

TABLE = """
create table if not exists bar_coverage (
    symbol varchar, first_day date, last_day date, bars bigint, indicators_from date
)
"""
OHLCV = """
create table if not exists ohlcv (
    symbol varchar, day date, open double, high double, low double, close double, volume bigint
)
"""


def make_tables(connection: Connection) -> None:
    """Make the table of bars and its coverage if absent, in the write's transaction."""
    connection.execute(OHLCV)
    connection.execute(TABLE)


def is_counted(connection: Connection) -> bool:
    """Return whether the coverage counts as many bars as there are."""
    if not has_table(connection, "bar_coverage"):
        return False
    counted = value(connection, "select coalesce(sum(bars), 0) from bar_coverage")
    return int(counted) == row_count(connection, "ohlcv")


def count_again(connection: Connection) -> None:
    """Count all bars by symbol; indicators of a symbol with another number are behind."""
    connection.execute(
        """
        create or replace temp table counted as
        select symbol, min(day) as first_day, max(day) as last_day, count(*) as bars
        from ohlcv group by symbol
        """
    )
    connection.execute(
        """
        create or replace table bar_coverage as
        select c.symbol, c.first_day, c.last_day, c.bars,
            case when o.bars is distinct from c.bars
                then least(c.first_day, o.indicators_from) else o.indicators_from
            end as indicators_from
        from counted c left join bar_coverage o using (symbol) order by symbol
        """
    )
    connection.execute("drop table counted")


def add_to_coverage(connection: Connection) -> None:
    """Add the bars of the temporary table `changed` to the coverage.

    `changed` has symbol, day, `known` (the key was there) and `moves` (the close is another).
    """
    connection.execute(
        """
        create or replace temp table added as
        select symbol, min(day) as first_day, max(day) as last_day,
            count(*) filter (not known) as bars, min(day) filter (moves) as indicators_from
        from changed group by symbol
        """
    )
    connection.execute(
        """
        update bar_coverage c
        set first_day = least(c.first_day, a.first_day),
            last_day = greatest(c.last_day, a.last_day),
            bars = c.bars + a.bars, indicators_from = least(c.indicators_from, a.indicators_from)
        from added a where c.symbol = a.symbol
        """
    )
    connection.execute(
        "insert into bar_coverage from added anti join bar_coverage using (symbol) order by symbol"
    )
    connection.execute("drop table added")


def indicators_behind(connection: Connection) -> date | None:
    """Return the first day of any symbol whose indicators are behind; None where none are."""
    if not has_table(connection, "bar_coverage"):
        return None
    behind: date | None = value(connection, "select min(indicators_from) from bar_coverage")
    return behind
