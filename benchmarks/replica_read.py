"""The time of a query through `ReplicaReader` and through plain duckdb, alternating in one run.

    python benchmarks/replica_read.py [--mb 1000] [--seconds 20] [--folder DIR] [--json]

The same queries on the same file; how soon a moved pointer is noticed at a poll of 20 ms; and the
slowest hundredth of queries while generations of the large master are published by another
process, beside the same in quiet times.
"""

import multiprocessing
import statistics
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import duckdb
from replica_publish import append, make_master
from replicas import measure

from replica_platform.replica import Master, ReplicaReader, publish
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.pointer import point_to

QUERIES = {
    "point": "select grade from watchlist where id = 'C77'",
    "rows": "select * from watchlist where grade = 3",
    "aggregate": "select customer % 10, sum(amount) from ticks where id < 500000 group by 1",
}


def beside_plain(store: Path, rounds: int) -> dict[str, float]:
    """Return the median time through the reader divided by plain duckdb's, by query."""
    ratios = {}
    with ReplicaReader(store, poll_s=0.02) as reader:
        path = Layout(store).data(reader_manifest(store))
        with duckdb.connect(str(path), read_only=True) as plain:
            for name, sql in QUERIES.items():
                ours, theirs = [], []
                for number in range(rounds + 10):
                    started = time.perf_counter()
                    reader.query(sql)
                    between = time.perf_counter()
                    plain.execute(sql).fetchall()
                    if number >= 10:
                        ours.append(between - started)
                        theirs.append(time.perf_counter() - between)
                ratios[name] = round(statistics.median(ours) / statistics.median(theirs), 3)
    return ratios


def reader_manifest(store: Path):  # type: ignore[no-untyped-def]
    manifest = Layout(store).current()
    assert manifest is not None
    return manifest


def notice(store: Path, rounds: int) -> list[float]:
    """Return the seconds from a move of the pointer to the first query that sees it."""
    layout = Layout(store)
    newest, older = layout.kept()[:2]
    found = []
    with ReplicaReader(store, poll_s=0.02) as reader:
        for number in range(rounds):
            target = older if number % 2 == 0 else newest
            time.sleep(0.03)
            point_to(layout, target)
            # Readers see the rename before the folder's fsync, so its time counts.
            moved = layout.pointer.stat().st_ctime
            while reader.generation != target.generation:
                time.sleep(0.0005)
            found.append(time.time() - moved)
        point_to(layout, newest)
    return found


def publish_repeatedly(path: Path, store: Path, going: Event, quiet: Event, keep: int) -> None:
    """Publish while `going`; `quiet` is set outside of publications."""
    master = Master(path)
    while going.is_set():
        quiet.set()
        append(master, 0.0001)
        quiet.clear()
        time.sleep(0.05)
        publish(master.path, store, keep=keep, min_age_s=0)


def slowest(store: Path, master: Path, seconds: float, keep: int) -> dict[str, float]:
    """Return the 99th percentile of queries in quiet times and during publications, in ms."""
    going, quiet = multiprocessing.Event(), multiprocessing.Event()
    publishing = multiprocessing.Process(
        target=publish_repeatedly, args=(master, store, going, quiet, keep)
    )
    sql = QUERIES["rows"]
    calm: list[float] = []
    busy: list[float] = []

    def ask(until: float, into: list[float]) -> None:
        with ReplicaReader(store, poll_s=0.02) as reader:
            while time.monotonic() < until:
                was_quiet = quiet.is_set()
                started = time.perf_counter()
                reader.query(sql)
                took = time.perf_counter() - started
                # While the batch writes, neither.
                if into is calm or (not was_quiet and not quiet.is_set()):
                    into.append(took)
                time.sleep(0.002)

    ask(time.monotonic() + seconds / 2, calm)
    going.set()
    publishing.start()
    reading = threading.Thread(target=ask, args=(time.monotonic() + seconds, busy))
    reading.start()
    reading.join()
    going.clear()
    publishing.join()
    return {
        "quiet_p99_ms": round(percentile(calm, 99) * 1e3, 2),
        "publishing_p99_ms": round(percentile(busy, 99) * 1e3, 2),
        "quiet_queries": len(calm),
        "publishing_queries": len(busy),
        "ratio": round(percentile(busy, 99) / percentile(calm, 99), 2),
    }


def percentile(values: list[float], which: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[which - 1]


def run(folder: Path, mb: int, seconds: float) -> dict[str, object]:
    master, store = make_master(folder / "master.duckdb", mb), folder / "store"
    publish(master.path, store, min_age_s=0)
    append(master, 0.001)
    publish(master.path, store, min_age_s=0)
    delays = notice(store, 60)
    return {
        "to_plain_duckdb": beside_plain(store, 200),
        "notice_median_ms": round(statistics.median(delays) * 1e3, 1),
        "notice_worst_ms": round(max(delays) * 1e3, 1),
        "during_full_copies": slowest(store, master.path, seconds, keep=1000),
        "during_patches": slowest(store, master.path, seconds, keep=1),
        "targets": {"to_plain_duckdb": 1.02, "notice_ms": 40, "during": 1.3},
    }


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    measure(__doc__, run, seconds=20.0)
