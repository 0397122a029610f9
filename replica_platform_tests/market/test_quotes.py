"""The quote producer with librdkafka's mock cluster, with and without a replica."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from replica_platform.market.bars import load_bars

from replica_platform.market.quotes import Cycle, produce_quotes
from replica_platform.market.tables import write_ohlcv, write_symbols, write_watchlist
from replica_platform.replica import Master, ReplicaReader, publish


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """A mock Kafka cluster inside a client."""
    host = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1})
    yield host.list_topics(timeout=10).brokers[1].__str__().split("/")[0]
    del host


@pytest.fixture
def store(tmp_path: Path) -> Path:
    bars = load_bars().frame
    master = tmp_path / "master.duckdb"
    with Master(master).write() as connection:
        write_symbols(connection, bars)
        write_ohlcv(connection, bars)
        write_watchlist(connection)
    publish(master, tmp_path / "store")
    return tmp_path / "store"


def consume(brokers: str, topic: str, count: int) -> list[dict[str, object]]:
    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": "test", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    try:
        messages = consumer.consume(count, timeout=20)
        return [json.loads(message.value()) for message in messages]
    finally:
        consumer.close()


def test_every_watched_symbol_gets_a_quote(brokers: str, store: Path) -> None:
    cycles: list[Cycle] = []
    with ReplicaReader(store) as reader:
        sent = produce_quotes(
            reader, brokers, "quotes", every_s=0.01, cycles=2, report=cycles.append
        )
    assert sent == 8
    assert [cycle.acknowledged for cycle in cycles] == [4, 4]
    quotes = consume(brokers, "quotes", 8)
    assert sorted({str(quote["symbol"]) for quote in quotes}) == ["AAPL", "GOOG", "IBM", "MSFT"]
    (ibm,) = {quote["last_price"] for quote in quotes if quote["symbol"] == "IBM"}
    assert ibm == 202.91
    assert {quote["rung"] for quote in quotes} == {"current"}


def test_a_missing_replica_stops_nothing(brokers: str, tmp_path: Path) -> None:
    cycles: list[Cycle] = []
    with ReplicaReader(tmp_path) as reader:
        assert produce_quotes(reader, brokers, "none", cycles=1, report=cycles.append) == 0
    assert [cycle.rung for cycle in cycles] == ["default"]


def test_unreachable_brokers_are_reported_without_an_exception(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replica_platform.market.quotes.FLUSH_TIMEOUT_S", 0.5)
    cycles: list[Cycle] = []
    with ReplicaReader(store) as reader:
        produce_quotes(reader, "127.0.0.1:1", "quotes", cycles=1, report=cycles.append)
    assert cycles[0].sent == 4
    assert cycles[0].acknowledged == 0
