"""`Outbox`: a record is safe once `append` returns.

The worker's side belongs here: encode a record and commit it to the file. Delivery runs in
another process (see `delivery`); nothing here needs a network.
"""

import contextlib
import hashlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.encoding import Poison, encode
from replica_platform.outbox.errors import (
    ForkedOutbox,
    NotAnOutbox,
    NotStorable,
    OutboxBusy,
    OutboxClosed,
    OutboxFull,
    SlotLocked,
    translated,
)
from replica_platform.outbox.joined import JoinedOutbox
from replica_platform.outbox.reserve import ensure_reserve
from replica_platform.outbox.slots import lock_slot, refuse_network_file_system

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

DEFAULT_MAX_BYTES = 8 * 1024**3
MAX_PAYLOAD_BYTES = 256 * 1024**2  # the limit of one jsonb string or array
INSERT = file.INSERT
# The rows of several threads are inserted by one statement: a statement for each row would release
# the interpreter's lock each time and wait for it again, behind all threads that append.
ROWS_PER_STATEMENT = 64
WRITES_PER_CHECK = 32  # of the log's size
SLEEP_S = 0.05  # after which a waiting thread checks by itself whether its rows are written
MAX_PAUSE_S = 0.05  # between two attempts at a lock that another process holds

_open_boxes: "weakref.WeakSet[Outbox]" = weakref.WeakSet()


class _Call:
    """The rows of one `append`, waiting for the thread that writes.

    Each call sleeps on its own lock: one lock for all was half as fast. `threading.Condition` and
    `Event` are no substitute, because a signal handler that raises inside them leaves their inner
    lock held, or lets `with` release a lock that another thread holds.
    """

    __slots__ = ("_sleep", "deadline", "done", "error", "rows")

    def __init__(self, rows: Sequence[tuple[Any, ...]], deadline: float) -> None:
        self.rows = rows
        self.deadline = deadline  # of the wait for another process's lock, monotonic time
        self.done = False
        self.error: Exception | None = None
        self._sleep = threading.Lock()
        self._sleep.acquire()

    def sleep(self) -> None:
        """Sleep until woken, or for `SLEEP_S`: a signal may end the thread that should wake it."""
        self._sleep.acquire(timeout=SLEEP_S)

    def wake(self) -> None:
        """Wake the sleeping thread."""
        try:  # noqa: SIM105 (a third of the time of contextlib.suppress, also in `_end`)
            self._sleep.release()
        except RuntimeError:  # awake already
            pass

    def end(self, error: Exception | None = None) -> None:
        """Finish the call, with the error that refused its rows if there is one."""
        self.error = error
        self.done = True
        self.wake()


class Outbox:
    """The only writer of an outbox file.

    Threads may share it; a forked child opens its own connection. Use it as a context manager, or
    call `close`.

    Args:
        path: The outbox file, created if it does not exist.
        durability: "full" survives a power cut; "normal" survives the death of the process only
            and loses the last commits on a power cut.
        poison: Whether to "reject" a record that jsonb cannot store, or to "escape" the values
            concerned.
        max_bytes: The size in bytes to which the file may grow; None for no limit.

    Raises:
        SlotLocked: Another process writes this file.
        NetworkFileSystem: The folder is on a network file system.
        NotAnOutbox: The file belongs to another program or version.
        NotDurable: SQLite did not accept the durability.
        OutboxFull: The disk is full.
        OutboxBusy: Another process held the file's lock too long.
        OutboxDamaged: SQLite cannot read or write the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: file.Durability = "full",
        poison: Poison = "reject",
        max_bytes: int | None = DEFAULT_MAX_BYTES,
    ) -> None:
        self.path = Path(path)
        self._name = str(self.path.absolute())  # the process may change its folder
        self.durability = durability
        self._poison = poison
        self._max_bytes = max_bytes
        # Taken by `with`, which no signal can separate from the release (the fork hooks excepted),
        # and reentrant, so that it knows its owner.
        self._write_lock = threading.RLock()
        self._is_writing = False  # only a hint that sleeping is better than taking the lock
        self._waiting: deque[_Call] = deque()  # each until it is done or its thread gives up
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)  # of the open file: device and inode
        self._writes_to_check = 0  # until the size of the log is checked again
        self._process = os.getpid()
        self._closed = False
        self._kinds: set[str] = set()  # those already checked
        self._thread: ThreadPoolExecutor | None = None  # of `aappend`
        # Kind, record and id of each `aappend` that the thread has not yet taken, and its outcome.
        self._arrived: deque[tuple[str, Mapping[str, Any], str | UUID | None, Future[str]]] = (
            deque()
        )
        if durability not in file.SYNCHRONOUS:
            raise ValueError(f"durability is 'full' or 'normal', not {durability!r}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        refuse_network_file_system(self.path.parent)
        self._slot: int | None = lock_slot(self.path)
        try:
            self._open()
            ensure_reserve(self.path)
        except BaseException:
            self._release_slot()
            raise
        _open_boxes.add(self)

    @classmethod
    def claim(
        cls, folder: str | os.PathLike[str], name: str = "worker", **options: Any
    ) -> "Outbox":
        """Open the first outbox in `folder` that no live process writes.

        The files are `worker-1.db`, `worker-2.db` and so on, so the next worker continues the
        file of a killed one.

        Args:
            folder: Where the outbox files are.
            name: What the file names start with.
            options: Keyword arguments of `Outbox`.

        Returns:
            The open outbox.

        Raises:
            NetworkFileSystem: The folder is on a network file system.
            NotAnOutbox: A file of that name belongs to another program or version.
            NotDurable: SQLite did not accept the durability.
            OutboxFull: The disk is full.
            OutboxBusy: Another process held the file's lock too long.
            OutboxDamaged: SQLite cannot read or write the file.
        """
        slot = 1
        while True:
            try:
                return cls(Path(folder) / f"{name}-{slot}.db", **options)
            except SlotLocked:
                slot += 1

    def append(self, kind: str, record: Mapping[str, Any], id: str | UUID | None = None) -> str:
        """Save one record; it is on the disk when this returns.

        Args:
            kind: What the record is, such as "conversation": 1 to 200 printable characters.
            record: Names to values that have a JSON form.
            id: A UUID, for a call that may be repeated: the target keeps the first record with it.

        Returns:
            The record's id, a UUID.

        Raises:
            NotStorable: Postgres could not store the record; it is not saved.
            OutboxFull: The disk is full or the file has reached its cap; it is not saved.
            OutboxBusy: Another process held the file's lock too long; it is not saved.
            OutboxClosed: The outbox was closed; it is not saved.
            NotAnOutbox: The file was deleted or replaced while it was open; it is not saved.
            ForkedOutbox: The process was forked without Python's knowledge; it is not saved.
            OutboxDamaged: SQLite cannot write the file; it is not saved.
        """
        row = self._row(kind, record, id)
        self._commit([row])
        identity: str = row[0]
        return identity

    def append_many(
        self,
        kind: str,
        records: Iterable[Mapping[str, Any]],
        ids: Iterable[str | UUID] | None = None,
    ) -> list[str]:
        """Save all of `records` in one transaction, or none.

        Args:
            kind: What the records are: 1 to 200 printable characters.
            records: Names to values that have a JSON form, one mapping for each record.
            ids: Their UUIDs, as many as there are records; random ones if left out.

        Returns:
            The records' ids, in order.

        Raises:
            NotStorable: Postgres could not store one of the records; none is saved.
            OutboxFull: The disk is full or the file has reached its cap; none is saved.
            OutboxBusy: Another process held the file's lock too long; none is saved.
            OutboxClosed: The outbox was closed; none is saved.
            NotAnOutbox: The file was deleted or replaced while it was open; none is saved.
            ForkedOutbox: The process was forked without Python's knowledge; none is saved.
            OutboxDamaged: SQLite cannot write the file; none is saved.
        """
        if ids is None:
            rows = [self._row(kind, record, None) for record in records]
        else:
            rows = [self._row(kind, record, id) for record, id in zip(records, ids, strict=True)]
        if rows:
            self._commit(rows)
        return [row[0] for row in rows]

    async def aappend(
        self, kind: str, record: Mapping[str, Any], id: str | UUID | None = None
    ) -> str:
        """Save one record like `append`, without holding up the event loop.

        One thread of this outbox saves the records of all tasks, those that arrived together with
        one commit. Do not change `record` before this returns. If the task is cancelled, the
        record may have been saved.

        Args:
            kind: What the record is: 1 to 200 printable characters.
            record: Names to values that have a JSON form.
            id: A UUID, for a call that may be repeated.

        Returns:
            The record's id, a UUID.

        Raises:
            NotStorable: Postgres could not store the record; it is not saved.
            OutboxFull: The disk is full or the file has reached its cap; it is not saved.
            OutboxBusy: Another process held the file's lock too long; it is not saved.
            OutboxClosed: The outbox was closed; it is not saved.
            NotAnOutbox: The file was deleted or replaced while it was open; it is not saved.
            ForkedOutbox: The process was forked without Python's knowledge; it is not saved.
            OutboxDamaged: SQLite cannot write the file; it is not saved.
        """
        # Imported here: a worker without an event loop never needs them.
        import asyncio
        from concurrent.futures import Future, ThreadPoolExecutor

        if self._closed:
            raise self._is_closed_error()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, f"outbox {self.path.name}")
        saved: Future[str] = Future()
        self._arrived.append((kind, record, id, saved))
        self._thread.submit(self._append_arrived)
        return await asyncio.wrap_future(saved)

    def join(self, connection: Any) -> JoinedOutbox:
        """Return an outbox whose records are part of the transactions of `connection`.

        The application keeps its tables in the outbox's file, and its own connection to it. What
        its transaction changes and the records appended in it are committed together, or not at
        all.

        Args:
            connection: A connection to the outbox's file, by the SQLite library of the outbox.

        Returns:
            An object with `append` and `append_many`.

        Raises:
            NotJoinable: The connection is of another SQLite library or to another file.
            NotDurable: The connection is less durable than the outbox.
        """
        path = Path(self._name)
        return JoinedOutbox(connection, path, self.durability, self._row, lambda: self._closed)

    def close(self) -> None:
        """Close the file and release the slot; appended records stay in the file.

        It may be called again. In a signal handler that interrupts an append of the same thread,
        it only refuses further appends; close again after that append.
        """
        self._closed = True
        if self._thread is not None:
            self._thread.shutdown(wait=False)
        if self._owns_write_lock():
            return
        with self._write_lock:
            self._close_connection()
            self._release_slot()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _row(self, kind: str, record: Mapping[str, Any], id: str | UUID | None) -> tuple[Any, ...]:
        if kind not in self._kinds:
            _check_kind(kind)
            self._kinds.add(kind)
        text, data = encode(record, self._poison)
        if len(data) > MAX_PAYLOAD_BYTES:
            raise NotStorable(
                f"The record takes {len(data)} bytes, jsonb stores {MAX_PAYLOAD_BYTES}; split it."
            )
        identity = _new_id() if id is None else _uuid(id)
        return identity, kind, text, hashlib.sha256(data).digest(), time.time()

    def _commit(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Commit in groups: the thread that holds the write lock writes all waiting rows.

        A signal handler may raise between any two steps here. Then the lock is free, and the
        rows of the other threads still wait; at worst a row is written twice, with one id.
        """
        if self._owns_write_lock():
            raise OutboxBusy(
                f"{self.path}: append was called by a signal handler while its own thread was "
                "appending; set a flag in the handler and append after it. The record is not saved."
            )
        call = _Call(rows, time.monotonic() + file.BUSY_TIMEOUT_S)
        self._wait_for(call)
        if call.error is not None:
            raise call.error

    def _wait_for(self, *calls: _Call) -> None:
        """Return when all calls are done, written by this thread or another."""
        try:
            self._waiting.extend(calls)
            for call in calls:
                while not call.done:
                    if self._is_writing:
                        call.sleep()
                    else:
                        self._write_or_wait(call)
        except BaseException:
            for call in calls:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(call)
            raise

    def _append_arrived(self) -> None:
        """Save the records of all waiting `aappend`; runs in their thread."""
        taken: list[tuple[str, _Call, Future[str]]] = []
        deadline = time.monotonic() + file.BUSY_TIMEOUT_S
        while self._arrived:
            kind, record, id, saved = self._arrived.popleft()
            if not saved.set_running_or_notify_cancel():
                continue
            try:
                row = self._row(kind, record, id)
            except BaseException as error:
                saved.set_exception(error)
            else:
                taken.append((row[0], _Call([row], deadline), saved))
        try:
            self._wait_for(*(call for _, call, _ in taken))
        except BaseException as error:
            for _, call, _ in taken:
                if not call.done:
                    call.end(error if isinstance(error, Exception) else OutboxClosed(str(error)))
        for identity, call, saved in taken:
            if call.error is None:
                saved.set_result(identity)
            else:
                saved.set_exception(call.error)

    def _write_or_wait(self, mine: _Call) -> None:
        try:
            with self._write_lock:
                try:
                    self._is_writing = True
                    if not mine.done:
                        self._write_waiting(mine)
                finally:
                    self._is_writing = False
        finally:
            if self._waiting:  # a call came while the lock was held
                with contextlib.suppress(IndexError):  # and was finished in between
                    self._waiting[0].wake()

    def _owns_write_lock(self) -> bool:
        """Return whether this thread has the write lock: then a signal handler is calling."""
        owned: bool = self._write_lock._is_owned()  # type: ignore[attr-defined]
        return owned

    def _write_waiting(self, mine: _Call) -> None:
        """Write the rows of all waiting calls, or refuse those whose deadline has passed."""
        if len(self._waiting) == 1 and mine in self._waiting:  # the usual case, without lists
            self._end(mine, self._write(mine.rows, mine.deadline))
            return
        group = [call for call in self._waiting.copy() if not call.done]
        if mine not in group:  # a forked child starts with an empty queue
            group.append(mine)
        error = self._write([row for call in group for row in call.rows], group[0].deadline)
        if isinstance(error, OutboxBusy):
            now = time.monotonic()
            for call in group:
                if call is group[0] or call.deadline <= now:
                    self._end(call, OutboxBusy(str(error)))
        elif error is None or len(group) == 1:
            for call in group:
                self._end(call, error)
        else:
            # One caller's huge record must not make the others' small ones fail.
            for call in group:
                self._end(call, self._write(call.rows, call.deadline))

    def _end(self, call: _Call, error: Exception | None) -> None:
        call.end(error)
        try:  # noqa: SIM105
            self._waiting.remove(call)
        except ValueError:  # its thread gave up
            pass

    def _write(self, rows: Sequence[tuple[Any, ...]], deadline: float) -> Exception | None:
        """Commit `rows`; return the error that refused them, None after the commit.

        The error is returned because a raised exception may come from a signal handler and then
        concerns this thread only.

        Raises:
            ForkedOutbox: The process was forked without Python's knowledge.
            OutboxClosed: The outbox was closed.
        """
        connection = self._connection
        if connection is None or self._closed:
            connection = self._open()
        if self._process != os.getpid():
            raise ForkedOutbox(
                f"{self.path} was open when this process was forked without Python's knowledge; "
                "open the outbox after the fork. The record is not saved."
            )
        refusal: Exception | None = self._refusal(connection, len(rows))
        if refusal is not None:
            return refusal
        pause_s = 0.001
        while True:
            try:
                if self._insert(connection, rows):
                    return None
                return OutboxBusy(
                    f"{self.path}: a transaction was still open after the commit and was rolled "
                    "back; append again. The record is not saved."
                )
            except sqlite3.Error as error:
                refusal = translated(error, self.path, "append; the record is not saved")
                refusal.__cause__ = error
            except MemoryError as error:
                return error
            remaining_s = deadline - time.monotonic()
            if not isinstance(refusal, OutboxBusy) or remaining_s <= 0:
                return refusal
            # Signal handlers can run during this wait; inside SQLite they could not.
            time.sleep(min(pause_s, remaining_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _refusal(self, connection: sqlite3.Connection, rows: int) -> Exception | None:
        """Return why nothing may be written: the file is gone, or its log is too large."""
        try:
            found = os.stat(self._name)  # noqa: PTH116 (half the time of Path.stat)
            change = None if (found.st_dev, found.st_ino) == self._identity else "replaced"
        except FileNotFoundError:
            change = "deleted"
        if change is not None:
            return NotAnOutbox(
                f"{self.path} was {change} while it was open, with the records that were not "
                "delivered. Find out by whom, restore it from its backup, and open a new Outbox. "
                "The record is not saved."
            )
        self._writes_to_check -= rows
        if self._writes_to_check > 0:
            return None
        try:
            reason = file.log_refusal(connection, Path(self._name), self._max_bytes)
        except sqlite3.Error as error:
            return translated(error, self.path, "append; the record is not saved")
        if reason is not None:
            return OutboxFull(f"{self.path}: {reason}. The record is not saved.")
        self._writes_to_check = WRITES_PER_CHECK
        return None

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> bool:
        """Insert and commit `rows`; return whether no transaction is open afterwards."""
        # Left open by an append that a signal ended. None of its rows was acknowledged, whereas
        # refusing to continue would lose every later record.
        if connection.in_transaction:
            connection.execute("rollback")
        if len(rows) <= ROWS_PER_STATEMENT:
            values = [value for row in rows for value in row]
            connection.execute(INSERT + ", (?, ?, ?, ?, ?)" * (len(rows) - 1), values)
        else:
            # Not `file.writing`: a signal may separate a generator from its `with`, and its later
            # collection would roll back another thread's transaction.
            try:
                connection.execute("begin immediate")
                connection.executemany(INSERT, rows)
                connection.execute("commit")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise
        if connection.in_transaction:
            connection.execute("rollback")
            return False
        return True

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise self._is_closed_error()
        self._process = os.getpid()
        path = Path(self._name)
        connection = file.create_or_open(path, self.durability, self._max_bytes)
        connection.execute("pragma busy_timeout = 0")  # `_write` waits
        found = path.stat()
        self._identity = (found.st_dev, found.st_ino)
        self._connection = connection
        return connection

    def _is_closed_error(self) -> OutboxClosed:
        return OutboxClosed(f"{self.path} is closed; open a new Outbox. The record is not saved.")

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _release_slot(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            os.close(slot)

    def _before_fork(self) -> None:
        """Close the connection: a child's SQLite would assume that it holds the parent's locks.

        The parent's last close could then delete a WAL that the child still writes to.
        """
        self._write_lock.acquire()
        self._close_connection()

    def _after_fork_in_parent(self) -> None:
        _release(self._write_lock)

    def _after_fork_in_child(self) -> None:
        # The parent writes the rows of the other threads.
        self._waiting.clear()
        self._arrived.clear()
        self._thread = None
        self._is_writing = False
        self._write_lock = threading.RLock()


def _check_kind(kind: str) -> None:
    if not isinstance(kind, str) or not 0 < len(kind) <= 200 or not kind.isprintable():
        raise NotStorable(f"A kind is 1 to 200 printable characters, not {kind!r}.")


def _new_id() -> str:
    """Return a random UUID (version 4) as text; uuid.uuid4() takes three times as long."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _uuid(id: str | UUID) -> str:
    try:
        return str(id if isinstance(id, UUID) else UUID(id))
    except (ValueError, AttributeError, TypeError):
        raise NotStorable(
            f"The id {id!r} is not a UUID; make one with uuid.uuid4(), or leave it out."
        ) from None


_fork_lock = threading.RLock()  # threads that fork at once take turns
_closed_for_fork: list[Outbox] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    for box in list(_open_boxes):
        _closed_for_fork.append(box)  # first: released after the fork even if a signal stops this
        box._before_fork()


def _after_fork_in_parent() -> None:
    while _closed_for_fork:
        _closed_for_fork.pop()._after_fork_in_parent()
    _release(_fork_lock)


def _after_fork_in_child() -> None:
    global _fork_lock
    _closed_for_fork.clear()
    for box in list(_open_boxes):
        box._after_fork_in_child()
    _fork_lock = threading.RLock()


def _release(lock: "threading.RLock") -> None:
    with contextlib.suppress(RuntimeError):  # a signal stopped its acquisition
        lock.release()


with contextlib.suppress(AttributeError):  # not on systems that cannot fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
