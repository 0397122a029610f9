"""History: what the platform remembers of its own state, in the target, for `replica deck`.

Each series has a value for each hour of the last days and one for each day of the last months, so
that the table's size is bounded by the number of names.
"""

from replica_platform.history.errors import HistoryNotWritten
from replica_platform.history.series import SERIES, Sample, Span
from replica_platform.history.store import Past, read, record

__all__ = [
    "SERIES",
    "HistoryNotWritten",
    "Past",
    "Sample",
    "Span",
    "read",
    "record",
]
