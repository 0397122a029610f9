"""K pairs of connections, each moving ranges from the leader's snapshot into the staging table.

Threads and connections belong here; what is read and where it goes is told by the caller.
"""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import psycopg

from replica_platform.xmin.session import open_target
from replica_platform.xmin.source.snapshot import Leader, reader

Item = TypeVar("Item")
Result = TypeVar("Result")
Tool = TypeVar("Tool")
Pair = tuple[psycopg.Connection, psycopg.Connection]


class Crew:
    """The pairs of one sync: the leader's own first, others opened when there is work for them."""

    def __init__(
        self, leader: Leader, target_dsn: str, home: psycopg.Connection, workers: int
    ) -> None:
        self._leader = leader
        self._target_dsn = target_dsn
        self._home = home
        self.workers = workers
        self._stack = ExitStack()
        self._sources: list[psycopg.Connection] = []
        self._targets: list[psycopg.Connection] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look(
        self, work: Callable[[psycopg.Connection, Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """Do work that only reads: as many more at a time as rest on the target meanwhile."""
        cores = os.cpu_count() or 1
        wanted = min(max(self.workers, min(2 * self.workers, cores)), len(items))
        return _share(work, items, [self._leader.connection, *self._readers(wanted - 1)])

    def move(self, work: Callable[[Pair, Item], Result], items: Sequence[Item]) -> list[Result]:
        """Do work that reads and writes, as much at a time as there are workers."""
        wanted = min(self.workers, len(items)) - 1
        others = list(zip(self._readers(wanted), self._writers(wanted), strict=True))
        return _share(work, items, [(self._leader.connection, self._home), *others])

    def _readers(self, wanted: int) -> list[psycopg.Connection]:
        while len(self._sources) < wanted:
            source = reader(self._leader.dsn, self._leader.snapshot)
            self._stack.callback(source.close)
            self._sources.append(source)
        return self._sources[: max(0, wanted)]

    def _writers(self, wanted: int) -> list[psycopg.Connection]:
        while len(self._targets) < wanted:
            target = open_target(self._target_dsn)
            self._stack.callback(target.close)
            self._targets.append(target)
        return self._targets[: max(0, wanted)]


def _share(
    work: Callable[[Tool, Item], Result], items: Sequence[Item], tools: Sequence[Tool]
) -> list[Result]:
    """Do `work` for every item with as many threads as there are tools; the first error wins."""
    if len(tools) == 1:
        return [work(tools[0], item) for item in items]
    todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        todo.put(item)
    results: list[Result] = []
    stop = threading.Event()

    def run(tool: Tool) -> None:
        try:
            while not stop.is_set():
                results.append(work(tool, todo.get_nowait()))
        except queue.Empty:
            return
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(tools)) as pool:
        futures = [pool.submit(run, tool) for tool in tools]
    for future in futures:
        future.result()
    return results
