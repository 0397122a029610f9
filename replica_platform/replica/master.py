"""The master: one DuckDB file, one writer at a time, and no log left beside it.

Batches and publications exclude each other by a lock on a separate file; DuckDB's own locks are
lost when this process closes any handle of the master. Readers never open the master.
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
from replica_platform.core.errors import PlatformError
from replica_platform.core.files import fsync_dir
from replica_platform.replica.copy.file_format import (
    HEADER_BYTES,
    Encrypted,
    Header,
    NotDuckDB,
    logs_beside,
    parse_header,
)
from replica_platform.replica.errors import (
    MasterBusy,
    MasterChanging,
    MasterDamaged,
    MasterDenied,
    MasterEncrypted,
    MasterMissing,
    MasterOpenHere,
    translate_errors,
)
from replica_platform.replica.journal import Journal, JournaledWrite

# In storage older than v1.4.0 a log does not name its database, and a foreign one is silently
# replayed; DuckDB 2.0's own default cannot be read by 1.5.
STORAGE_VERSION = "v1.5.0"
PATIENCE_S = 30.0
# How DuckDB 1.5 and 2.0 begin the message; damage is an IO Error too, and names a "block".
LOCKED = "IO Error: Could not set lock on file"
ENCRYPTED = "Cannot open encrypted database"


class Master:
    """The one writable database, at `path`.

    Args:
        path: The DuckDB file; made by the first `write`.
        patience_s: How long to wait for another process, in seconds, before `MasterBusy`.
    """

    def __init__(self, path: Path | str, *, patience_s: float = PATIENCE_S) -> None:
        self.path = Path(path).absolute()
        self.patience_s = patience_s

    @property
    def lock_path(self) -> Path:
        """The file of the lock."""
        return self.path.with_name(self.path.name + ".lock")

    @property
    def journal_path(self) -> Path:
        """The file of the journal of its checkpoints."""
        return self.path.with_name(self.path.name + ".checkpoints")

    @property
    def sidecars(self) -> list[Path]:
        """Log files beside the master; none after a clean close."""
        return logs_beside(self.path)

    @contextmanager
    def write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection in one transaction: committed and checkpointed, or rolled back.

        The journal of checkpoints is extended. With a commit of the caller's inside the block, the
        next publication may have to compare every block.

        Raises:
            MasterBusy: Another process uses the master.
            MasterDamaged: DuckDB cannot open the file.
            MasterDenied: A permission is missing.
            MasterEncrypted: It is encrypted.
            MasterOpenHere: This process has the master open.
        """
        with self._locked():
            if not self.path.exists():
                self._create()
            # A connection elsewhere in this process would lose DuckDB's lock by our reading.
            journaled = self._is_listed_as_closed()
            write = JournaledWrite(self.path, self.journal_path) if journaled else None
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
                if write and not self.sidecars and self._is_listed_as_closed():
                    write.finish()
            self._assert_no_logs()

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a read-only connection, for checks by the batch; writers wait for it.

        Raises:
            MasterBusy: Another process writes the master.
            MasterDamaged: DuckDB cannot open the file.
            MasterDenied: A permission is missing.
            MasterEncrypted: It is encrypted.
            MasterMissing: There is no file.
            MasterOpenHere: This process has the master open.
        """
        with self._locked(shared=True):
            self._assert_exists()
            connection = self._connect(read_only=True)
            try:
                yield connection
            finally:
                connection.close()

    @contextmanager
    def quiesced(self) -> Iterator["QuiescentMaster"]:
        """Yield the master at rest: closed, checkpointed, and locked against writers.

        A log that a crash left is checkpointed first.

        Raises:
            MasterBusy: Another process uses the master.
            MasterDamaged: The file or its log is damaged.
            MasterDenied: A permission is missing.
            MasterEncrypted: It is encrypted.
            MasterMissing: There is no file.
            MasterOpenHere: This process has the master open.
        """
        with self._locked():
            self._assert_exists()
            self._assert_not_open_here()
            if self.sidecars:
                self._checkpoint_log()
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._lock_out_writers(fd)
                yield QuiescentMaster(self.path, fd, Journal.load(self.journal_path))
            finally:
                os.close(fd)

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".making-{self.path.name}")
        temporary.unlink(missing_ok=True)
        with translate_errors(self.path.parent), duckdb.connect() as connection:
            quoted = str(temporary).replace("'", "''")
            connection.execute(
                f"attach '{quoted}' as created (storage_version '{STORAGE_VERSION}')"
            )
            connection.execute("detach created")
            temporary.rename(self.path)
            fsync_dir(self.path.parent)

    def _connect(self, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only)
            except duckdb.Error as error:
                message = " ".join(str(error).split())
                self._assert_not_open_here()
                if not message.startswith(LOCKED) or time.monotonic() >= deadline:
                    raise self._translated(message) from error
                time.sleep(locks.POLL_S)

    def _translated(self, message: str) -> PlatformError:
        """Return our error for DuckDB's message."""
        if ENCRYPTED in message:
            return encrypted(self.path)
        if "Permission denied" in message:
            return self._denied()
        if message.startswith(LOCKED):
            return self._busy(message)
        return MasterDamaged(
            f"The master {self.path} cannot be opened: {message}. Restore it "
            "from a backup or the store's last good generation; readers keep theirs."
        )

    def _busy(self, message: str = "") -> MasterBusy:
        found = [h for path in (self.lock_path, self.path) for h in locks.holders(path)]
        pid = re.search(r"PID (\d+)", message)
        holder = f"PID {pid[1]}" if pid and not found else locks.describe(found)
        return MasterBusy(
            f"The master {self.path} is being written or read by {holder}; nothing was changed. "
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
                "or give the path of another one."
            )

    def _is_open_here(self) -> bool:
        return any(holder.pid == os.getpid() for holder in locks.holders(self.path))

    def _is_listed_as_closed(self) -> bool:
        """Return whether the system lists locks, and none of this process on the file."""
        return locks.PROC_LOCKS.exists() and not self._is_open_here()

    def _assert_not_open_here(self) -> None:
        if self._is_open_here():
            raise MasterOpenHere(
                f"This process still has {self.path} open in DuckDB, and reading the file here "
                "would drop DuckDB's lock on it; close that connection, and publish again."
            )

    def _assert_no_logs(self) -> None:
        if logs := self.sidecars:
            raise MasterDamaged(
                f"{logs[0]} is still there after a checkpoint and a close; close every other "
                "program that has the master open, and publish again."
            )

    def _checkpoint_log(self) -> None:
        connection = self._connect(read_only=False)
        try:
            connection.execute("checkpoint")
        finally:
            connection.close()
        self._assert_no_logs()

    def _lock_out_writers(self, fd: int) -> None:
        """Take a DuckDB reader's lock, so that DuckDB refuses a writer that ignores ours."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    raise self._busy() from None
                time.sleep(locks.POLL_S)


class QuiescentMaster:
    """A master at rest, locked against writers.

    Attributes:
        path: Its path.
        fd: Its open file.
        journal: The journal of its checkpoints.
        header: Its header.
        header_bytes: The bytes of its header.
        bytes: Its size.
    """

    def __init__(self, path: Path, fd: int, journal: Journal) -> None:
        self.path = path
        self.fd = fd
        self.journal = journal
        self.header, self.header_bytes = self._read_header()
        self.bytes = os.fstat(fd).st_size

    def assert_unchanged(self) -> None:
        """Make sure that the file did not change since.

        Raises:
            MasterChanging: It changed, or another file has its name.
        """
        # By name too: the handle still reads the old file after the name went to a new one.
        if (
            os.pread(self.fd, len(self.header_bytes), 0) != self.header_bytes
            or os.fstat(self.fd).st_size != self.bytes
            or self.path.stat().st_ino != os.fstat(self.fd).st_ino
        ):
            raise MasterChanging(
                f"{self.path} was written while it was copied, by a program that ignores the "
                "writer's lock; the copy was thrown away. Write the master only through "
                "Master.write, and publish again."
            )

    def _read_header(self) -> tuple[Header, bytes]:
        raw = os.pread(self.fd, HEADER_BYTES, 0)
        try:
            return parse_header(raw), raw
        except Encrypted as error:
            raise encrypted(self.path) from error
        except NotDuckDB as error:
            raise MasterDamaged(
                f"The master {self.path} is not a sound DuckDB file: {error}; "
                "restore it from a backup, readers keep their generation."
            ) from error


def encrypted(master: Path) -> MasterEncrypted:
    """Return the error for an encrypted master."""
    return MasterEncrypted(
        f"The master {master} is encrypted, and its replicas would need its key; nothing was "
        "changed, and readers keep their generation. Copy it into a plain file with DuckDB's COPY "
        "FROM DATABASE, publish that one, and keep it and the store on an encrypted disk."
    )


def _commit(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.execute("commit")
    except duckdb.TransactionException as error:
        # The caller already committed or rolled back inside the block.
        if "no transaction is active" not in str(error):
            raise
