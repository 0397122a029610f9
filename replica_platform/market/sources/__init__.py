"""Where symbols and daily bars come from: the sample, a folder, the NASDAQ's directory, yfinance.

What is shared by all sources is in `protocol`; `fetch` asks a source again for the symbols that it
failed for; `open_source` chooses a source by the settings. The master's tables belong in `tables`.
"""

from replica_platform.market.sources.choose import open_source
from replica_platform.market.sources.fetch import fetch_bars
from replica_platform.market.sources.protocol import COLUMNS, Fetched, Source

__all__ = ["COLUMNS", "Fetched", "Source", "fetch_bars", "open_source"]
