"""Writing to a lake: many writers at once, conflicts retried, each write committed once.

A write is a function that is called with a connection in a transaction. It is called again when
another writer changed the same rows first. Its commit carries a token under a unique index: after
a lost acknowledgement the catalog tells whether it was committed, and it cannot be committed twice.
Commits of one lake are made one after another, under a lock in the catalog; the data is written
before, side by side.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import duckdb

from replica_platform.core.postgres import CannotConnect
from replica_platform.core.reports import DoneReport
from replica_platform.lake.catalog import TOKEN, Catalog
from replica_platform.lake.definition import NAME, Lake
from replica_platform.lake.errors import LakeConflict, LakeUnavailable, WrongLake
from replica_platform.lake.files import parquet_files
from replica_platform.lake.session import literal, opened, unmasked

ATTEMPTS = 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 2.0
# Under the commit lock a second attempt of DuckLake's own has no other writer to wait for.
RETRY_WAIT_MS = 1
# How DuckLake says that another writer came first: nothing of the transaction was written.
CONFLICTS = ("Transaction conflict", "maximum retry count", "could not serialize")
# What an error of the catalog's server names; the caller's own errors do not.
OF_THE_CATALOG = ("DuckLake", "Postgres", "postgres")
# How httpfs says that a bucket refuses a request, such as one with wrong credentials.
REFUSED = re.compile(r"\(HTTP 4\d\d")

Work = Callable[[duckdb.DuckDBPyConnection], object]


@dataclass(frozen=True)
class Commit(DoneReport):
    """A write that is in the lake.

    Attributes:
        snapshot: The snapshot that it made; None where it changed nothing.
        attempts: How often it was tried; 0 where its key was committed before.
    """

    snapshot: int | None
    attempts: int

    @property
    def sentence(self) -> str:
        """What was committed."""
        if self.snapshot is None:
            return "Nothing was changed, so there is no new snapshot."
        if not self.attempts:
            return f"It was committed before, as snapshot {self.snapshot}."
        return f"Committed as snapshot {self.snapshot}, at attempt {self.attempts}."


class _Again(Exception):
    """An attempt failed, and another one may succeed.

    Attributes:
        cause: DuckDB's or the catalog's message, without secrets.
        is_conflict: Whether it is certain that nothing was written.
    """

    def __init__(self, cause: str, *, is_conflict: bool) -> None:
        super().__init__(cause)
        self.cause = cause
        self.is_conflict = is_conflict


class LakeWriter:
    """An open lake to write to, for one thread; the first one makes the lake.

    Args:
        lake: The lake.

    Raises:
        CannotConnect: The catalog's server does not answer.
        PlatformError: One of the classes in `lake.errors`, for example that the place of the data
            of a lake that is to be made has files already.
    """

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        with ExitStack() as opening:
            self._catalog = opening.enter_context(Catalog(lake))
            self._session = ExitStack()
            opening.callback(self._close_session)
            self._connection = self._make_or_open()
            self._open = opening.pop_all()

    def __enter__(self) -> "LakeWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._open.close()

    def write(self, work: Work, *, key: str | None = None, attempts: int = ATTEMPTS) -> Commit:
        """Run `work` in one transaction and commit it once.

        Args:
            work: Called with a connection whose default database is the lake; it does not commit.
                It is called again after a conflict, so what else it does must bear repetition.
            key: What tells this write from all others. A key whose commit is among the kept
                snapshots is not written again, also by another process.
            attempts: How often it is tried, with growing pauses.

        Returns:
            The commit.

        Raises:
            LakeConflict: Other writers came first in every attempt; nothing was written.
            LakeUnavailable: The catalog or the data did not answer in any attempt. The text tells
                the key by which the write is repeated without being doubled.
            duckdb.Error: The statements of `work` are wrong; nothing was written.
        """
        token = f"{TOKEN}{key or uuid4().hex}"
        number = 0
        while True:
            number += 1
            try:
                # A new token cannot be in the catalog yet.
                return self._attempt(work, token, number, is_new=number == 1 and key is None)
            except _Again as failed:
                if number >= attempts:
                    raise self._gave_up(failed, token.removeprefix(TOKEN), number) from None
            # Not stamina: its log of retries goes to stdout where structlog is installed.
            pause_s = min(FIRST_PAUSE_S * 2 ** min(number, 16), LONGEST_PAUSE_S)
            time.sleep(random.uniform(pause_s / 2, pause_s))

    def _attempt(self, work: Work, token: str, number: int, *, is_new: bool) -> Commit:
        with self._retried():
            if not is_new and (done := self._catalog.commit_of(token)) is not None:
                return Commit(done, number - 1)
            try:
                self._connection.execute("begin")
                work(self._connection)
                self._connection.execute(
                    f"call {NAME}.set_commit_message(null, null, extra_info => {literal(token)})"
                )
                with self._catalog.lock():
                    self._connection.execute("commit")
            except BaseException:
                with suppress(duckdb.Error):
                    self._connection.execute("rollback")
                raise
            return Commit(self._catalog.commit_of(token), number)

    @contextmanager
    def _retried(self) -> Iterator[None]:
        """Tell what may succeed when it is tried again from what is wrong with the write."""
        try:
            yield
        except (CannotConnect, LakeUnavailable) as error:
            raise _Again(str(error), is_conflict=False) from None
        except duckdb.Error as error:
            clean = unmasked(error, self.lake)
            text = " ".join(str(clean).split())
            is_conflict = any(words in text for words in CONFLICTS)
            if not is_conflict:
                self._connection = self._open_session()
                of_the_catalog = any(word in text for word in OF_THE_CATALOG)
                if not of_the_catalog and not self._is_of_the_bucket(error, text):
                    raise clean from None
            raise _Again(_brief(text), is_conflict=is_conflict) from None

    def _is_of_the_bucket(self, error: duckdb.Error, text: str) -> bool:
        """Return whether the bucket did not answer or failed; what it refuses is not among it."""
        failed = isinstance(error, duckdb.IOException) and "HTTP" in text
        return self.lake.in_bucket and failed and REFUSED.search(text) is None

    def _gave_up(self, failed: _Again, key: str, attempts: int) -> LakeConflict | LakeUnavailable:
        name = self.lake.schema
        if failed.is_conflict:
            return LakeConflict(
                f"Other writers of the lake {name} came first in {attempts} attempts, and nothing "
                f"was written: {failed.cause}. Try again later, let fewer writers change the same "
                "rows, or raise `attempts`."
            )
        return LakeUnavailable(
            f"The lake {name} did not answer in {attempts} attempts: {failed.cause}. Whether the "
            f"last one was committed is not known; write it again with key={key!r}, which does "
            "not double it."
        )

    def _make_or_open(self) -> duckdb.DuckDBPyConnection:
        """Open the lake; of several processes that find none, one makes it."""
        if self._catalog.is_ready():
            return self._open_session()
        with self._catalog.lock():
            if not self._catalog.exists():
                _assert_free(self.lake)
                if not self.lake.in_bucket:
                    Path(self.lake.data).mkdir(mode=0o755, parents=True, exist_ok=True)
            connection = self._open_session(make=True)
            self._catalog.make_ready()
        return connection

    def _open_session(self, *, make: bool = False) -> duckdb.DuckDBPyConnection:
        """Open DuckDB's connection, in the place of one that may have become unusable."""
        self._close_session()
        connection = self._session.enter_context(opened(self.lake, read_only=False, make=make))
        connection.execute(f"set ducklake_retry_wait_ms = {RETRY_WAIT_MS}")
        return connection

    def _close_session(self) -> None:
        self._session.close()


def _assert_free(lake: Lake) -> None:
    """Refuse a place that has files: maintenance would take them for the lake's orphans."""
    if found := parquet_files(lake):
        raise WrongLake(
            f"{lake.data} has {len(found)} Parquet files that belong to no lake, such as "
            f"{min(found)}; name an empty place as the lake's data."
        )


def _brief(text: str) -> str:
    """Return an error without the statements that DuckLake repeats, which hold values of rows."""
    return (
        text.partition(" Failed to execute query")[0].partition(" Failed to flush")[0].rstrip(".")
    )
