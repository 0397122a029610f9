"""The NASDAQ Trader symbol directory: `nasdaqlisted.txt` and `otherlisted.txt`.

Text with `|` between columns, one line per symbol, test issues among them, and a last line with the
time of its making. Both files are at https://www.nasdaqtrader.com/dynamic/symdir/.
"""

import io
import urllib.request
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from replica_platform.market.errors import BadBars, SourceFailed
from replica_platform.market.sources.protocol import Fetched, Source

TIMEOUT_S = 30.0
# The two files name the same things differently.
SYMBOL_NAMES = ("Symbol", "ACT Symbol")
EXCHANGES = {"A": "XASE", "N": "XNYS", "P": "ARCX", "Z": "BATS", "V": "IEXG", "Q": "XNAS"}
TRAILER = "File Creation Time"


class NasdaqDirectory:
    """Symbols of the directory's files.

    Args:
        places: Paths or addresses (http, https, ftp) of the files.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self.places = [place.strip() for place in places]

    def symbols(self) -> pd.DataFrame:
        """Return the symbols of all files, without test issues.

        Raises:
            SourceFailed: A file cannot be read.
            BadBars: A file is incomplete or has other columns.
        """
        frames = [parse_directory(_read(place), place) for place in self.places]
        return pd.concat(frames, ignore_index=True).drop_duplicates("symbol", ignore_index=True)


class WithDirectory:
    """A source whose symbols come from the directory and whose bars from another source.

    Args:
        source: Where the bars are from.
        directory: Where the symbols are from.
    """

    def __init__(self, source: Source, directory: NasdaqDirectory) -> None:
        self._source = source
        self._directory = directory

    @property
    def name(self) -> str:
        """The name of the source of the bars."""
        return f"{self._source.name} with the NASDAQ's directory"

    @property
    def expected_day(self) -> date:
        """The last trading day that the bars should include."""
        return self._source.expected_day

    @property
    def first_day(self) -> date:
        """The earliest day worth asking for."""
        return self._source.first_day

    def symbols(self) -> pd.DataFrame:
        """Return the symbols of the directory."""
        return self._directory.symbols()

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        """Return the bars of some symbols from `start` to `end`."""
        return self._source.bars(symbols, start, end)


def parse_directory(text: str, origin: str) -> pd.DataFrame:
    """Return symbol, name and exchange (a market identifier code) of a directory file.

    Args:
        text: The file's text.
        origin: Its path or address, for errors.

    Raises:
        BadBars: The last line is missing, as of a broken download, or a column is.
    """
    lines = text.strip().splitlines()
    if not lines or not lines[-1].startswith(TRAILER):
        raise BadBars(
            f"{origin} does not end with “{TRAILER}”: it was cut short; fetch it again. "
            "No symbol was taken for delisted."
        )
    frame = pd.read_csv(io.StringIO("\n".join(lines[:-1])), sep="|", dtype="str", na_filter=False)
    symbol = next((name for name in SYMBOL_NAMES if name in frame), None)
    if symbol is None or not {"Security Name", "Test Issue"} <= set(frame):
        raise BadBars(
            f"{origin} is no symbol directory: it needs the columns Symbol or ACT Symbol, "
            "Security Name and Test Issue."
        )
    frame = frame[frame["Test Issue"] != "Y"]
    exchange = frame["Exchange"].map(EXCHANGES).fillna("") if "Exchange" in frame else "XNAS"
    return pd.DataFrame(
        {"symbol": frame[symbol], "name": frame["Security Name"], "exchange": exchange}
    )


def _read(place: str) -> str:
    try:
        if place.startswith(("http://", "https://", "ftp://")):
            with urllib.request.urlopen(place, timeout=TIMEOUT_S) as answer:
                return str(answer.read().decode("utf-8"))
        return Path(place).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceFailed(
            f"The symbol directory {place} cannot be read: {error}; check REPLICA_SYMBOLS."
        ) from error
