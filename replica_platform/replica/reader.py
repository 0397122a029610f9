"""ReplicaReader: every query is answered, and it is known by which rung of the ladder.

    current    the generation the pointer names
    previous   an older generation, verified anew, while the current one cannot be used
    memory     the last good answer to the same question
    default    what the caller gave

One thread looks at the pointer by a single `stat` and swaps generations behind the queries by
`ATTACH OR REPLACE`: those in flight end on the generation they began with, and the lease of a
generation is held until the last of them is done. Needs only duckdb and the standard library.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import duckdb

from replica_platform.replica.errors import ReplicaUnavailable
from replica_platform.replica.generation import Identity, Lease, Unusable, check, identity
from replica_platform.replica.layout import Layout
from replica_platform.replica.manifest import Manifest, NotAManifest, now

if TYPE_CHECKING:
    import pandas
    import pyarrow

POLL_S = 0.5
REMEMBERED_ANSWERS = 64
REMEMBERED_ROWS = 100_000
DATABASE = "replica"

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


class _Serving:
    """A generation that is attached: its lease lasts until it is left and no query runs on it."""

    def __init__(
        self,
        manifest: Manifest,
        lease: Lease,
        identity: Identity,
        instance: duckdb.DuckDBPyConnection,
    ) -> None:
        self.manifest = manifest
        self.lease = lease
        self.identity = identity
        self.instance = instance
        self.queries = 0
        self.left = False


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
        self._config = config or {}
        self._state = threading.Lock()
        self._looking = threading.Lock()
        self._mine = threading.local()
        self._cursors: WeakSet[duckdb.DuckDBPyConnection] = WeakSet()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._serving: _Serving | None = None
        self._pointer: Manifest | None = None
        self._seen: tuple[int, ...] | None = None
        self._bad: dict[tuple[str, Identity], str] = {}
        self._answers: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
        self._rung: str | None = None
        self._error: str | None = None

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

    @property
    def generation(self) -> int | None:
        """The generation that queries are answered from now."""
        self._begin()
        serving = self._serving
        return serving.manifest.generation if serving else None

    def status(self) -> ReaderStatus:
        """The rung of the last answer, the ages, and what was refused."""
        self._begin()
        with self._state:
            serving = self._serving
            shown = serving.manifest if serving else None
            if shown and self._pointer and self._pointer.file == shown.file:
                shown = self._pointer
            moment = now()
            return ReaderStatus(
                rung=self._rung or self._rung_of(serving),
                generation=shown.generation if shown else None,
                data_age_s=_age(moment, shown.data_as_of if shown else None),
                publication_age_s=_age(moment, shown.confirmed_at if shown else None),
                data_as_of=shown.data_as_of if shown else None,
                published_at=shown.published_at if shown else None,
                last_error=self._error,
                refused=sorted(set(self._bad.values())),
            )

    def close(self) -> None:
        """Stop looking, give the lease back, close DuckDB."""
        self._stop.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        with self._looking:
            instance = self._serving.instance if self._serving else None
            self._leave()
            for cursor in list(self._cursors):
                cursor.close()
            if instance:
                instance.close()

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
            serving = self._enter()
            if serving is None:
                break
            try:
                answer = fetch(self._cursor(serving), sql, params)
            except QUERY_ERRORS:
                raise
            except duckdb.Error as error:
                self._mistrust(serving, error)
            else:
                self._remember(key, answer)
                self._rung = self._rung_of(serving)
                return answer
            finally:
                self._exit(serving)
        if key in self._answers:
            self._rung = "memory"
            return self._answers[key]
        if default is not _Missing:
            self._rung = "default"
            return default
        raise ReplicaUnavailable(
            f"No generation in {self._layout.root} can be read "
            f"({self._error or 'nothing is published yet'}); publish again, or give a default."
        )

    def _begin(self) -> None:
        if self._thread is not None:
            return
        with self._looking:
            if self._thread is not None or self._stop.is_set():
                return
            self._look()
            self._thread = threading.Thread(target=self._watch, name="replica-reader", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            with self._looking:
                self._look()

    def _look(self) -> None:
        """Notice a moved pointer by one stat, and take what it names or the best there is."""
        try:
            seen = self._layout.pointer.stat()
            signature = (seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size)
            self._look_at_the_file()
            serving = self._serving
            if signature == self._seen and serving and self._rung_of(serving) == "current":
                return
            self._pointer = self._layout.current()
            self._seen = signature
        except (OSError, NotAManifest) as error:
            self._seen = None
            self._note(f"The pointer {self._layout.pointer} cannot be read: {error}")
        else:
            if self._pointer and self._take(self._pointer):
                self._error = None
                return
        if self._serving is None:
            any(self._take(manifest) for manifest in self._layout.kept())

    def _look_at_the_file(self) -> None:
        """A generation is immutable: if its file was written all the same, read every byte."""
        serving = self._serving
        if serving is None:
            return
        path = self._layout.data(serving.manifest)
        try:
            found = identity(path)
            if found == serving.identity:
                return
            check(path, serving.manifest, distrustful=True)
            if found[0] != serving.identity[0]:
                self._leave()  # another file took its place: what we have open may be damaged
            else:
                serving.identity = found
        except FileNotFoundError:
            return  # what is open stays readable
        except (Unusable, OSError) as error:
            self._refuse(serving.manifest, str(error))
            self._leave()

    def _refuse(self, manifest: Manifest, problem: str) -> None:
        words = f"Generation {manifest.generation} was refused: {problem}"
        self._note(words)
        with suppress(OSError):
            self._bad[(manifest.file, identity(self._layout.data(manifest)))] = words

    def _take(self, manifest: Manifest) -> bool:
        """Serve `manifest` from now on; False when it cannot be."""
        serving = self._serving
        if serving and serving.manifest.file == manifest.file:
            return True
        path = self._layout.data(manifest)
        try:
            found = identity(path)
            if (manifest.file, found) in self._bad:
                return False
            lease = Lease.take(self._layout, manifest)
            try:
                check(path, manifest)
                self._attach(manifest, lease, found)
            except BaseException:
                lease.release()
                raise
        except OSError as error:
            self._note(f"Generation {manifest.generation} cannot be read: {error}")
            return False
        except (Unusable, duckdb.Error) as error:
            if isinstance(error, Unusable) and error.passing:
                self._note(f"Generation {manifest.generation} is not to be had: {error}")
            else:
                self._refuse(manifest, str(error))
            return False
        return True

    def _attach(self, manifest: Manifest, lease: Lease, identity: Identity) -> None:
        before = self._serving
        instance = before.instance if before else duckdb.connect(":memory:", config=self._config)
        path = str(self._layout.data(manifest)).replace("'", "''")
        instance.execute(f"attach or replace '{path}' as {DATABASE} (read_only)")
        with self._state:
            self._serving = _Serving(manifest, lease, identity, instance)
        if before:
            self._retire(before)

    def _mistrust(self, serving: _Serving, error: duckdb.Error) -> None:
        """A query failed in the file: drop the poisoned instance, and the file if it is bad."""
        with self._looking:
            if self._serving is not serving:
                return  # another query was here before, or the generation was swapped anyway
            self._note(f"Generation {serving.manifest.generation} failed a query: {error}")
            self._leave()
            path = self._layout.data(serving.manifest)
            try:
                check(path, serving.manifest, distrustful=True)
            except (Unusable, OSError) as problem:
                self._refuse(serving.manifest, str(problem))
            self._look()

    def _leave(self) -> None:
        with self._state:
            serving, self._serving = self._serving, None
        if serving:
            self._retire(serving)

    def _retire(self, serving: _Serving) -> None:
        with self._state:
            serving.left = True
            idle = serving.queries == 0
        if idle:
            serving.lease.release()

    def _enter(self) -> _Serving | None:
        if self._serving is None and not self._stop.is_set():
            with self._looking:
                self._look()  # with nothing to serve there is nothing to wait for
        with self._state:
            serving = self._serving
            if serving:
                serving.queries += 1
            return serving

    def _exit(self, serving: _Serving) -> None:
        with self._state:
            serving.queries -= 1
            idle = serving.left and serving.queries == 0
        if idle:
            serving.lease.release()

    def _cursor(self, serving: _Serving) -> duckdb.DuckDBPyConnection:
        """This thread's own connection to the instance."""
        instance: duckdb.DuckDBPyConnection | None = getattr(self._mine, "instance", None)
        if instance is not serving.instance:
            cursor = serving.instance.cursor()
            cursor.execute(f"use {DATABASE}")
            self._cursors.add(cursor)
            self._mine.instance, self._mine.cursor = serving.instance, cursor
        mine: duckdb.DuckDBPyConnection = self._mine.cursor
        return mine

    def _remember(self, key: tuple[str, str, str], answer: Any) -> None:
        if len(answer) > REMEMBERED_ROWS:
            return
        with self._state:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > REMEMBERED_ANSWERS:
                self._answers.popitem(last=False)

    def _rung_of(self, serving: _Serving | None) -> str | None:
        if serving is None:
            return None
        pointer = self._pointer
        same = pointer is not None and pointer.file == serving.manifest.file
        return "current" if same else "previous"

    def _note(self, words: str) -> None:
        self._error = " ".join(words.split())


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
