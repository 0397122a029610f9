"""K pairs of connections, each moving ranges from the leader's snapshot into the staging table.

Threads and connections belong here; what is read and where it goes is told by the caller.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import psycopg

from replica_platform.xmin.session import open_target
from replica_platform.xmin.source import Leader, reader

Item = TypeVar("Item")
Result = TypeVar("Result")
Pair = tuple[psycopg.Connection, psycopg.Connection]


class Crew:
    """The pairs of one sync: the leader's own first, others opened when there is work for them."""

    def __init__(self, leader: Leader, target_dsn: str, home: psycopg.Connection, workers: int):
        self._leader = leader
        self._target_dsn = target_dsn
        self._first: Pair = (leader.connection, home)
        self._workers = workers
        self._stack = ExitStack()
        self._others: list[Pair] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def each(self, work: Callable[[Pair, Item], Result], items: Iterable[Item]) -> list[Result]:
        """Do `work` for every item, a worker each at a time; the first error wins."""
        todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        count = 0
        for item in items:
            todo.put(item)
            count += 1
        pairs = self._pairs(min(self._workers, count))
        if len(pairs) <= 1:
            return [work(self._first, todo.get()) for _ in range(count)]
        results: list[Result] = []
        stop = threading.Event()

        def run(pair: Pair) -> None:
            try:
                while not stop.is_set():
                    results.append(work(pair, todo.get_nowait()))
            except queue.Empty:
                return
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(len(pairs)) as pool:
            futures = [pool.submit(run, pair) for pair in pairs]
        for future in futures:
            future.result()
        return results

    def _pairs(self, wanted: int) -> Sequence[Pair]:
        while len(self._others) + 1 < wanted:
            source = reader(self._leader.dsn, self._leader.snapshot)
            self._stack.callback(source.close)
            target = open_target(self._target_dsn)
            self._stack.callback(target.close)
            self._others.append((source, target))
        return [self._first, *self._others[: max(0, wanted - 1)]]
