"""Which generation is attached, and how another one replaces it while queries run.

Reads the pointer, leases, checks and attaches; remembers the generations it refused. What a query
gets when nothing can be attached is not here: see `reader`. Needs duckdb and the standard library.
"""

import threading
from contextlib import suppress
from typing import Any

import duckdb

from replica_platform.replica.serving.lease import Lease
from replica_platform.replica.store.integrity import Unusable, check
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest, Seal

DATABASE = "replica"


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
        attached: The generation that new queries run on.
        pointer: The manifest that the pointer held when it was last read.
        error: The last problem.
        refused: Why each damaged generation was refused, by its file and the file's seal: it is
            not tried again until the file changes.
    """

    def __init__(self, layout: Layout, config: dict[str, Any]) -> None:
        self.layout = layout
        self.attached: Attached | None = None
        self.pointer: Manifest | None = None
        self.error: str | None = None
        self.refused: dict[tuple[str, Seal], str] = {}
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
        try:
            stat = self.layout.pointer.stat()
            signature = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
            if signature == self._pointer_signature and self.is_current(self.attached):
                return
            self.pointer = self.layout.current()
            self._pointer_signature = signature
        except (OSError, NotAManifest) as error:
            self._pointer_signature = None
            self.record_error(f"The pointer {self.layout.pointer} cannot be read: {error}")
        else:
            if self.pointer and self._switch_to(self.pointer):
                self.error = None
                return
        if self.attached is None:
            any(self._switch_to(manifest) for manifest in self.layout.kept())

    def _check_attached_file(self) -> None:
        """Read every byte of the attached file if it was written, although it is immutable."""
        attached = self.attached
        if attached is None:
            return
        path = self.layout.data(attached.manifest)
        try:
            seal = Seal.of(path)
            if seal == attached.seal:
                return
            check(path, attached.manifest, read_all=True)
            if seal.inode != attached.seal.inode:
                self._drop_attached()  # a new file; the open one may be damaged
            else:
                attached.seal = seal
        except FileNotFoundError:
            return  # the open file stays readable
        except (Unusable, OSError) as error:
            self._refuse(attached.manifest, str(error))
            self._drop_attached()

    def _switch_to(self, manifest: Manifest) -> bool:
        """Attach a generation; return whether new queries run on it."""
        attached = self.attached
        if attached and attached.manifest.file == manifest.file:
            return True
        path = self.layout.data(manifest)
        try:
            seal = Seal.of(path)
            if (manifest.file, seal) in self.refused:
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
                self._refuse(manifest, str(error))
            return False
        return True

    def _attach(self, manifest: Manifest, lease: Lease, seal: Seal) -> None:
        before = self.attached
        instance = before.instance if before else duckdb.connect(":memory:", config=self._config)
        path = str(self.layout.data(manifest)).replace("'", "''")
        instance.execute(f"attach or replace '{path}' as {DATABASE} (read_only)")
        with self._state:
            self.attached = Attached(manifest, lease, seal, instance)
        if before:
            self._mark_replaced(before)

    def handle_failure(self, attached: Attached, error: duckdb.Error) -> None:
        """Drop the DuckDB instance in which a query failed, and refuse a damaged file."""
        with self._refreshing:
            if self.attached is not attached:
                return  # handled for another query, or replaced
            self.record_error(f"Generation {attached.manifest.generation} failed a query: {error}")
            self._drop_attached()
            path = self.layout.data(attached.manifest)
            try:
                check(path, attached.manifest, read_all=True)
            except (Unusable, OSError) as problem:
                self._refuse(attached.manifest, str(problem))
            self.refresh()

    def _refuse(self, manifest: Manifest, problem: str) -> None:
        sentence = f"Generation {manifest.generation} was refused: {problem}"
        self.record_error(sentence)
        with suppress(OSError):
            seal = Seal.of(self.layout.data(manifest))
            self.refused[(manifest.file, seal)] = sentence

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
