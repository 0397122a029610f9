"""What is remembered: the series, how two values in one hour become one, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

# How two values of one hour or day become one.
COMBINE = {
    "sum": "history.value + excluded.value",
    "largest": "greatest(history.value, excluded.value)",
    "smallest": "least(history.value, excluded.value)",
    "last": "excluded.value",
}

# By name; an unknown one would never be read.
SERIES: Mapping[str, str] = {
    "lag_s": "largest",  # of a table: since its last sync
    "rows_moved": "sum",  # of a table: inserted, updated and deleted
    "proven_age_s": "last",  # of a table: since its whole content was proven equal
    "differing": "sum",  # of a table: rows that differed in a proof
    "integrity": "smallest",  # of a table: its integrity score, 0 to 1
    "data_age_s": "largest",  # of a replica: the age of what readers see
    "readers": "largest",  # of a replica: processes that hold a generation
    "pending": "largest",  # of an outbox: records that wait
    "dead": "largest",  # of an outbox: records that the target refuses
    "oldest_s": "largest",  # of an outbox: the age of the oldest waiting record
    "backup_age_s": "last",  # of a file: since its newest verified backup was made
}


class Span(Enum):
    """The length of what one value stands for, and how many of them are kept."""

    HOUR = ("hour", 8 * 24)
    DAY = ("day", 92)

    @property
    def unit(self) -> str:
        """The unit, as Postgres names it."""
        return self.value[0]

    @property
    def kept(self) -> int:
        """How many hours or days are kept."""
        return self.value[1]


@dataclass(frozen=True)
class Sample:
    """One value that was seen.

    Attributes:
        series: A name in `SERIES`.
        name: Of what: a target table, a replica, an outbox, a file.
        value: The value; None where there was none, which is not stored.
    """

    series: str
    name: str
    value: float | None
