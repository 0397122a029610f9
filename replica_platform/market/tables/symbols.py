"""The table `symbols`: what is listed, and what was listed and delisted since."""

from datetime import date

from replica_platform.market.sources import Source
from replica_platform.market.tables.batches import log_batch
from replica_platform.market.tables.master import (
    Connection,
    MarketMaster,
    Written,
    columns_of,
    value,
)
from replica_platform.market.tables.small import replace_table

# What the table held before it had this form, by its columns.
FORMER = {
    (): "select null as symbol, null as name, null as exchange, null as listed_on,"
    " null as delisted_on limit 0",
    ("symbol", "name", "first_day", "last_day"): (
        "select symbol, name, '' as exchange, first_day as listed_on, null as delisted_on"
        " from symbols"
    ),
}


def write_symbols(
    master: MarketMaster,
    source: Source,
    today: date | None = None,
    *,
    accept_delistings: bool = False,
) -> Written:
    """Bring the table up to the source's present listing.

    A symbol that the listing lacks stays, delisted as of `today`; its bars stay, too. One that
    comes back is listed again.

    Args:
        master: The master; it and the table are made if absent.
        source: The source of the listing.
        today: The day of what was listed or delisted since the last time; the source's last
            expected day when absent.
        accept_delistings: Let the rule that few symbols are delisted at once hold for the present
            listing.

    Returns:
        The table after the write.

    Raises:
        SourceFailed: The source does not answer; the table stays as it is.
        BadBars: The listing cannot be used; the table stays as it is.
    """
    listing = source.symbols()
    day = today or source.expected_day

    def query(connection: Connection) -> str:
        columns = tuple(name for name, _ in columns_of(connection, "symbols"))
        known = FORMER.get(columns, "from symbols")
        return f"""
            select coalesce(l.symbol, s.symbol)::varchar as symbol,
                coalesce(l.name, s.name)::varchar as name,
                coalesce(l.exchange, s.exchange)::varchar as exchange,
                coalesce(s.listed_on, date '{day}')::date as listed_on,
                (case when l.symbol is null then coalesce(s.delisted_on, date '{day}') end)::date
                    as delisted_on
            from listing l full join ({known}) s using (symbol) order by all
        """

    written = replace_table(
        master, "symbols", query, {"listing": listing}, total="delisted_on is null"
    )
    if accept_delistings:
        with master.write() as connection:
            listed = value(connection, "select count(*) from symbols where delisted_on is null")
            log_batch(connection, "symbols", first_day=None, inserted=0, updated=0, total=listed)
    return written
