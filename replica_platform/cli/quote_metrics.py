"""Counters of `replica quotes`, which each round adds to."""

import time
from typing import TYPE_CHECKING

from replica_platform.app.watch_metrics import WatchCollector

if TYPE_CHECKING:
    from replica_platform.market.quotes import Cycle, Delivery


class QuoteMetrics(WatchCollector):
    """The rounds of a producer of quotes."""

    def add_cycle(self, cycle: "Cycle", delivery: "Delivery") -> None:
        """Add one round, and take over what the delivery has counted.

        Args:
            cycle: The round.
            delivery: The connection that it was sent through.
        """
        with self.whole():
            for source, count in cycle.sources.items():
                self.add("quotes_given_total", (source,), count)
            self.set("quotes_rounds_total", (), cycle.number)
            self.set("quotes_sent_messages_total", (), delivery.sent)
            self.set("quotes_acknowledged_messages_total", (), delivery.acknowledged)
            self.set("quotes_failed_messages_total", (), delivery.failed)
            self.set("quotes_unknown_messages_total", (), delivery.unknown)
            self.set("quotes_skipped_messages_total", (), delivery.skipped)
            self.set("quotes_in_flight_messages", (), delivery.in_flight)
            self.set("quotes_watched_symbols", (), cycle.watched)
            self.set("quotes_quoted_symbols", (), cycle.quoted)
            self.set("quotes_last_round_timestamp_seconds", (), time.time())
