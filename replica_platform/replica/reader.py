"""`ReplicaReader`: an answer to every query, and where it came from.

    current    the generation that the pointer names
    previous   an older generation, verified again, while the current one cannot be used
    kept       the generation that the reader was opened `at`
    memory     the last good answer to the same question
    default    the caller's

One thread watches the pointer; `serving.swap` swaps generations, and queries that are running
finish on the generation they began with. Needs only duckdb and the standard library.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import duckdb

from replica_platform.replica.copy.file_format import use_sql
from replica_platform.replica.errors import ReplicaUnavailable
from replica_platform.replica.serving.answers import MEMORY_BYTES, Answers
from replica_platform.replica.serving.forms import Snapshot, fetch_arrow, fetch_df, fetch_rows
from replica_platform.replica.serving.reader_status import ReaderStatus
from replica_platform.replica.serving.swap import (
    Attached,
    GenerationServer,
    concerns_generation,
)
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, age_s
from replica_platform.replica.store.moment import At, parse_at

if TYPE_CHECKING:
    import pandas
    import pyarrow

POLL_S = 0.5
# Each failure drops a generation, or at least a DuckDB instance.
ATTEMPTS = 3


class _Missing:
    """Stands for a default that was not given."""


class ReplicaReader:
    """A reader of a store's current generation; thread-safe.

    Close it, or use it in a `with`.

    Raises:
        ValueError: `at` is a time without a zone, or a text that is no number, day or time.

    Args:
        store: The store's folder.
        poll_s: How often the pointer is checked, in seconds.
        at: Read only this kept generation, by its number, or the last one that was published by a
            day or a time: `12`, `"2026-11-20"` (its end, in UTC), `"2026-11-20T18:00+01:00"`, or
            a `datetime` with its zone.
        config: Settings of DuckDB, such as `memory_limit`.
        memory_bytes: How many bytes of answers are remembered; 0 for none.
    """

    def __init__(
        self,
        store: Path | str,
        poll_s: float = POLL_S,
        *,
        at: At | None = None,
        config: dict[str, Any] | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._layout = Layout(store)
        self._at = None if at is None else parse_at(at)
        self._poll_s = poll_s
        self._config = config or {}
        self._memory_bytes = memory_bytes
        self._stop = threading.Event()
        self._begin()
        _readers.add(self)

    def _begin(self) -> None:
        """Begin without a generation, and without anything that another process shares."""
        self._server = GenerationServer(self._layout, self._config, self._at)
        self._mutex = threading.Lock()
        self._local = threading.local()
        self._cursors: WeakSet[duckdb.DuckDBPyConnection] = WeakSet()
        self._thread: threading.Thread | None = None
        self._answers = Answers(self._memory_bytes)
        self._served_from: str | None = None

    def _begin_in_child(self) -> None:
        """Begin again in a forked process, which has no copy of the threads.

        Neither the locks nor DuckDB's instance can be used there: a thread that no longer exists
        may hold them.
        """
        _inherited.append((self._server, self._local, list(self._cursors)))
        if self._server.attached:
            self._server.attached.lease.release()  # only this process's copy; the parent's stays
        closed = self._stop.is_set()
        self._stop = threading.Event()
        if closed:
            self._stop.set()
        self._begin()

    def query(self, sql: str, params: Any = None, default: Any = _Missing) -> list[tuple[Any, ...]]:
        """Return the rows of a query.

        Args:
            sql: The query; tables have the names that they have in the master.
            params: Its parameters.
            default: Returned when no generation can be read and this was never answered.

        Returns:
            The rows.

        Raises:
            ReplicaUnavailable: Every fallback failed and there is no default.
            duckdb.Error: The query itself is wrong.
        """
        return list(self._answer("rows", fetch_rows, sql, params, default))

    def arrow(self, sql: str, params: Any = None, default: Any = _Missing) -> "pyarrow.Table":
        """Return the rows of a query as an Arrow table; needs pyarrow.

        Args:
            sql: The query; tables have the names that they have in the master.
            params: Its parameters.
            default: Returned when no generation can be read and this was never answered.

        Returns:
            The rows.

        Raises:
            ReplicaUnavailable: Every fallback failed and there is no default.
            duckdb.Error: The query itself is wrong.
        """
        return self._answer("arrow", fetch_arrow, sql, params, default)

    def df(self, sql: str, params: Any = None, default: Any = _Missing) -> "pandas.DataFrame":
        """Return the rows of a query as a data frame; needs pandas.

        Args:
            sql: The query; tables have the names that they have in the master.
            params: Its parameters.
            default: Returned when no generation can be read and this was never answered.

        Returns:
            The rows.

        Raises:
            ReplicaUnavailable: Every fallback failed and there is no default.
            duckdb.Error: The query itself is wrong.
        """
        return self._answer("df", fetch_df, sql, params, default)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Yield one generation for several queries, unaffected by publications.

        Raises:
            ReplicaUnavailable: No generation can be read. Unlike `query`, a snapshot has no
                fallbacks.
        """
        self._start()
        attached = self._server.begin_query()
        if attached is None:
            raise self._unavailable()
        try:
            cursor = attached.instance.cursor()
            try:
                cursor.execute(use_sql(attached.manifest.catalog))
                cursor.execute("begin transaction read only")
                # DuckDB binds a transaction to a database when it first reads its catalog.
                cursor.execute(
                    "select count(*) from duckdb_tables() where database_name = current_database()"
                )
                yield Snapshot(attached.manifest.generation, cursor)
            finally:
                cursor.close()
        finally:
            self._server.end_query(attached)

    @property
    def generation(self) -> int | None:
        """The generation that queries run on now."""
        self._start()
        attached = self._server.attached
        return attached.manifest.generation if attached else None

    def status(self) -> ReaderStatus:
        """Return how the last answer was obtained, the ages, and what was refused."""
        self._start()
        server = self._server
        manifest = self._attached_manifest()
        return ReaderStatus(
            served_from=self._served_from or self._source_of(server.attached),
            generation=manifest.generation if manifest else None,
            data_age_s=age_s(manifest.data_as_of) if manifest else None,
            publication_age_s=age_s(manifest.confirmed_at) if manifest else None,
            data_as_of=manifest.data_as_of if manifest else None,
            published_at=manifest.published_at if manifest else None,
            last_error=server.error,
            refused=sorted({refusal.sentence for refusal in server.refused.values()}),
        )

    def close(self) -> None:
        """Stop watching the pointer, release the lease, and close DuckDB."""
        self._stop.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        attached = self._server.attached
        self._server.close()
        for cursor in list(self._cursors):
            cursor.close()
        if attached:
            attached.instance.close()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(
        self,
        form: str,
        fetch: Callable[[duckdb.DuckDBPyConnection, str, Any], Any],
        sql: str,
        params: Any,
        default: Any,
    ) -> Any:
        self._start()
        intact_file: str | None = None
        for _ in range(ATTEMPTS):
            attached = self._server.begin_query()
            if attached is None:
                break
            try:
                answer = fetch(self._cursor(attached), sql, params)
            except duckdb.Error as error:
                file = attached.manifest.file
                if not concerns_generation(error, self._layout.generations / file):
                    raise  # a default would hide it from the query's author
                failed_before = file == intact_file
                if self._server.handle_failure(attached, error, read_all=not failed_before):
                    intact_file = file
                if failed_before:
                    raise  # twice, in two instances, on intact bytes
            else:
                self._answers.remember(form, sql, params, answer)
                self._served_from = self._source_of(attached)
                return answer
            finally:
                self._server.end_query(attached)
        with suppress(KeyError):
            answer = self._answers.recall(form, sql, params)
            self._served_from = "memory"
            return answer
        if default is not _Missing:
            self._served_from = "default"
            return default
        raise self._unavailable()

    def _source_of(self, attached: Attached | None) -> str | None:
        if attached is None:
            return None
        if self._at is not None:
            return "kept"
        return "current" if self._server.is_current(attached) else "previous"

    def _attached_manifest(self) -> Manifest | None:
        attached, pointer = self._server.attached, self._server.pointer
        if attached is None:
            return None
        if pointer and self._server.is_current(attached):
            return pointer  # which says when the generation was last confirmed
        return attached.manifest

    def _unavailable(self) -> ReplicaUnavailable:
        reason = self._server.error or "nothing is published yet"
        if self._at is not None:
            return ReplicaUnavailable(
                f"{self._layout.root}: {reason}; read `at` another one, or pull this one from a "
                "block store that has it."
            )
        return ReplicaUnavailable(
            f"No generation in {self._layout.root} can be read ({reason}); "
            "publish again, or give a default."
        )

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._mutex:
            if self._thread is not None or self._stop.is_set():
                return
            self._server.refresh()
            self._thread = threading.Thread(target=self._watch, name="replica-reader", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self._server.refresh()
            except Exception as error:  # without this thread readers would never see a new one
                self._server.record_error(f"Looking for a new generation failed: {error!r}")

    def _cursor(self, attached: Attached) -> duckdb.DuckDBPyConnection:
        """Return this thread's connection to the instance."""
        instance: duckdb.DuckDBPyConnection | None = getattr(self._local, "instance", None)
        if instance is not attached.instance:
            cursor = attached.instance.cursor()
            cursor.execute(use_sql(attached.manifest.catalog))
            self._cursors.add(cursor)
            self._local.instance, self._local.cursor = attached.instance, cursor
        local: duckdb.DuckDBPyConnection = self._local.cursor
        return local


_readers: WeakSet[ReplicaReader] = WeakSet()
# What a forked process must neither use nor destroy.
_inherited: list[object] = []


def _begin_in_child() -> None:
    for reader in list(_readers):
        reader._begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)
