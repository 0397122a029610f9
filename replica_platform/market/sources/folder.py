"""A folder of CSV or Parquet files of daily bars, or one such file, read by DuckDB.

The layout: every `.csv`, `.csv.gz` and `.parquet` file below the folder has the columns symbol,
day, open, high, low, close, volume in any order; a file without the column symbol is named after
it (`AAPL.csv`). Names of symbols come from `symbols.csv` in the folder (symbol, name, exchange),
if there is one; that file also says which symbols are listed.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import duckdb
import pandas as pd

from replica_platform.market.errors import BadBars
from replica_platform.market.sessions import last_closed_session
from replica_platform.market.sources.protocol import COLUMNS, Fetched, empty_bars

SUFFIXES = (".csv", ".csv.gz", ".parquet")
LISTING = "symbols.csv"
EARLIEST = date(1970, 1, 1)


class FolderSource:
    """Bars in files.

    Args:
        path: The folder, or one file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise BadBars(f"There are no bars at {path}; check REPLICA_BARS.")

    @property
    def name(self) -> str:
        """The name of the folder or file."""
        return self.path.name

    @property
    def expected_day(self) -> date:
        """The exchange's last closed session."""
        return last_closed_session()

    @property
    def first_day(self) -> date:
        """A day before any bar."""
        return EARLIEST

    def symbols(self) -> pd.DataFrame:
        """Return the symbols of `symbols.csv`, else every symbol that has a bar."""
        listing = self.path / LISTING
        if self.path.is_dir() and listing.is_file():
            frame = pd.read_csv(listing, dtype="str", keep_default_na=False)
            if "symbol" not in frame:
                raise BadBars(f"{listing} lacks the column symbol.")
        else:
            frame = self._query("select distinct symbol from bars order by symbol")
        for column in ("name", "exchange"):
            if column not in frame:
                frame[column] = frame["symbol"] if column == "name" else ""
        return frame[["symbol", "name", "exchange"]]

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        """Return the bars of some symbols from `start` to `end`."""
        frame = self._query(
            f"select {', '.join(COLUMNS)} from bars where day between $start and $end"
            " and symbol in (select unnest($symbols::varchar[])) order by day, symbol",
            {"start": start, "end": end, "symbols": list(symbols)},
        )
        return Fetched(frame if len(frame) else empty_bars())

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        return sorted(
            path
            for path in self.path.rglob("*")
            if path.name.lower().endswith(SUFFIXES) and path.name != LISTING
        )

    def _query(self, query: str, parameters: dict[str, object] | None = None) -> pd.DataFrame:
        """Return the rows of a query over the view `bars` of all files."""
        files = self._files()
        if not files:
            raise BadBars(
                f"{self.path} holds no {', '.join(SUFFIXES)} file; put bars there, or check "
                "REPLICA_BARS."
            )
        with duckdb.connect() as connection:
            try:
                parts = [self._select(connection, path) for path in files]
                connection.execute("create view bars as " + " union all ".join(parts))
                return connection.execute(query, parameters or {}).df()
            except duckdb.Error as error:
                message = " ".join(str(error).split())
                raise BadBars(
                    f"The bars in {self.path} cannot be read: {message}. Each file needs the "
                    f"columns {', '.join(COLUMNS)}."
                ) from error

    def _select(self, connection: duckdb.DuckDBPyConnection, path: Path) -> str:
        quoted = str(path).replace("'", "''")
        parquet = path.name.lower().endswith(".parquet")
        table = f"read_parquet('{quoted}')" if parquet else f"read_csv('{quoted}')"
        columns = {row[0] for row in connection.execute(f"describe from {table}").fetchall()}
        missing = set(COLUMNS[1:]) - columns
        if missing:
            raise BadBars(
                f"{path} lacks the columns {', '.join(sorted(missing))}; it needs "
                f"{', '.join(COLUMNS)}."
            )
        named = path.name.split(".")[0].replace("'", "''")
        symbol = "symbol::varchar" if "symbol" in columns else f"'{named}'"
        return (
            f"select {symbol} as symbol, day::date as day, open::double as open,"
            " high::double as high, low::double as low, close::double as close,"
            f" volume::bigint as volume from {table}"
        )
