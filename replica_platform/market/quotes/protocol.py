"""What a source of quotes offers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class Quote:
    """A price of a symbol.

    Attributes:
        symbol: The symbol.
        price: In US dollars, finite and above 0.
        quoted_at: When it was quoted, aware.
        source: The name of the source.
    """

    symbol: str
    price: float
    quoted_at: datetime
    source: str


class QuoteSource(Protocol):
    """A source of quotes."""

    @property
    def name(self) -> str:
        """What the source is called in messages and reports."""

    def quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        """Return the newest quotes of those symbols that it has.

        Raises:
            SourceFailed: The source does not answer.
        """
