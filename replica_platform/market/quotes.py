"""The live quote producer: the watchlist's prices from the replica, sent to Kafka each cycle.

A missing or damaged replica does not stop it: the reader falls back to an earlier answer, and each
message names that fallback. Errors of the broker are reported, and the next cycle sends the newest
prices; an old quote is never sent again.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replica_platform.core.errors import TerminalError
from replica_platform.market.reader import MarketReader

WATCHLIST = "select symbol, last_price, change, as_of from watchlist order by symbol"
FLUSH_TIMEOUT_S = 10.0


class QuotesNotInstalled(TerminalError):
    """confluent-kafka is missing: pip install 'replica-platform[quotes]'."""


@dataclass(frozen=True)
class Cycle:
    """One round of quotes.

    Attributes:
        sent: How many quotes were sent.
        acknowledged: How many of them the broker acknowledged.
        errors: The broker's errors.
        rung: `current` for the current generation, else the reader's fallback.
        generation: The generation that the prices are from, None where none was read.
    """

    sent: int
    acknowledged: int
    errors: tuple[str, ...]
    rung: str | None
    generation: int | None


def produce_quotes(
    reader: MarketReader,
    brokers: str,
    topic: str,
    *,
    every_s: float = 1.0,
    cycles: int | None = None,
    stop: threading.Event | None = None,
    report: Callable[[Cycle], None] = lambda _: None,
) -> int:
    """Send a quote for each watched symbol every `every_s` seconds.

    A message has the symbol as its key and JSON as its value: symbol, last_price in US dollars,
    change as a fraction, as_of, rung, generation.

    Args:
        reader: A reader of the replica; the caller closes it.
        brokers: Kafka's bootstrap servers, `host:port,…`.
        topic: The topic to send to.
        every_s: The pause between two rounds, in seconds.
        cycles: How many rounds to send; None: until `stop` is set.
        stop: An event that ends the loop between two rounds.
        report: A callback that receives each round.

    Returns:
        The number of quotes sent.

    Raises:
        QuotesNotInstalled: confluent-kafka is missing.
    """
    stop = stop or threading.Event()
    producer = _producer(brokers)
    sent = done = 0
    while not stop.is_set() and (cycles is None or done < cycles):
        cycle = _send(producer, topic, reader)
        report(cycle)
        sent += cycle.sent
        done += 1
        if cycles is None or done < cycles:
            stop.wait(every_s)
    return sent


def _producer(brokers: str) -> Any:
    try:
        from confluent_kafka import Producer
    except ImportError as error:
        raise QuotesNotInstalled(
            "Quotes need confluent-kafka: pip install 'replica-platform[quotes]'."
        ) from error
    return Producer(
        {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "message.timeout.ms": int(FLUSH_TIMEOUT_S * 1000),
        },
        logger=None,
    )


def _send(producer: Any, topic: str, reader: MarketReader) -> Cycle:
    rows = reader.query(WATCHLIST, default=[])
    status = reader.status()
    acknowledged = 0
    errors: list[str] = []

    def delivered(error: Any, _: Any) -> None:
        nonlocal acknowledged
        if error is None:
            acknowledged += 1
        else:
            errors.append(str(error))

    for symbol, last_price, change, as_of in rows:
        quote = {
            "symbol": symbol,
            "last_price": last_price,
            "change": change,
            "as_of": as_of.isoformat(),
            "rung": status.rung,
            "generation": status.generation,
        }
        producer.produce(topic, json.dumps(quote), key=symbol, on_delivery=delivered)
    producer.flush(FLUSH_TIMEOUT_S)
    return Cycle(len(rows), acknowledged, tuple(errors), status.rung, status.generation)
