"""Group commit: the rows of all threads that wait are written by one of them, in one transaction.

The open file belongs here: its lock between threads, its connection, what a fork and a signal do to
them. What a row is made of, and the calls of a worker, belong to `box`.
"""

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.errors import (
    ForkedOutbox,
    NotAnOutbox,
    OutboxBusy,
    OutboxClosed,
    OutboxFull,
    translated,
)
from replica_platform.outbox.reserve import ensure_reserve
from replica_platform.outbox.slots import lock_slot, refuse_network_file_system

INSERT = file.INSERT
# The rows of several threads are inserted by one statement: a statement for each row would release
# the interpreter's lock each time and wait for it again, behind all threads that append.
ROWS_PER_STATEMENT = 64
WRITES_PER_CHECK = 32  # of the log's size
SLEEP_S = 0.05  # after which a waiting thread checks by itself whether its rows are written
MAX_PAUSE_S = 0.05  # between two attempts at a lock that another process holds

_open_files: "weakref.WeakSet[GroupCommit]" = weakref.WeakSet()


class Call:
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


class GroupCommit:
    """The commits to one outbox file, by all threads of this process.

    Args:
        path: The outbox file, created if it does not exist.
        durability: What a commit survives; see `Outbox`.
        max_bytes: The size in bytes to which the file may grow; None for no limit.
    """

    def __init__(self, path: Path, durability: file.Durability, max_bytes: int | None) -> None:
        self.path = path
        self._name = str(self.path.absolute())  # the process may change its folder
        self.durability = durability
        self._max_bytes = max_bytes
        # Taken by `with`, which no signal can separate from the release (the fork hooks excepted),
        # and reentrant, so that it knows its owner.
        self._write_lock = threading.RLock()
        self._is_writing = False  # only a hint that sleeping is better than taking the lock
        self._waiting: deque[Call] = deque()  # each until it is done or its thread gives up
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)  # of the open file: device and inode
        self._writes_to_check = 0  # until the size of the log is checked again
        self._process = os.getpid()
        self._closed = False
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
        _open_files.add(self)

    def close(self) -> None:
        """Close the file and release the slot, unless this thread is writing just now."""
        self._closed = True
        if self._owns_write_lock():
            return
        with self._write_lock:
            self._close_connection()
            self._release_slot()

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
        call = Call(rows, time.monotonic() + file.BUSY_TIMEOUT_S)
        self._wait_for(call)
        if call.error is not None:
            raise call.error

    def _wait_for(self, *calls: Call) -> None:
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

    def _write_or_wait(self, mine: Call) -> None:
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

    def _write_waiting(self, mine: Call) -> None:
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

    def _end(self, call: Call, error: Exception | None) -> None:
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
        self._is_writing = False
        self._write_lock = threading.RLock()


_fork_lock = threading.RLock()  # threads that fork at once take turns
_closed_for_fork: list[GroupCommit] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    for box in list(_open_files):
        _closed_for_fork.append(box)  # first: released after the fork even if a signal stops this
        box._before_fork()


def _after_fork_in_parent() -> None:
    while _closed_for_fork:
        _closed_for_fork.pop()._after_fork_in_parent()
    _release(_fork_lock)


def _after_fork_in_child() -> None:
    global _fork_lock
    _closed_for_fork.clear()
    for box in list(_open_files):
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
