"""ReplicaReader: every query is answered, and it is known by which rung of the ladder.

    current    the generation the pointer names
    previous   an older generation, verified anew, while the current one cannot be used
    memory     the last good answer to the same question
    default    what the caller gave

One thread looks at the pointer by a single `stat`; `serving` swaps generations behind the queries,
and those in flight end on the generation they began with. Needs only duckdb and the standard
library.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import duckdb

from replica_platform.replica.errors import ReplicaUnavailable
from replica_platform.replica.serving.swap import DATABASE, Served, Serving
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import now

if TYPE_CHECKING:
    import pandas
    import pyarrow

POLL_S = 0.5
REMEMBERED_ANSWERS = 64
REMEMBERED_ROWS = 100_000

# What a query's author must see: the file is not at fault, and a default would hide it.
QUERY_ERRORS = (
    duckdb.ProgrammingError,
    duckdb.DataError,
    duckdb.NotSupportedError,
    duckdb.IntegrityError,
    duckdb.InterruptException,
    duckdb.OutOfMemoryException,
)


@dataclass(frozen=True)
class ReaderStatus:
    """How the last answer came about. Ages in seconds: of what the data speaks of (None when the
    publisher did not say), and since a publisher last found the generation to be current."""

    rung: str | None
    generation: int | None
    data_age_s: float | None
    publication_age_s: float | None
    data_as_of: datetime | None
    published_at: datetime | None
    last_error: str | None
    refused: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able fields."""
        fields = asdict(self)
        for name in ("data_as_of", "published_at"):
            fields[name] = fields[name].isoformat() if fields[name] else None
        return fields


class _Missing:
    """No default was given."""


@dataclass(frozen=True)
class Snapshot:
    """One generation for several queries; see `ReplicaReader.snapshot`."""

    generation: int
    _cursor: duckdb.DuckDBPyConnection

    def query(self, sql: str, params: Any = None) -> list[tuple[Any, ...]]:
        """The rows of `sql`."""
        return _rows(self._cursor, sql, params)

    def arrow(self, sql: str, params: Any = None) -> "pyarrow.Table":
        """The same as an Arrow table."""
        return _arrow(self._cursor, sql, params)

    def df(self, sql: str, params: Any = None) -> "pandas.DataFrame":
        """The same as a data frame."""
        return _df(self._cursor, sql, params)


class ReplicaReader:
    """Reads the store's current generation; thread-safe; close it, or use it in a `with`.

    poll_s: how often the pointer is looked at. config: DuckDB's settings (`memory_limit`, …).
    """

    def __init__(
        self,
        store: Path | str,
        poll_s: float = POLL_S,
        *,
        config: dict[str, Any] | None = None,
    ) -> None:
        self._layout = Layout(store)
        self._poll_s = poll_s
        self._serving = Serving(self._layout, config or {})
        self._mutex = threading.Lock()
        self._mine = threading.local()
        self._cursors: WeakSet[duckdb.DuckDBPyConnection] = WeakSet()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._answers: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
        self._rung: str | None = None

    def query(self, sql: str, params: Any = None, default: Any = _Missing) -> list[tuple[Any, ...]]:
        """The rows of `sql`, which names tables as the master does.

        default: what to return when no generation can be read and this was never answered.
        Errors: DuckDB's own for a wrong query; `ReplicaUnavailable` where no default is given.
        """
        return list(self._answer("rows", _rows, sql, params, default))

    def arrow(self, sql: str, params: Any = None, default: Any = _Missing) -> "pyarrow.Table":
        """The same as an Arrow table; pyarrow must be installed."""
        return self._answer("arrow", _arrow, sql, params, default)

    def df(self, sql: str, params: Any = None, default: Any = _Missing) -> "pandas.DataFrame":
        """The same as a data frame; pandas must be installed."""
        return self._answer("df", _df, sql, params, default)

    @contextmanager
    def snapshot(self) -> Iterator["Snapshot"]:
        """Several queries on one generation, whatever is published meanwhile.

        Errors: `ReplicaUnavailable`; a failing file is not followed by another here.
        """
        self._begin()
        served = self._serving.enter()
        if served is None:
            raise self._unavailable()
        try:
            cursor = served.instance.cursor()
            try:
                cursor.execute(f"use {DATABASE}")
                cursor.execute("begin transaction read only")
                # DuckDB binds a transaction to a database at its first look into it.
                cursor.execute(
                    "select count(*) from duckdb_tables() where database_name = current_database()"
                )
                yield Snapshot(served.manifest.generation, cursor)
            finally:
                cursor.close()
        finally:
            self._serving.exit(served)

    @property
    def generation(self) -> int | None:
        """The generation that queries are answered from now."""
        self._begin()
        served = self._serving.served
        return served.manifest.generation if served else None

    def status(self) -> ReaderStatus:
        """The rung of the last answer, the ages, and what was refused."""
        self._begin()
        served, pointer = self._serving.served, self._serving.pointer
        shown = served.manifest if served else None
        if shown and pointer and pointer.file == shown.file:
            shown = pointer  # which knows when it was confirmed last
        moment = now()
        return ReaderStatus(
            rung=self._rung or self._serving.rung_of(served),
            generation=shown.generation if shown else None,
            data_age_s=_age(moment, shown.data_as_of if shown else None),
            publication_age_s=_age(moment, shown.confirmed_at if shown else None),
            data_as_of=shown.data_as_of if shown else None,
            published_at=shown.published_at if shown else None,
            last_error=self._serving.error,
            refused=sorted(set(self._serving.refused.values())),
        )

    def close(self) -> None:
        """Stop looking, give the lease back, close DuckDB."""
        self._stop.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        served = self._serving.served
        self._serving.close()
        for cursor in list(self._cursors):
            cursor.close()
        if served:
            served.instance.close()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(
        self,
        shape: str,
        fetch: Callable[[duckdb.DuckDBPyConnection, str, Any], Any],
        sql: str,
        params: Any,
        default: Any,
    ) -> Any:
        self._begin()
        key = (shape, sql, repr(params))
        # Each failure takes a generation, or at least a DuckDB instance, out of the way.
        for _ in range(3):
            served = self._serving.enter()
            if served is None:
                break
            try:
                answer = fetch(self._cursor(served), sql, params)
            except QUERY_ERRORS:
                raise
            except duckdb.Error as error:
                self._serving.mistrust(served, error)
            else:
                self._remember(key, answer)
                self._rung = self._serving.rung_of(served)
                return answer
            finally:
                self._serving.exit(served)
        if key in self._answers:
            self._rung = "memory"
            return self._answers[key]
        if default is not _Missing:
            self._rung = "default"
            return default
        raise self._unavailable()

    def _unavailable(self) -> ReplicaUnavailable:
        why = self._serving.error or "nothing is published yet"
        return ReplicaUnavailable(
            f"No generation in {self._layout.root} can be read ({why}); "
            "publish again, or give a default."
        )

    def _begin(self) -> None:
        if self._thread is not None:
            return
        with self._mutex:
            if self._thread is not None or self._stop.is_set():
                return
            self._serving.look()
            self._thread = threading.Thread(target=self._watch, name="replica-reader", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self._serving.look()
            except Exception as error:  # a watch that ended would leave readers behind for ever
                self._serving.note(f"Looking for a new generation failed: {error!r}")

    def _cursor(self, served: Served) -> duckdb.DuckDBPyConnection:
        """This thread's own connection to the instance."""
        instance: duckdb.DuckDBPyConnection | None = getattr(self._mine, "instance", None)
        if instance is not served.instance:
            cursor = served.instance.cursor()
            cursor.execute(f"use {DATABASE}")
            self._cursors.add(cursor)
            self._mine.instance, self._mine.cursor = served.instance, cursor
        mine: duckdb.DuckDBPyConnection = self._mine.cursor
        return mine

    def _remember(self, key: tuple[str, str, str], answer: Any) -> None:
        if len(answer) > REMEMBERED_ROWS:
            return
        if key[0] == "df":
            answer = answer.copy()  # the caller may change theirs
        with self._mutex:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > REMEMBERED_ANSWERS:
                self._answers.popitem(last=False)


def _rows(cursor: duckdb.DuckDBPyConnection, sql: str, params: Any) -> list[tuple[Any, ...]]:
    return cursor.execute(sql, params).fetchall()


def _arrow(cursor: duckdb.DuckDBPyConnection, sql: str, params: Any) -> Any:
    # As a relation: DuckDB 2.0 copies the rows once more when they come from `execute`.
    return cursor.sql(sql, params=params).to_arrow_table()


def _df(cursor: duckdb.DuckDBPyConnection, sql: str, params: Any) -> Any:
    return cursor.sql(sql, params=params).df()


def _age(moment: datetime, since: datetime | None) -> float | None:
    # A clock that jumped back would make an age negative; it is at least not old.
    return None if since is None else max(0.0, (moment - since).total_seconds())
