"""The master: one DuckDB file, one writer at a time, no log left beside it.

Batch and publication exclude each other by a lock on a file of their own, which DuckDB's locks
(lost when this process closes any handle of the master) cannot be. What readers see is not
here: they never open the master.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import duckdb

from replica_platform.core import locks
from replica_platform.core.files import fsync_dir
from replica_platform.replica.copy.header import HEADER_BYTES, Header, NotDuckDB, parse_header
from replica_platform.replica.errors import (
    MasterBusy,
    MasterChanging,
    MasterDamaged,
    MasterDenied,
    MasterMissing,
    MasterOpenHere,
    explaining,
)

# Before v1.4.0 a log does not know its database, and a foreign one is silently replayed;
# DuckDB 2.0's own default cannot be read by 1.5.
STORAGE_VERSION = "v1.5.0"
PATIENCE_S = 30.0
# How DuckDB (1.5 and 2.0) begins its message; damage is an IO Error too and names a "block".
LOCKED = "IO Error: Could not set lock on file"
SIDECARS = (".wal", ".wal.checkpoint", ".wal.recovery")


class Master:
    """The one writable database at `path`; every handle it gives is closed again.

    `patience_s`: how long to wait for another writer before `MasterBusy` names it.
    """

    def __init__(self, path: Path | str, *, patience_s: float = PATIENCE_S) -> None:
        self.path = Path(path).absolute()
        self.patience_s = patience_s

    @property
    def lock_path(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")

    @property
    def sidecars(self) -> list[Path]:
        """Logs that lie beside the master: none after a clean close."""
        beside = [self.path.with_name(self.path.name + suffix) for suffix in SIDECARS]
        return [path for path in beside if path.exists()]

    @contextmanager
    def write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction on the master: committed, checkpointed and closed, or rolled back.

        The file is made when absent. Errors: `MasterBusy`, `MasterDamaged`.
        """
        with self._locked():
            if not self.path.exists():
                self._create()
            connection = self._connect(read_only=False)
            try:
                connection.execute("begin")
                try:
                    yield connection
                except BaseException:
                    with suppress(duckdb.Error):
                        connection.execute("rollback")
                    raise
                _commit(connection)
                connection.execute("checkpoint")
            finally:
                connection.close()
            self._assert_settled()

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection, for the batch's own eyes; writers wait for it."""
        with self._locked(shared=True):
            self._assert_exists()
            connection = self._connect(read_only=True)
            try:
                yield connection
            finally:
                connection.close()

    @contextmanager
    def settled(self) -> Iterator["Settled"]:
        """The master at rest: closed, without a log, and nobody may write it meanwhile.

        A log left by a crash is taken in first. Errors: `MasterMissing`, `MasterBusy`,
        `MasterOpenHere`, `MasterDamaged`, and `MasterChanging` if somebody wrote all the same.
        """
        with self._locked():
            self._assert_exists()
            self._assert_not_open_here()
            if self.sidecars:
                self._take_in_the_log()
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._keep_writers_out(fd)
                yield Settled(self.path, fd)
            finally:
                os.close(fd)

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        making = self.path.with_name(f".making-{self.path.name}")
        making.unlink(missing_ok=True)
        with explaining(self.path.parent), duckdb.connect() as connection:
            quoted = str(making).replace("'", "''")
            connection.execute(f"attach '{quoted}' as making (storage_version '{STORAGE_VERSION}')")
            connection.execute("detach making")
            making.rename(self.path)
            fsync_dir(self.path.parent)

    def _connect(self, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only)
            except duckdb.Error as error:
                words = " ".join(str(error).split())
                self._assert_not_open_here()
                if "Permission denied" in words:
                    raise self._denied() from error
                if not words.startswith(LOCKED):
                    raise MasterDamaged(
                        f"The master {self.path} cannot be opened: {words}. Restore it "
                        "from a backup or the store's last good generation; readers keep theirs."
                    ) from error
                if time.monotonic() >= deadline:
                    raise self._busy(words) from error
                time.sleep(locks.POLL_S)

    def _busy(self, words: str = "") -> MasterBusy:
        found = [h for path in (self.lock_path, self.path) for h in locks.holders(path)]
        pid = re.search(r"PID (\d+)", words)
        who = f"PID {pid[1]}" if pid and not found else locks.describe(found)
        return MasterBusy(
            f"The master {self.path} is being written or read by {who}; nothing was changed. "
            "Wait for it to finish, or stop it, and run this again."
        )

    def _denied(self) -> MasterDenied:
        return MasterDenied(
            f"This user may not use the master {self.path} or its lock {self.lock_path.name}; "
            "nothing was changed. Give it read and write permission on both and their folder."
        )

    @contextmanager
    def _locked(self, *, shared: bool = False) -> Iterator[None]:
        with ExitStack() as held:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(
                    locks.file_lock(self.lock_path, shared=shared, wait_s=self.patience_s)
                )
            except locks.LockHeld:
                raise self._busy() from None
            except PermissionError:
                raise self._denied() from None
            yield

    def _assert_exists(self) -> None:
        if not self.path.exists():
            raise MasterMissing(
                f"There is no master at {self.path}; run the batch that fills it, "
                "or give the path of the one you mean."
            )

    def _assert_not_open_here(self) -> None:
        if any(holder.pid == os.getpid() for holder in locks.holders(self.path)):
            raise MasterOpenHere(
                f"This process still has {self.path} open in DuckDB, and reading the file here "
                "would drop DuckDB's lock on it; close that connection, and publish again."
            )

    def _assert_settled(self) -> None:
        if left := self.sidecars:
            raise MasterDamaged(
                f"{left[0]} is still there after a checkpoint and a close; close whatever else has "
                "the master open, and publish again."
            )

    def _take_in_the_log(self) -> None:
        connection = self._connect(read_only=False)
        try:
            connection.execute("checkpoint")
        finally:
            connection.close()
        self._assert_settled()

    def _keep_writers_out(self, fd: int) -> None:
        """Take the lock that a DuckDB reader takes: a writer that ignores ours is refused."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    raise self._busy() from None
                time.sleep(locks.POLL_S)


class Settled:
    """A master that nobody writes: its open file, and whether it is still what it was."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.header, self.header_bytes = self._look()
        self.bytes = os.fstat(fd).st_size

    def assert_unchanged(self) -> None:
        """Errors: `MasterChanging`, when the file is not the one that was settled."""
        # Read by name as well: a master replaced by a rename leaves our handle as it was.
        if (
            os.pread(self.fd, len(self.header_bytes), 0) != self.header_bytes
            or os.fstat(self.fd).st_size != self.bytes
            or self.path.stat().st_ino != os.fstat(self.fd).st_ino
        ):
            raise MasterChanging(
                f"Somebody wrote {self.path} while it was copied, past the writer's lock; the copy "
                "was thrown away. Write the master only through Master.write, and publish again."
            )

    def _look(self) -> tuple[Header, bytes]:
        raw = os.pread(self.fd, HEADER_BYTES, 0)
        try:
            return parse_header(raw), raw
        except NotDuckDB as error:
            raise MasterDamaged(
                f"The master {self.path} is not a sound DuckDB file: {error}; "
                "restore it from a backup, readers keep their generation."
            ) from error


def _commit(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.execute("commit")
    except duckdb.TransactionException as error:
        # Whoever ended our transaction inside the block has committed or rolled back already.
        if "no transaction is active" not in str(error):
            raise
