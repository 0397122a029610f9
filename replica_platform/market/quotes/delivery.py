"""Delivery to Kafka by confluent-kafka, idempotent, with exact counts.

A message is never given up while the producer lives: librdkafka's own timeout would report a
message as failed that a frozen broker has and still appends. So what is acknowledged is in the
topic once, and what is not is counted as in flight until its report comes. A broker that does not
answer fills no memory: beyond `MOST_IN_FLIGHT` messages a cycle's quotes are skipped, since the
next cycle has newer ones.
"""

import logging
import time
from typing import Any

from replica_platform.market.errors import NotInstalled

MOST_IN_FLIGHT = 10_000
POLL_S = 0.1
# librdkafka's own lines, which it would print for each attempt; `error` has the last one.
LOG = logging.getLogger("replica_platform.quotes")
LOG.addHandler(logging.NullHandler())


class QuotesNotInstalled(NotInstalled):
    """confluent-kafka is missing: pip install 'replica-platform[quotes]'."""


class Delivery:
    """A connection to a topic.

    Args:
        brokers: Kafka's bootstrap servers, `host:port,…`.
        topic: The topic to send to.
        most_in_flight: How many messages may wait for their report.
        settings: Further settings of librdkafka.

    Attributes:
        sent: Messages given to librdkafka.
        acknowledged: Messages that the brokers have, each once.
        failed: Messages that were refused for good, such as one that is too large.
        unknown: Messages that were in flight when librdkafka gave up its connection; they may be in
            the topic or not.
        skipped: Quotes that were not sent because too many messages were in flight.
        error: The last error of a message or a broker; None after a report of success.

    Raises:
        QuotesNotInstalled: confluent-kafka is missing.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        most_in_flight: int = MOST_IN_FLIGHT,
        settings: dict[str, Any] | None = None,
    ) -> None:
        try:
            import confluent_kafka
        except ImportError as error:
            raise QuotesNotInstalled(
                "Quotes need confluent-kafka: pip install 'replica-platform[quotes]'."
            ) from error
        self._kafka = confluent_kafka
        self._topic = topic
        self._most_in_flight = most_in_flight
        self.sent = self.acknowledged = self.failed = self.skipped = self.unknown = 0
        self.error: str | None = None
        self._fatal = False
        self._settings = {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "message.timeout.ms": 0,  # see the module
            "queue.buffering.max.messages": 2 * most_in_flight,
            "error_cb": self._broker_error,
            **(settings or {}),
        }
        self._producer = self._connect()

    def _connect(self) -> Any:
        return self._kafka.Producer(self._settings, logger=LOG)

    @property
    def in_flight(self) -> int:
        """Messages without a report yet."""
        return self.sent - self.acknowledged - self.failed - self.unknown

    def send(self, key: str, value: bytes) -> bool:
        """Give a message to librdkafka; return False if it was skipped."""
        if self._fatal:
            self._start_again()
        if self.in_flight >= self._most_in_flight:
            self.skipped += 1
            return False
        try:
            self._producer.produce(self._topic, value, key=key, on_delivery=self._report)
        except (BufferError, self._kafka.KafkaException) as error:
            self.skipped += 1
            self.error = str(error)
            return False
        self.sent += 1
        return True

    def poll(self, seconds: float = 0.0) -> None:
        """Handle the reports that came, for at most some seconds or until none is missing."""
        deadline = time.monotonic() + seconds
        self._producer.poll(0)
        while self.in_flight and (left := deadline - time.monotonic()) > 0:
            self._producer.poll(min(left, POLL_S))

    def close(self, grace_s: float) -> int:
        """Wait for the missing reports, and return how many did not come.

        Args:
            grace_s: How long to wait, in seconds.
        """
        self.poll(grace_s)
        return self.in_flight

    def _start_again(self) -> None:
        """Replace a producer that librdkafka gave up, as when the brokers forgot its identity."""
        self._producer.purge()
        self._producer.poll(0)
        self.unknown += self.in_flight
        self._fatal = False
        self._producer = self._connect()

    def _report(self, error: Any, _: Any) -> None:
        if error is None:
            self.acknowledged += 1
            self.error = None
        elif error.code() in self._purged:
            self.unknown += 1
        else:
            self.failed += 1
            self.error = str(error)

    @property
    def _purged(self) -> tuple[int, int]:
        codes = self._kafka.KafkaError
        return codes._PURGE_QUEUE, codes._PURGE_INFLIGHT

    def _broker_error(self, error: Any) -> None:
        self.error = str(error)
        self._fatal = self._fatal or error.fatal()
