"""Which generation is served, and how one takes the place of another behind the queries.

Looks at the pointer, leases, checks, attaches, refuses what is bad and remembers it. What a query
is answered with when nothing can be served is the reader's. Only duckdb and the standard library.
"""

import threading
from contextlib import suppress
from typing import Any

import duckdb

from replica_platform.replica.serving.generation import Identity, Lease, Unusable, check, identity
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest

DATABASE = "replica"


class Served:
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


class Serving:
    """The generation that queries run on now; thread-safe.

    `pointer` is what the pointer last said, `error` the last trouble, `refused` what is bad by
    file and identity, so that it is not tried again until the file is another.
    """

    def __init__(self, layout: Layout, config: dict[str, Any]) -> None:
        self.layout = layout
        self.served: Served | None = None
        self.pointer: Manifest | None = None
        self.error: str | None = None
        self.refused: dict[tuple[str, Identity], str] = {}
        self._config = config
        self._state = threading.Lock()
        self._looking = threading.RLock()
        self._seen: tuple[int, ...] | None = None
        self._closed = False

    def look(self) -> None:
        """Notice a moved pointer by one stat, and take what it names or the best there is."""
        with self._looking:
            if not self._closed:
                self._look()

    def _look(self) -> None:
        self._look_at_the_file()
        try:
            seen = self.layout.pointer.stat()
            signature = (seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size)
            served = self.served
            if signature == self._seen and served and self.rung_of(served) == "current":
                return
            self.pointer = self.layout.current()
            self._seen = signature
        except (OSError, NotAManifest) as error:
            self._seen = None
            self.note(f"The pointer {self.layout.pointer} cannot be read: {error}")
        else:
            if self.pointer and self._take(self.pointer):
                self.error = None
                return
        if self.served is None:
            any(self._take(manifest) for manifest in self.layout.kept())

    def _look_at_the_file(self) -> None:
        """A generation is immutable: if its file was written all the same, read every byte."""
        served = self.served
        if served is None:
            return
        path = self.layout.data(served.manifest)
        try:
            found = identity(path)
            if found == served.identity:
                return
            check(path, served.manifest, distrustful=True)
            if found[0] != served.identity[0]:
                self._leave()  # another file took its place: what we have open may be damaged
            else:
                served.identity = found
        except FileNotFoundError:
            return  # what is open stays readable
        except (Unusable, OSError) as error:
            self._refuse(served.manifest, str(error))
            self._leave()

    def _refuse(self, manifest: Manifest, problem: str) -> None:
        words = f"Generation {manifest.generation} was refused: {problem}"
        self.note(words)
        with suppress(OSError):
            self.refused[(manifest.file, identity(self.layout.data(manifest)))] = words

    def _take(self, manifest: Manifest) -> bool:
        """Serve `manifest` from now on; False when it cannot be."""
        served = self.served
        if served and served.manifest.file == manifest.file:
            return True
        path = self.layout.data(manifest)
        try:
            found = identity(path)
            if (manifest.file, found) in self.refused:
                return False
            lease = Lease.take(self.layout, manifest)
            try:
                check(path, manifest)
                self._attach(manifest, lease, found)
            except BaseException:
                lease.release()
                raise
        except OSError as error:
            self.note(f"Generation {manifest.generation} cannot be read: {error}")
            return False
        except (Unusable, duckdb.Error) as error:
            if isinstance(error, Unusable) and error.passing:
                self.note(f"Generation {manifest.generation} is not to be had: {error}")
            else:
                self._refuse(manifest, str(error))
            return False
        return True

    def _attach(self, manifest: Manifest, lease: Lease, identity: Identity) -> None:
        before = self.served
        instance = before.instance if before else duckdb.connect(":memory:", config=self._config)
        path = str(self.layout.data(manifest)).replace("'", "''")
        instance.execute(f"attach or replace '{path}' as {DATABASE} (read_only)")
        with self._state:
            self.served = Served(manifest, lease, identity, instance)
        if before:
            self._retire(before)

    def mistrust(self, served: Served, error: duckdb.Error) -> None:
        """A query failed in the file: drop the poisoned instance, and the file if it is bad."""
        with self._looking:
            if self.served is not served:
                return  # another query was here before, or the generation was swapped anyway
            self.note(f"Generation {served.manifest.generation} failed a query: {error}")
            self._leave()
            path = self.layout.data(served.manifest)
            try:
                check(path, served.manifest, distrustful=True)
            except (Unusable, OSError) as problem:
                self._refuse(served.manifest, str(problem))
            self.look()

    def _leave(self) -> None:
        with self._state:
            served, self.served = self.served, None
        if served:
            self._retire(served)

    def _retire(self, served: Served) -> None:
        with self._state:
            served.left = True
            idle = served.queries == 0
        if idle:
            served.lease.release()

    def enter(self) -> Served | None:
        """The generation to query; give it back by `exit`. None when there is none."""
        if self.served is None:
            self.look()  # with nothing to serve there is nothing to wait for
        with self._state:
            served = self.served
            if served:
                served.queries += 1
            return served

    def exit(self, served: Served) -> None:
        """Give back what `enter` gave; the last one out releases the lease of what was left."""
        with self._state:
            served.queries -= 1
            idle = served.left and served.queries == 0
        if idle:
            served.lease.release()

    def rung_of(self, served: Served | None) -> str | None:
        """Whether it is what the pointer names: current, else previous."""
        if served is None:
            return None
        pointer = self.pointer
        same = pointer is not None and pointer.file == served.manifest.file
        return "current" if same else "previous"

    def close(self) -> None:
        """Serve nothing any more."""
        with self._looking:
            self._closed = True
            self._leave()

    def note(self, words: str) -> None:
        """Remember the last trouble, for the status."""
        self.error = " ".join(words.split())
