"""The market's errors; each text says what is wrong and what to do next."""

from replica_platform.core.errors import TerminalError, TransientError


class BadBars(TerminalError):
    """Bars cannot be used: a file, a column or a key is wrong; the text names it."""


class BadWatchlist(TerminalError):
    """The rules of the watchlist cannot be used; the text names the file and the key."""


class SourceFailed(TransientError):
    """A source of bars or symbols did not answer, or not for this symbol."""


class NotInstalled(TerminalError):
    """An optional package is missing; the text names the extra to install."""


class MarketChanging(TransientError):
    """Bars were written during every attempt to compute their indicators."""
