"""What the market needs of a reader of a published replica; `replica.ReplicaReader` offers it."""

from typing import Any, Protocol

import pandas as pd


class AnswerStatus(Protocol):
    """How the last answer was found."""

    @property
    def rung(self) -> str | None:
        """`current` for the current generation, else the name of the fallback."""

    @property
    def generation(self) -> int | None:
        """The generation that was read, None where none was."""


class MarketReader(Protocol):
    """A reader of the market's tables."""

    def query(self, sql: str, *, default: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query; `default` where no generation can be read."""

    def df(self, sql: str) -> pd.DataFrame:
        """Return the rows of a query as a DataFrame."""

    def status(self) -> AnswerStatus:
        """Return how the last answer was found."""
