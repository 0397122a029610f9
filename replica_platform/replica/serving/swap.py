"""Which generation is attached, and how another one replaces it while queries run.

Reads the pointer, leases, checks and attaches; remembers the generations it refused. What a query
gets when nothing can be attached is not here: see `reader`. Needs duckdb and the standard library.
"""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from replica_platform.replica.copy.file_format import attach_sql
from replica_platform.replica.serving.lease import Lease
from replica_platform.replica.store.integrity import Damaged, Unusable, check
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest, Seal, now
from replica_platform.replica.store.moment import at_in_words, kept_in_words

# A refused generation is tried again after this time, then after twice as long each time. Trying
# costs a `stat`, or the reading of the whole file if its seal is broken.
RETRY_S = 5.0
LONGEST_RETRY_S = 300.0


@dataclass(frozen=True)
class Refusal:
    """Why a generation is not used for a while.

    Attributes:
        sentence: The generation, the time and the cause.
        retry_s: How long it is not tried again, in seconds; None until its file changes.
        retry_at: When it is tried again, by the monotonic clock.
    """

    sentence: str
    retry_s: float | None
    retry_at: float

    @property
    def holds(self) -> bool:
        """Whether the generation is not to be tried yet."""
        return self.retry_s is None or time.monotonic() < self.retry_at


def concerns_generation(error: duckdb.Error, path: Path) -> bool:
    """Return whether a query's error may come from the generation's file or the DuckDB instance.

    Internal and fatal errors make the instance unusable. A failed checksum names no file; other
    IO errors name theirs. Every other error is the query's.
    """
    if isinstance(
        error, duckdb.InternalError | duckdb.FatalException | duckdb.SerializationException
    ):
        return True
    message = str(error)
    if "Corrupt database file" in message:
        # DuckDB 2.0 raises it without a class; a query can raise any text with another one.
        return isinstance(error, duckdb.IOException) or type(error) is duckdb.Error
    return isinstance(error, duckdb.IOException) and str(path) in message


class Attached:
    """A generation that is attached.

    Its lease lasts until it was replaced and no query runs on it.

    Attributes:
        manifest: The generation.
        lease: The lock that keeps it.
        seal: Its file when it was attached.
        instance: The DuckDB instance that it is attached to.
        queries: How many queries run on it.
        replaced: Whether new queries run on another one.
    """

    def __init__(
        self, manifest: Manifest, lease: Lease, seal: Seal, instance: duckdb.DuckDBPyConnection
    ) -> None:
        self.manifest = manifest
        self.lease = lease
        self.seal = seal
        self.instance = instance
        self.queries = 0
        self.replaced = False


class GenerationServer:
    """The generation that queries run on; thread-safe.

    Attributes:
        layout: The store.
        at: The number or the time of the only generation to serve; None for the current one.
        attached: The generation that new queries run on.
        pointer: The manifest that the pointer held when it was last read.
        error: The last problem.
        refused: Why and when each generation was refused, by its file and the file's seal. A
            damaged one is not tried again until the file changes, another one after a while.
    """

    def __init__(
        self, layout: Layout, config: dict[str, Any], at: int | datetime | None = None
    ) -> None:
        self.layout = layout
        self.at = at
        self.attached: Attached | None = None
        self.pointer: Manifest | None = None
        self.error: str | None = None
        self.refused: dict[tuple[str, Seal], Refusal] = {}
        self._config = config
        self._state = threading.Lock()
        self._refreshing = threading.RLock()
        self._pointer_signature: tuple[int, ...] | None = None
        self._closed = False

    def refresh(self) -> None:
        """Attach the generation that the pointer names, or the newest that can be read.

        Costs a `stat` of the pointer and one of the attached file while nothing changes.
        """
        with self._refreshing:
            if not self._closed:
                self._refresh()

    def _refresh(self) -> None:
        self._check_attached_file()
        if self.at is not None:
            self._serve_kept(self.at)
            return
        try:
            stat = self.layout.pointer.stat()
            signature = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
            if signature == self._pointer_signature and self.is_current(self.attached):
                return
            self.pointer = self.layout.current()
            self._pointer_signature = signature
        except (OSError, NotAManifest) as error:
            self._pointer_signature = None
            self.pointer = None  # so that the status says it
            self.record_error(f"The pointer {self.layout.pointer} cannot be read: {error}")
            copied = self.layout.copied_pointer()
            if copied and self._switch_to(copied):
                return
        else:
            if self.pointer and self._switch_to(self.pointer):
                self.error = None
                return
        if self.attached is None:
            any(self._switch_to(manifest) for manifest in self.layout.fallbacks())

    def _serve_kept(self, at: int | datetime) -> None:
        """Attach the generation of that number or time; no other one stands in for it."""
        if self.attached is not None:
            return
        manifest = self.layout.kept_at(at)
        if manifest is not None:
            self._switch_to(manifest)
            return
        kept = kept_in_words(self.layout.kept())
        self.record_error(f"{at_in_words(at)} is not kept; kept are {kept}")

    def _check_attached_file(self) -> None:
        """Read every byte of the attached file if it was written, although it is immutable."""
        attached = self.attached
        if attached is None:
            return
        path = self.layout.data(attached.manifest)
        try:
            seal = Seal.of(path)
            if seal == attached.seal and not self.layout.is_marked_damaged(attached.manifest):
                return
            check(path, attached.manifest, read_all=True)
            if seal.inode != attached.seal.inode:
                self._drop_attached()  # a new file; the open one may be damaged
            else:
                attached.seal = seal
        except FileNotFoundError:
            return  # the open file stays readable
        except (Unusable, OSError) as error:
            self._refuse(attached.manifest, error)
            self._drop_attached()

    def _switch_to(self, manifest: Manifest) -> bool:
        """Attach a generation; return whether new queries run on it."""
        attached = self.attached
        if attached and attached.manifest.file == manifest.file:
            return True
        path = self.layout.data(manifest)
        try:
            seal = Seal.of(path)
            refusal = self.refused.get((manifest.file, seal))
            if refusal and refusal.holds:
                return False
            lease = Lease.take(self.layout, manifest)
            try:
                check(path, manifest)
                self._attach(manifest, lease, seal)
            except BaseException:
                lease.release()
                raise
        except OSError as error:
            self.record_error(f"Generation {manifest.generation} cannot be read: {error}")
            return False
        except (Unusable, duckdb.Error) as error:
            if isinstance(error, Unusable) and error.transient:
                self.record_error(f"Generation {manifest.generation} is not available: {error}")
            else:
                self._refuse(manifest, error)
            return False
        self.refused.pop((manifest.file, seal), None)
        return True

    def _attach(self, manifest: Manifest, lease: Lease, seal: Seal) -> None:
        before = self.attached
        # `attach or replace` replaces only the same name.
        if before and before.manifest.catalog == manifest.catalog:
            instance = before.instance
        else:
            instance = duckdb.connect(":memory:", config=self._config)
        instance.execute(attach_sql(self.layout.data(manifest), manifest.catalog))
        with self._state:
            self.attached = Attached(manifest, lease, seal, instance)
        if before:
            self._mark_replaced(before)

    def handle_failure(
        self, attached: Attached, error: duckdb.Error, *, read_all: bool = True
    ) -> bool:
        """Drop the DuckDB instance in which a query failed, and refuse a damaged file.

        Returns:
            Whether the file is intact; False too when another query's failure was handled.
        """
        with self._refreshing:
            if self.attached is not attached:
                return False
            self.record_error(f"Generation {attached.manifest.generation} failed a query: {error}")
            self._drop_attached()
            intact = True
            try:
                check(self.layout.data(attached.manifest), attached.manifest, read_all=read_all)
            except (Unusable, OSError) as problem:
                intact = False
                self._refuse(attached.manifest, problem)
            self.refresh()
            return intact

    def _refuse(self, manifest: Manifest, cause: Exception) -> None:
        moment = f"{now():%Y-%m-%d %H:%M:%S} UTC"
        problem = " ".join(str(cause).split())
        sentence = f"Generation {manifest.generation} was refused at {moment}: {problem}"
        self.record_error(sentence)
        with suppress(OSError):
            key = manifest.file, Seal.of(self.layout.data(manifest))
            last = self.refused.get(key)
            retry_s = min(2 * last.retry_s, LONGEST_RETRY_S) if last and last.retry_s else RETRY_S
            self.refused[key] = Refusal(
                sentence,
                None if isinstance(cause, Damaged) else retry_s,
                time.monotonic() + retry_s,
            )

    def _drop_attached(self) -> None:
        with self._state:
            attached, self.attached = self.attached, None
        if attached:
            self._mark_replaced(attached)

    def _mark_replaced(self, attached: Attached) -> None:
        with self._state:
            attached.replaced = True
            idle = attached.queries == 0
        if idle:
            attached.lease.release()

    def begin_query(self) -> Attached | None:
        """Return the generation to query, None without one; `end_query` gives it back."""
        if self.attached is None:
            self.refresh()  # without a generation there is no reason to wait for the next poll
        with self._state:
            attached = self.attached
            if attached:
                attached.queries += 1
            return attached

    def end_query(self, attached: Attached) -> None:
        """Give back a generation; the last query of a replaced one releases its lease."""
        with self._state:
            attached.queries -= 1
            idle = attached.replaced and attached.queries == 0
        if idle:
            attached.lease.release()

    def is_current(self, attached: Attached | None) -> bool:
        """Return whether that generation is the one that the pointer names."""
        pointer = self.pointer
        return bool(attached and pointer and pointer.file == attached.manifest.file)

    def close(self) -> None:
        """Drop the attached generation and attach no other."""
        with self._refreshing:
            self._closed = True
            self._drop_attached()

    def record_error(self, problem: str) -> None:
        """Remember the last problem, for the status."""
        self.error = " ".join(problem.split())
