"""The batch is killed again and again while a producer quotes: it never notices.

The negative control reads the master as the producer's original did, and meets its lock.
"""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from replica_platform.market.checks import TABLES, broken_rules
from replica_platform.market.quotes import (
    Cycle,
    Delivery,
    QuoteSources,
    Totals,
    produce_quotes,
)
from replica_platform.market.quotes.replay import ReplaySource
from replica_platform.replica import Master, ReplicaReader
from replica_platform_tests.faults.market_batch import one_more_day
from replica_platform_tests.market.test_quotes import messages_of, mock_cluster


@dataclass
class Run:
    """What a producer saw, and what the batches beside it did."""

    totals: Totals
    in_topic: int
    published: int
    kills: int
    cycles: list[Cycle] = field(default_factory=list)

    @property
    def lock_errors(self) -> int:
        return sum("lock" in error for cycle in self.cycles for error in cycle.errors)

    @property
    def errors(self) -> list[str]:
        return [error for cycle in self.cycles for error in cycle.errors]


class FromMaster:
    """The negative control: the watchlist read from the file that the batch writes."""

    def __init__(self, master: Path) -> None:
        self._master = master

    def query(self, sql: str, *, default: Any) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self._master), read_only=True) as connection:
            return connection.execute(sql).fetchall()

    def status(self) -> Any:
        class Status:
            rung, generation = "master", None

        return Status


@contextmanager
def killed_batches(
    master: Path, store: Path, lives_s: tuple[float, float]
) -> Iterator[dict[str, int]]:
    """Run batches, each killed after between these seconds, until the end of the block."""
    counts = {"published": 0, "kills": 0}
    over = threading.Event()
    rng = random.Random(1)

    def batches() -> None:
        while not over.is_set():
            with subprocess.Popen(
                [sys.executable, "-m", "replica_platform_tests.faults.market_batch", master, store],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            ) as batch:  # fmt: skip
                over.wait(rng.uniform(*lives_s))
                batch.kill()
                assert batch.stdout
                counts["published"] += len(batch.stdout.read().split())
                counts["kills"] += 1

    thread = threading.Thread(target=batches)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()


def produce_beside_batches(
    tmp_path: Path, reader: Any, seconds: float, lives_s: tuple[float, float]
) -> Run:
    """Quote for some seconds while batches are killed."""
    cycles: list[Cycle] = []
    stop = threading.Event()
    with (
        mock_cluster() as (brokers, _),
        killed_batches(tmp_path / "stock_data.duckdb", tmp_path / "store", lives_s) as counts,
    ):
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        sources = QuoteSources([ReplaySource(reader, speed=100)])
        totals = produce_quotes(
            reader, sources, Delivery(brokers, "quotes"),
            every_s=0.02, refresh_cycles=1, stop=stop, report=cycles.append,
        )  # fmt: skip
        in_topic = len(messages_of(brokers, "quotes", totals.acknowledged))
    return Run(totals, in_topic, counts["published"], counts["kills"], cycles)


def test_the_producer_never_notices_the_batch(tmp_path: Path, torture: bool) -> None:
    master = Master(tmp_path / "stock_data.duckdb")
    one_more_day(master, tmp_path / "store")
    began = time.monotonic()
    with ReplicaReader(tmp_path / "store") as reader:
        run = produce_beside_batches(tmp_path, reader, 60 if torture else 12, (1.5, 6.0))
    print(
        f"\n{time.monotonic() - began:.0f} s: {run.kills} batches killed, {run.published} "
        f"generations published, {run.totals.cycles} cycles, {run.totals.without_watchlist} "
        f"without a watchlist, {run.lock_errors} lock errors, "
        f"{run.totals.acknowledged} acknowledged, {run.in_topic} in the topic"
    )
    assert run.published > 0 < run.kills
    assert run.totals.cycles > 100
    assert run.totals.without_watchlist == 0
    assert run.errors == []
    assert {cycle.origin for cycle in run.cycles} == {"watchlist"}
    assert run.totals.sent == run.totals.acknowledged == run.in_topic > 1000
    # What the kills left is completed by the next batch.
    one_more_day(master, tmp_path / "store")
    with master.read() as connection:
        assert {table: broken_rules(connection, table) for table in TABLES} == {
            table: [] for table in TABLES
        }


def test_a_producer_that_reads_the_master_meets_its_lock(tmp_path: Path) -> None:
    """The negative control, in the same harness."""
    one_more_day(Master(tmp_path / "stock_data.duckdb"), tmp_path / "store")
    run = produce_beside_batches(tmp_path, FromMaster(tmp_path / "stock_data.duckdb"), 10, (9, 9))
    print(f"\nfrom the master: {run.totals.cycles} cycles, {run.lock_errors} lock errors")
    assert run.lock_errors > 0
