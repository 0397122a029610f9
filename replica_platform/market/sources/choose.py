"""The source that the settings ask for."""

from pathlib import Path

from replica_platform.market.sources.folder import FolderSource
from replica_platform.market.sources.nasdaq import NasdaqDirectory, WithDirectory
from replica_platform.market.sources.protocol import Source
from replica_platform.market.sources.sample import SampleSource
from replica_platform.market.sources.yahoo import YahooSource

YAHOO = "yfinance"


def open_source(bars: str | None = None, directory: str | None = None) -> Source:
    """Return the source of symbols and bars.

    Args:
        bars: `yfinance`, or the path of a folder or file of bars; the sample when absent.
        directory: Files or addresses of the NASDAQ Trader symbol directory, comma-separated; they
            say which symbols are listed, in place of the source of the bars.

    Raises:
        BadBars: There is nothing at the path.
        NotInstalled: yfinance is missing.
    """
    source: Source
    if bars is None:
        source = SampleSource()
    elif bars == YAHOO:
        source = YahooSource()
    else:
        source = FolderSource(Path(bars))
    if directory is None:
        return source
    return WithDirectory(source, NasdaqDirectory(directory.split(",")))
