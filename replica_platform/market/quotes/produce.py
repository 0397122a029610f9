"""The loop of the producer: watchlist, quotes, messages, reports, until it is stopped."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from replica_platform.market.quotes.delivery import Delivery
from replica_platform.market.quotes.message import encode
from replica_platform.market.quotes.sources import QuoteSources
from replica_platform.market.quotes.watched import Watchlist
from replica_platform.market.reader import MarketReader

GRACE_S = 30.0
REFRESH_CYCLES = 10


@dataclass(frozen=True)
class Cycle:
    """One round of quotes, and the counts so far.

    Attributes:
        number: The number of the round, from 1.
        watched: How many symbols are watched.
        origin: Where these are from: `watchlist`, `previous` or `defaults`.
        quoted: How many of them have a quote.
        sent: How many messages were given to Kafka, in this round.
        acknowledged: How many messages the brokers have, since the start.
        in_flight: How many messages have no report yet.
        sources: How many quotes each source gave.
        errors: What is wrong with the watchlist, the sources or the brokers.
        rung: `current` for the current generation, else the reader's fallback.
        generation: The generation that the watchlist is from; None where none was read.
    """

    number: int
    watched: int
    origin: str
    quoted: int
    sent: int
    acknowledged: int
    in_flight: int
    sources: dict[str, int] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    rung: str | None = None
    generation: int | None = None


@dataclass(frozen=True)
class Totals:
    """What a producer did until it was stopped.

    Attributes:
        cycles: How many rounds there were.
        sent: How many messages were given to Kafka.
        acknowledged: How many of them the brokers have.
        failed: How many were refused for good.
        unknown: How many had no report when it stopped; they may be in the topic or not.
        skipped: How many quotes were not sent because too many messages were in flight.
        without_watchlist: How many rounds had no symbol to quote.
    """

    cycles: int
    sent: int
    acknowledged: int
    failed: int
    unknown: int
    skipped: int
    without_watchlist: int

    @property
    def ok(self) -> bool:
        """Whether there were messages and all of them are in the topic."""
        return 0 < self.sent == self.acknowledged and not self.skipped


def produce_quotes(
    reader: MarketReader,
    sources: QuoteSources,
    delivery: Delivery,
    *,
    every_s: float = 1.0,
    cycles: int | None = None,
    refresh_cycles: int = REFRESH_CYCLES,
    defaults: Sequence[str] = (),
    grace_s: float = GRACE_S,
    stop: threading.Event | None = None,
    report: Callable[[Cycle], None] = lambda _: None,
) -> Totals:
    """Send a quote of each watched symbol every `every_s` seconds.

    A message has the symbol as its key and JSON as its value; see `message.SCHEMA`. A missing
    replica, a failing source or a broker that does not answer stops nothing.

    Args:
        reader: A reader of the replica; the caller closes it.
        sources: The sources of quotes.
        delivery: The topic.
        every_s: The time from one round to the next, in seconds.
        cycles: How many rounds to send; None: until `stop` is set.
        refresh_cycles: The watchlist is read again after so many rounds; until it could be read
            once, in every round.
        defaults: Symbols to quote as long as no watchlist could be read.
        grace_s: How long to wait at the end for missing reports, in seconds.
        stop: An event that ends the loop between two rounds.
        report: A callback that receives each round.

    Returns:
        The counts, after the last report.
    """
    stop = stop or threading.Event()
    watchlist = Watchlist(reader, defaults)
    number = without = 0
    due = time.monotonic()
    while not stop.is_set() and (cycles is None or number < cycles):
        if number % refresh_cycles == 0 or watchlist.origin != "watchlist":
            watchlist.refresh()
        number += 1
        cycle = _cycle(number, watchlist, sources, delivery, reader)
        without += not cycle.watched
        # Wait for the reports until the next round is due, and no longer.
        due = max(due + every_s, time.monotonic())
        if number != cycles:
            _wait(delivery, stop, due)
        report(cycle)
    missing = delivery.close(grace_s)
    return Totals(
        cycles=number,
        sent=delivery.sent,
        acknowledged=delivery.acknowledged,
        failed=delivery.failed,
        unknown=delivery.unknown + missing,
        skipped=delivery.skipped,
        without_watchlist=without,
    )


def _cycle(
    number: int,
    watchlist: Watchlist,
    sources: QuoteSources,
    delivery: Delivery,
    reader: MarketReader,
) -> Cycle:
    quotes = sources.quotes(watchlist.symbols)
    status = reader.status()
    by_source: dict[str, int] = {}
    sent = 0
    for symbol, quote in quotes.items():
        message = encode(quote, watchlist.symbols[symbol], status.rung, status.generation)
        sent += delivery.send(symbol, message)
        by_source[quote.source] = by_source.get(quote.source, 0) + 1
    delivery.poll()
    errors = [
        *([f"watchlist: {watchlist.error}"] if watchlist.error else []),
        *(f"{name}: {error}" for name, error in sources.failing.items()),
        *([f"Kafka: {delivery.error}"] if delivery.error else []),
    ]
    return Cycle(
        number=number,
        watched=len(watchlist.symbols),
        origin=watchlist.origin,
        quoted=len(quotes),
        sent=sent,
        acknowledged=delivery.acknowledged,
        in_flight=delivery.in_flight,
        sources=by_source,
        errors=tuple(errors),
        rung=status.rung,
        generation=status.generation,
    )


def _wait(delivery: Delivery, stop: threading.Event, due: float) -> None:
    while not stop.is_set() and (left := due - time.monotonic()) > 0:
        delivery.poll(min(left, 0.05))
        stop.wait(min(0.05, max(due - time.monotonic(), 0)))
