"""Generations are swapped a hundred times under querying threads: no query fails or sees two.

The control, DETACH and then ATTACH, runs in the same harness and must fail.
"""

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pytest

from replica_platform.replica import Master, ReplicaReader, publish
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.pointer import point_to
from replica_platform_tests.faults.replica_torture import TORN, write_version

THREADS = 4


class Source(Protocol):
    def query(self, sql: str) -> list[tuple[Any, ...]]: ...


class Detaching:
    """The obvious swap: DETACH, then ATTACH, while threads query."""

    def __init__(self, store: Path) -> None:
        self.pointer = store / "current.json"
        self.instance = duckdb.connect()
        self.file: str | None = None
        self.mine = threading.local()
        self.lock = threading.Lock()

    def query(self, sql: str) -> list[tuple[object, ...]]:
        with self.lock:
            file = json.loads(self.pointer.read_bytes())["file"]
            if file != self.file:
                if self.file:
                    self.instance.execute("detach replica")
                path = self.pointer.parent / "generations" / file
                self.instance.execute(f"attach '{path}' as replica (read_only)")
                self.file = file
        if not hasattr(self.mine, "cursor"):
            self.mine.cursor = self.instance.cursor()
        sql = sql.replace("from a", "from replica.a").replace("from b", "from replica.b")
        rows: list[tuple[object, ...]] = self.mine.cursor.execute(sql).fetchall()
        return rows


def swap(store: Path, source: Source, swaps: int) -> Counter[str]:
    """Move the pointer back and forth while threads query; return the counts."""
    layout = Layout(store)
    newest, older = layout.kept()
    counts: Counter[str] = Counter()
    current = newest.generation
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                version, whole = source.query(TORN)[0]
                counts["whole" if whole else "torn"] += 1
                counts[f"version {version}"] += 1
            except Exception as error:
                counts["failed"] += 1
                counts[f"{type(error).__name__}: {str(error)[:70]}"] += 1

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for number in range(swaps):
        manifest = older if number % 2 == 0 else newest
        point_to(layout, manifest)
        current = manifest.generation
        time.sleep(0.02)
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    counts["stale"] = int(source.query(TORN)[0][0] != current)
    print(f"\n{type(source).__name__}: {dict(counts)}")
    return counts


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store whose generations 1 and 2 hold versions 1 and 2."""
    master = Master(tmp_path / "master.duckdb")
    for _ in range(2):
        with master.write() as connection:
            write_version(connection)
        publish(master.path, tmp_path / "store", min_age_s=0)
    return tmp_path / "store"


def bad(counts: Counter[str]) -> int:
    return counts["failed"] + counts["torn"] + counts["stale"]


def test_the_reader_swaps_without_a_gap(store: Path, torture: bool) -> None:
    with ReplicaReader(store, poll_s=0.005) as reader:
        counts = swap(store, reader, 1001 if torture else 101)
    assert bad(counts) == 0
    assert counts["version 1"] > 20
    assert counts["version 2"] > 20


def test_detach_and_attach_leaves_a_gap(store: Path) -> None:
    assert bad(swap(store, Detaching(store), 301)) > 0
