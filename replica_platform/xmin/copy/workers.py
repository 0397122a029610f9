"""Workers: pairs of connections that work on ranges of one snapshot side by side.

Threads and connections belong here; what is read and where it goes is the caller's.
"""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple, TypeVar

import psycopg

from replica_platform.xmin.copy.source_load import SourceLoad
from replica_platform.xmin.session import close_session, end_session, open_target
from replica_platform.xmin.source.snapshot import SourceSnapshot, open_reader

Item = TypeVar("Item")
Result = TypeVar("Result")
Tool = TypeVar("Tool")


class Pair(NamedTuple):
    """A connection to each server, used by one thread at a time.

    Attributes:
        source: A session that sees the snapshot.
        target: A session on the target.
    """

    source: psycopg.Connection
    target: psycopg.Connection


class Workers:
    """The pairs of one sync; the first is the sync's own, the others are opened when needed."""

    def __init__(
        self,
        source: SourceSnapshot,
        target_dsn: str,
        target: psycopg.Connection,
        count: int,
        load: SourceLoad | None = None,
    ) -> None:
        self._load = load or SourceLoad()
        self._source = source
        self._target_dsn = target_dsn
        self._target = target
        self.count = self._load.limited(count)
        self._stack = ExitStack()
        self._readers: list[psycopg.Connection] = []
        self._writers: list[psycopg.Connection] = []

    def __enter__(self) -> "Workers":
        """Return the workers themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections that were opened for them."""
        self._stack.close()

    def release(self) -> None:
        """End the transactions on the source, after the last read."""
        for reader in self._readers:
            end_session(reader)

    def read(
        self, task: Callable[[psycopg.Connection, Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """Map a task that only reads; the cores that the target leaves idle are used too."""
        cores = os.cpu_count() or 1
        most = self._load.limited(max(self.count, min(2 * self.count, cores)))
        wanted = min(most, len(items))
        readers = [self._source.connection, *self._more_readers(wanted - 1)]
        return _share(self._within_limits(task), items, readers)

    def copy(self, task: Callable[[Pair, Item], Result], items: Sequence[Item]) -> list[Result]:
        """Map a task that reads and writes."""
        wanted = min(self.count, len(items)) - 1
        others = map(Pair, self._more_readers(wanted), self._more_writers(wanted))
        pairs = [Pair(self._source.connection, self._target), *others]
        return _share(self._within_limits(task), items, pairs)

    def _within_limits(
        self, task: Callable[[Tool, Item], Result]
    ) -> Callable[[Tool, Item], Result]:
        self._load.using(1 + len(self._readers))

        def limited(tool: Tool, item: Item) -> Result:
            with self._load.working():
                return task(tool, item)

        return limited

    def _more_readers(self, wanted: int) -> list[psycopg.Connection]:
        while len(self._readers) < wanted:
            reader = open_reader(self._source.dsn, self._source.snapshot)
            self._stack.callback(close_session, reader)
            self._readers.append(reader)
        return self._readers[: max(0, wanted)]

    def _more_writers(self, wanted: int) -> list[psycopg.Connection]:
        while len(self._writers) < wanted:
            writer = open_target(self._target_dsn)
            self._stack.callback(close_session, writer)
            self._writers.append(writer)
        return self._writers[: max(0, wanted)]


def _share(
    task: Callable[[Tool, Item], Result], items: Sequence[Item], tools: Sequence[Tool]
) -> list[Result]:
    """Map a task with a thread for each tool; the first error ends them all and is raised."""
    if len(tools) == 1:
        return [task(tools[0], item) for item in items]
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    results: list[Result] = []
    stop = threading.Event()

    def run(tool: Tool) -> None:
        try:
            while not stop.is_set():
                results.append(task(tool, waiting.get_nowait()))
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
