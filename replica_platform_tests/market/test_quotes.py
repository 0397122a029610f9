"""The quote producer against librdkafka's mock cluster: watchlist, sources, messages, counts."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from replica_platform.market.errors import SourceFailed
from replica_platform.market.quotes import (
    SCHEMA,
    Cycle,
    Delivery,
    Quote,
    QuoteSources,
    Totals,
    load_sources,
    produce_quotes,
)
from replica_platform.market.quotes.http import HttpMapping, HttpSource
from replica_platform.market.quotes.message import encode
from replica_platform.market.quotes.replay import ReplaySource
from replica_platform.market.quotes.sources import BadSources
from replica_platform.market.quotes.watched import Watched, Watchlist
from replica_platform.replica import Master, ReplicaReader, publish
from replica_platform_tests.market.conftest import run_batch

CLUSTER = """
import signal, sys
from confluent_kafka import Producer
host = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 3})
brokers = host.list_topics(timeout=30).brokers.values()
print(",".join(f"{b.host}:{b.port}" for b in brokers), flush=True)
sys.stdin.read()
"""


@contextmanager
def mock_cluster() -> Iterator[tuple[str, int]]:
    """Three mock brokers in their own process, which can be frozen; yields addresses and pid."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stdin
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            os.kill(process.pid, signal.SIGCONT)
            process.stdin.close()


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    with mock_cluster() as (addresses, _):
        yield addresses


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from replica_platform.market.sources import open_source

    folder = tmp_path_factory.mktemp("quotes")
    master = Master(folder / "stock_data.duckdb")
    run_batch(master, open_source())
    publish(master.path, folder / "store")
    return folder / "store"


def messages_of(brokers: str, topic: str, count: int) -> list[Any]:
    """The messages of a topic, at least `count` if there are so many within 20 s."""
    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": "test", "auto.offset.reset": "earliest"}
    )
    try:
        parts = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        consumer.assign([TopicPartition(topic, part, 0) for part in parts])
        found: list[Any] = []
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            more = consumer.consume(1000, timeout=1.0 if len(found) >= count else 5.0)
            found += [one for one in more if one.error() is None]
            if not more and len(found) >= count:
                break
        return found
    finally:
        consumer.close()


class Fixed:
    """A source with fixed prices, which can fail."""

    def __init__(self, name: str, prices: Mapping[str, float], age_s: float = 0) -> None:
        self.name, self.prices, self.age_s = name, dict(prices), age_s
        self.fails = False
        self.asked: list[tuple[str, ...]] = []

    def quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        self.asked.append(tuple(symbols))
        if self.fails:
            raise SourceFailed("no answer")
        at = datetime.now(UTC) - timedelta(seconds=self.age_s)
        return {s: Quote(s, self.prices[s], at, self.name) for s in symbols if s in self.prices}


def produce(reader: ReplicaReader, brokers: str, topic: str, **keywords: Any) -> Totals:
    keywords.setdefault("every_s", 0.01)
    sources = keywords.pop("sources", None) or load_sources(None, reader, speed=100)
    return produce_quotes(reader, sources, Delivery(brokers, topic), **keywords)


def test_every_watched_symbol_gets_a_quote_that_the_schema_describes(
    brokers: str, store: Path
) -> None:
    with ReplicaReader(store) as reader:
        totals = produce(reader, brokers, "quotes", cycles=3)
    assert totals == Totals(3, 15, 15, 0, 0, 0, 0)
    messages = messages_of(brokers, "quotes", 15)
    assert len(messages) == 15
    for message in messages:
        quote = json.loads(message.value())
        jsonschema.validate(quote, SCHEMA, format_checker=jsonschema.FormatChecker())
        assert message.key().decode() == quote["symbol"]
        assert (quote["source"], quote["rung"]) == ("replay", "current")
    (ibm,) = {q["close"] for q in (json.loads(m.value()) for m in messages) if q["symbol"] == "IBM"}
    assert ibm == 202.91


def test_the_schema_refuses_what_is_no_quote() -> None:
    good = json.loads(encode(Quote("A", 1.0, datetime.now(UTC), "x"), Watched("A"), None, None))
    jsonschema.validate(good, SCHEMA)
    for wrong in ({"last_price": 0}, {"symbol": ""}, {"close": "1"}, {"more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | wrong, SCHEMA)


def test_a_missing_replica_stops_nothing(brokers: str, tmp_path: Path) -> None:
    cycles: list[Cycle] = []
    with ReplicaReader(tmp_path) as reader:
        totals = produce(
            reader, brokers, "none", cycles=2, defaults=["IBM"], report=cycles.append,
            sources=QuoteSources([Fixed("vendor", {"IBM": 200.0})]),
        )  # fmt: skip
    assert totals == Totals(2, 2, 2, 0, 0, 0, 0)
    assert [cycle.origin for cycle in cycles] == ["defaults", "defaults"]
    assert "watchlist: " in cycles[0].errors[0]


class Scripted:
    """A reader whose answers are a list of rows or errors, one after another."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def query(self, sql: str, *, default: Any) -> list[tuple[Any, ...]]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return default if answer is None else answer


@pytest.mark.parametrize(
    "answer",
    [None, [], KeyError("last_price"), [(None, 1.0, None)]],
    ids=["no replica", "empty", "no column", "a null symbol"],
)
def test_the_previous_watchlist_stays_while_none_can_be_read(answer: Any) -> None:
    watchlist = Watchlist(Scripted([("A", 1.0, date(2025, 1, 2))], answer), ["D"])  # type: ignore[arg-type]
    assert (list(watchlist.symbols), watchlist.origin) == (["D"], "defaults")
    watchlist.refresh()
    watchlist.refresh()
    assert (list(watchlist.symbols), watchlist.origin) == (["A"], "previous")


def test_nulls_and_decimals_are_no_end() -> None:
    rows = [("A", None, None), ("B", Decimal("12.50"), date(2025, 1, 2)), ("C", "?", "?")]
    watchlist = Watchlist(Scripted(rows))  # type: ignore[arg-type]
    watchlist.refresh()
    quote = Quote("A", 10.0, datetime.now(UTC), "x")
    for watched in watchlist.symbols.values():
        jsonschema.validate(json.loads(encode(quote, watched, "current", 1)), SCHEMA)
    assert watchlist.symbols["B"].close == 12.5
    assert watchlist.symbols["A"].close is None


def test_the_first_source_with_a_fresh_quote_wins_and_the_next_takes_over() -> None:
    now = [0.0]
    first, second = Fixed("first", {"A": 1.0}), Fixed("second", {"A": 2.0, "B": 3.0})
    sources = QuoteSources([first, second], clock=lambda: now[0])

    def prices() -> dict[str, float]:
        return {symbol: quote.price for symbol, quote in sources.quotes(["A", "B"]).items()}

    assert prices() == {"A": 1.0, "B": 3.0}
    assert second.asked == [("B",)]
    first.fails = True
    assert prices() == {"A": 2.0, "B": 3.0}
    assert sources.failing == {"first": "SourceFailed: no answer"}
    first.fails = False
    assert prices() == {"A": 2.0, "B": 3.0}  # left alone for a second
    assert len(first.asked) == 2
    now[0] = 1.5
    assert prices() == {"A": 1.0, "B": 3.0}
    assert sources.failing == {}


def test_a_source_that_keeps_failing_is_asked_less_and_less() -> None:
    now = [0.0]
    source = Fixed("only", {})
    source.fails = True
    sources = QuoteSources([source], clock=lambda: now[0])
    for _ in range(600):
        sources.quotes(["A"])
        now[0] += 1
    assert len(source.asked) == 15  # after 1, 2, 4, … 32, then every 60 seconds


def test_an_old_quote_is_none() -> None:
    stale, live = Fixed("stale", {"A": 1.0}, age_s=60), Fixed("live", {"A": 2.0})
    sources = QuoteSources([stale, live], max_age_s=30)
    assert sources.quotes(["A"])["A"].source == "live"


def test_a_replay_shows_open_low_high_close_of_each_day() -> None:
    rows = [("A", 1, 10.0, 12.0, 9.0, 11.0), ("A", 2, 11.0, 12.0, 8.0, 9.0)]
    now = [0.0]
    source = ReplaySource(Scripted(rows), speed=2, clock=lambda: now[0])  # type: ignore[arg-type]
    seen = []
    for _ in range(9):
        seen.append(source.quotes(["A"])["A"].price)
        now[0] += 0.125  # a quarter of a day
    assert seen == [10.0, 9.0, 12.0, 11.0, 11.0, 12.0, 8.0, 9.0, 10.0]


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, Any]]]:
    """An address that answers with what the test puts into `state["answer"]`."""
    state: dict[str, Any] = {"answer": {}, "asked": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state["asked"].append((self.path, self.headers.get("Authorization")))
            body = json.dumps(state["answer"]).encode()
            self.send_response(200 if state["answer"] else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/q?s={{symbols}}", state
        server.shutdown()


def test_an_address_is_polled_by_its_mapping(
    answering: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, state = answering
    mapping = HttpMapping(
        kind="http", url=url, headers={"Authorization": "Bearer $VENDOR_TOKEN"}, batch=2,
        items="data.quotes", symbol="ticker", price="last.price", time="at",
    )  # fmt: skip
    source = HttpSource(mapping)
    with pytest.raises(SourceFailed, match="VENDOR_TOKEN of a header is not set"):
        source.quotes(["A"])
    monkeypatch.setenv("VENDOR_TOKEN", "open-sesame")
    with pytest.raises(SourceFailed, match="503"):
        source.quotes(["A"])
    items = [
        {"ticker": "A", "last": {"price": "1.5"}, "at": 1760000000000},
        {"ticker": "B", "last": {"price": None}},
        {"ticker": 7, "last": 1},
        "no item",
    ]
    state["answer"], state["asked"] = {"data": {"quotes": items}}, []
    found = source.quotes(["A", "B", "C"])
    assert state["asked"] == [
        ("/q?s=A,B", "Bearer open-sesame"),
        ("/q?s=C", "Bearer open-sesame"),
    ]
    assert list(found) == ["A"]
    assert found["A"].price == 1.5
    assert found["A"].quoted_at == datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC)
    state["answer"] = {"data": 3}
    with pytest.raises(SourceFailed, match="no list at"):
        source.quotes(["A"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: []", "sources: List should have at least 1 item"),
        ("sources: [{kind: ftp}]", "sources.0: Input tag 'ftp'"),
        ("sources: [{kind: http}]", "sources.0.http.url: Field required"),
        ("sources: [{kind: replay, sped: 2}]", "sources.0.replay.sped: Extra inputs"),
        ("sources: [{kind: replay}, {kind: replay}]", "two sources have one name"),
        ("sources: [", "is no YAML"),
    ],
)
def test_a_wrong_file_of_sources_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(text)
    with ReplicaReader(tmp_path) as reader, pytest.raises(BadSources, match=message):
        load_sources(path, reader)


def send_through_a_freeze(settings: dict[str, Any] | None) -> tuple[Totals, int]:
    """Produce while the brokers are frozen for 3 s; return the counts and the topic's messages."""
    with mock_cluster() as (brokers, pid), ReplicaReader("absent") as reader:
        delivery = Delivery(brokers, "frozen", settings=settings)
        sources = QuoteSources([Fixed("vendor", {"A": 1.0, "B": 2.0})])
        thaw = threading.Timer(3.0, os.kill, (pid, signal.SIGCONT))

        def freeze(cycle: Cycle) -> None:
            if cycle.acknowledged and not thaw.ident:  # once, with a connection that works
                os.kill(pid, signal.SIGSTOP)
                thaw.start()

        totals = produce_quotes(
            reader, sources, delivery, cycles=200, every_s=0.02, defaults=["A", "B"], grace_s=30,
            report=freeze,
        )  # fmt: skip
        thaw.join()
        return totals, len(messages_of(brokers, "frozen", totals.acknowledged))


def test_a_frozen_broker_gets_every_message_once_and_the_counts_say_so() -> None:
    totals, in_topic = send_through_a_freeze(None)
    assert totals.sent == totals.acknowledged == in_topic == 400
    assert totals.ok


def test_with_a_timeout_the_counts_would_be_wrong() -> None:
    """The negative control: messages reported as failed that are in the topic."""
    totals, in_topic = send_through_a_freeze({"message.timeout.ms": 1000})
    assert totals.sent == 400
    assert in_topic > totals.acknowledged


def test_a_broker_that_never_answers_fills_no_memory_and_is_reported() -> None:
    cycles: list[Cycle] = []
    with ReplicaReader("absent") as reader:
        delivery = Delivery("127.0.0.1:1", "quotes", most_in_flight=3)
        totals = produce_quotes(
            reader, QuoteSources([Fixed("vendor", {"A": 1.0})]), delivery,
            cycles=10, every_s=0.05, defaults=["A"], grace_s=0.2, report=cycles.append,
        )  # fmt: skip
    assert totals == Totals(10, 3, 0, 0, 3, 7, 0)
    assert not totals.ok
    assert any("Kafka: " in error for error in cycles[-1].errors)


def test_a_producer_that_librdkafka_gave_up_is_replaced(brokers: str) -> None:
    delivery = Delivery(brokers, "again")
    delivery.send("A", b"1")
    delivery.poll(10)
    lost = KafkaError(KafkaError._FATAL, "Broker: Unknown Producer Id", fatal=True)
    delivery._settings["error_cb"](lost)
    assert delivery.send("A", b"2")
    assert delivery.close(10) == 0
    assert (delivery.sent, delivery.acknowledged, delivery.unknown) == (2, 2, 0)
    assert [message.value() for message in messages_of(brokers, "again", 2)] == [b"1", b"2"]


def test_sigterm_loses_nothing_in_flight(brokers: str, store: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [
            sys.executable, "-m", "replica_platform.cli.main", "quotes", "--store", store,
            "--brokers", brokers, "--topic", "stopped", "--every", "0.02",
            "--metrics-port", str(port),
        ],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        for _ in range(20):
            assert process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            counted = {
                sample.name.removeprefix("replica_platform_quotes_"): sample.value
                for family in text_string_to_metric_families(answer.read().decode())
                for sample in family.samples
            }
        process.send_signal(signal.SIGTERM)
        last = process.stdout.read().splitlines()[-1]
    assert process.returncode == 0, last
    sent, acknowledged = int(last.split()[0]), int(last.split("rounds: ")[1].split()[0])
    assert sent == acknowledged == len(messages_of(brokers, "stopped", sent)) >= 100
    assert counted["rounds_total"] >= 20
    assert counted["sent_messages_total"] == 5 * counted["rounds_total"] <= sent
    assert counted["given_total"] == counted["sent_messages_total"]
    in_flight = counted["sent_messages_total"] - counted["acknowledged_messages_total"]
    assert counted["in_flight_messages"] == in_flight
    assert counted["watched_symbols"] == counted["quoted_symbols"] == 5
