"""The live quote producer: prices of the watchlist's symbols, sent to Kafka each cycle.

In the order of the story: `watched` (the symbols, from the replica), `protocol` (what a source of
quotes offers) with `replay` and `http`, `sources` (priorities, health, failover), `message` (the
JSON and its schema), `delivery` (Kafka, exact counts), `produce` (the loop). It only reads the
replica, never the master, and nothing but its own stop ends it.
"""

from replica_platform.market.quotes.delivery import Delivery
from replica_platform.market.quotes.message import SCHEMA
from replica_platform.market.quotes.produce import Cycle, Totals, produce_quotes
from replica_platform.market.quotes.protocol import Quote, QuoteSource
from replica_platform.market.quotes.sources import QuoteSources, load_sources

__all__ = [
    "SCHEMA",
    "Cycle",
    "Delivery",
    "Quote",
    "QuoteSource",
    "QuoteSources",
    "Totals",
    "load_sources",
    "produce_quotes",
]
