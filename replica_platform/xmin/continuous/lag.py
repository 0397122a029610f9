"""Lag: the time from a commit on the source until the change is visible in the target.

The source does not say when each change was committed, and nothing is written there to measure it.
What is known: a change that a sync brings was committed after the sync before began, and before
this one's snapshot. Changes are taken as evenly spread over that time; a sync counts from its
beginning, a little before its snapshot, so that the lag is rather over- than underestimated.
"""

from collections import deque
from dataclasses import dataclass

MOST_SYNCS = 10_000
STEPS = 50


@dataclass(frozen=True)
class _Delivery:
    """The changes of one sync: how old they were, and how many."""

    youngest_s: float
    oldest_s: float
    rows: int

    def share_below(self, lag_s: float) -> float:
        """Return the fraction of the changes that were younger."""
        if lag_s >= self.oldest_s:
            return 1.0
        if lag_s <= self.youngest_s:
            return 0.0
        return (lag_s - self.youngest_s) / (self.oldest_s - self.youngest_s)


class Lag:
    """The lag of the changes that the last syncs have brought."""

    def __init__(self) -> None:
        self._deliveries: deque[_Delivery] = deque(maxlen=MOST_SYNCS)
        self._last_began: float | None = None

    def add(self, began: float, visible: float, rows: int) -> None:
        """Add a sync.

        Args:
            began: When it began, in seconds of a steady clock.
            visible: When what it brought was visible in the target, on the same clock.
            rows: How many rows it brought. The first sync tells nothing: it copies all rows.
        """
        if self._last_began is not None and rows:
            self._deliveries.append(_Delivery(visible - began, visible - self._last_began, rows))
        self._last_began = began

    def percentile_s(self, fraction: float) -> float | None:
        """Return the lag that a fraction of the changes stayed below; None before any change."""
        rows = sum(one.rows for one in self._deliveries)
        if not rows:
            return None
        low, high = 0.0, max(one.oldest_s for one in self._deliveries)
        for _ in range(STEPS):
            middle = (low + high) / 2
            below = sum(one.rows * one.share_below(middle) for one in self._deliveries)
            low, high = (middle, high) if below < fraction * rows else (low, middle)
        return high
