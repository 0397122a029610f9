"""`Outbox`: a record is safe once `append` returns.

The worker's side belongs here: encode, commit, answer. Delivery is another process's work
(see `draining`); nothing here needs a network.
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
from typing import Any, Literal, Self
from uuid import UUID

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.encoding import encode
from replica_platform.outbox.errors import (
    ForkedOutbox,
    NotStorable,
    OutboxBusy,
    OutboxClosed,
    SlotLocked,
)
from replica_platform.outbox.reserve import keep_reserve
from replica_platform.outbox.slots import lock_slot, refuse_network

DEFAULT_MAX_BYTES = 8 * 1024**3
MAX_PAYLOAD_BYTES = 256 * 1024**2  # what one jsonb string or array may hold
INSERT = "insert into record (id, kind, payload, sha, created_at) values (?, ?, ?, ?, ?)"
# A group of threads' rows goes as one statement: with a statement a row, each would let go of the
# interpreter's lock and wait for it again, behind all the threads that want to append.
ROWS_A_STATEMENT = 64
SLEEP_S = 0.05  # until a waiting thread looks for itself whether its rows are written
MAX_PAUSE_S = 0.05  # between two attempts at a lock that another process holds

_open_boxes: "weakref.WeakSet[Outbox]" = weakref.WeakSet()


class _Call:
    """The rows of one `append`, waiting for the thread that writes.

    Each sleeps on a lock of its own: all on one lock was half as fast. `threading.Condition` and
    `Event` are no substitute, because a signal handler that raises inside of them leaves their
    inner lock held, or lets `with` release a lock that another thread holds.
    """

    __slots__ = ("_sleep", "deadline", "done", "error", "rows")

    def __init__(self, rows: Sequence[tuple[Any, ...]], deadline: float) -> None:
        self.rows = rows
        self.deadline = deadline  # until when it waits for another process's lock, monotonic
        self.done = False
        self.error: Exception | None = None
        self._sleep = threading.Lock()
        self._sleep.acquire()

    def sleep(self) -> None:
        """Sleep until woken, or for `SLEEP_S`: a signal may end the thread that was to wake it."""
        self._sleep.acquire(timeout=SLEEP_S)

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # awake already
            self._sleep.release()

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.done = True
        self.wake()


class Outbox:
    """The one writer of an outbox file. Threads may share it; a fork gets a connection of its own.

    `durability="full"` (the default) survives a power cut; `"normal"` survives the death of the
    process only and loses the last commits on a power cut. `poison="escape"` spells out what
    jsonb cannot hold instead of refusing it. `max_bytes` caps the file.
    Errors: `SlotLocked`, `NetworkFileSystem`, `NotAnOutbox`, `NotDurable`, `OutboxFull`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: file.Durability = "full",
        poison: Literal["reject", "escape"] = "reject",
        max_bytes: int | None = DEFAULT_MAX_BYTES,
    ) -> None:
        self.path = Path(path)
        self.durability = durability
        self._poison = poison
        self._max_bytes = max_bytes
        # Taken by `with`, which no signal can part from the release (but for the fork hooks), and
        # reentrant, so that it knows its owner.
        self._write_lock = threading.RLock()
        self._is_writing = False  # only a hint that sleeping is better than asking for the lock
        self._waiting: deque[_Call] = deque()  # each until it is done or its thread gives up
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._closed = False
        self._kinds: set[str] = set()  # those that were looked at
        if durability not in file.SYNCHRONOUS:
            raise ValueError(f"durability is 'full' or 'normal', not {durability!r}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        refuse_network(self.path.parent)
        self._slot: int | None = lock_slot(self.path)
        try:
            self._open()
            keep_reserve(self.path)
        except BaseException:
            self._release_slot()
            raise
        _open_boxes.add(self)

    @classmethod
    def claim(
        cls, folder: str | os.PathLike[str], name: str = "worker", **options: Any
    ) -> "Outbox":
        """The first outbox in `folder` that no live process writes: `worker-1.db`, `worker-2.db` …

        What a killed worker left is so continued by the next one.
        """
        slot = 1
        while True:
            try:
                return cls(Path(folder) / f"{name}-{slot}.db", **options)
            except SlotLocked:
                slot += 1

    def append(self, kind: str, record: Mapping[str, Any], id: str | UUID | None = None) -> str:
        """Save one record; when this returns, it is on the disk. Returns its id, a UUID.

        Give `id` where a repeated call must be one record: the target keeps the first.
        Errors: `NotStorable`, `OutboxFull`, `OutboxBusy`, `OutboxClosed`; then it is not saved.
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
        """Save all of `records` in one transaction, or none; returns their ids, in order."""
        if ids is None:
            rows = [self._row(kind, record, None) for record in records]
        else:
            rows = [self._row(kind, record, id) for record, id in zip(records, ids, strict=True)]
        if rows:
            self._commit(rows)
        return [row[0] for row in rows]

    def close(self) -> None:
        """Close the file and release the slot; what was appended stays.

        It may be repeated. In a signal handler that interrupts an append of the same thread it
        only refuses further appends: that append, or what it raises, comes first; close again.
        """
        self._closed = True
        if self._owns_write_lock():
            return
        with self._write_lock:
            self._let_go()
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
                f"The record takes {len(data)} bytes, jsonb holds {MAX_PAYLOAD_BYTES}; split it."
            )
        identity = _new_id() if id is None else _uuid(id)
        return identity, kind, text, hashlib.sha256(data).digest(), time.time()

    def _commit(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Group commit: the thread that holds the write lock writes the rows of all who wait.

        A signal handler may raise between any two steps here. Then the lock is free, and the
        rows of the other threads still wait; at worst a row is written twice, with one id.
        """
        if self._owns_write_lock():
            raise OutboxBusy(
                f"{self.path}: append was called by a signal handler while its own thread was "
                "appending; set a flag in the handler and append after it. The record is not saved."
            )
        call = _Call(rows, time.monotonic() + file.BUSY_TIMEOUT_S)
        try:
            self._waiting.append(call)
            while not call.done:
                if self._is_writing:
                    call.sleep()
                else:
                    self._write_or_wait(call)
        except BaseException:
            with contextlib.suppress(ValueError):
                self._waiting.remove(call)
            raise
        if call.error is not None:
            raise call.error

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
            if self._waiting:  # somebody came while the lock was held
                with contextlib.suppress(IndexError):  # and was served in between
                    self._waiting[0].wake()

    def _owns_write_lock(self) -> bool:
        """Return whether this thread has the write lock: then a signal handler is asking."""
        owned: bool = self._write_lock._is_owned()  # type: ignore[attr-defined]
        return owned

    def _write_waiting(self, mine: _Call) -> None:
        """Write the rows of all waiting calls, or refuse those whose deadline has passed."""
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
            # One caller's huge record must not refuse the others' small ones.
            for call in group:
                self._end(call, self._write(call.rows, call.deadline))

    def _end(self, call: _Call, error: Exception | None) -> None:
        call.end(error)
        with contextlib.suppress(ValueError):  # its thread gave up
            self._waiting.remove(call)

    def _write(self, rows: Sequence[tuple[Any, ...]], deadline: float) -> Exception | None:
        """Commit `rows`; return the error that refused them.

        Returned, because what is raised may be a signal handler's, which is this thread's alone.
        """
        connection = self._connection
        if connection is None or self._closed:
            connection = self._open()
        if self._process != os.getpid():
            raise ForkedOutbox(
                f"{self.path} was open when this process was forked by something that did not "
                "tell Python; open the outbox after the fork. The record is not saved."
            )
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
                words = file.in_words(error, self.path, "append; the record is not saved")
                words.__cause__ = error
            except MemoryError as error:
                return error
            remaining_s = deadline - time.monotonic()
            if not isinstance(words, OutboxBusy) or remaining_s <= 0:
                return words
            # Waiting here and not inside SQLite lets signal handlers run in the meantime.
            time.sleep(min(pause_s, remaining_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> bool:
        """Insert and commit `rows`; return whether SQLite says that no transaction is open."""
        # Left open by an append that a signal ended: none of its rows was acknowledged, while
        # refusing to go on would lose every later record.
        if connection.in_transaction:
            connection.execute("rollback")
        if len(rows) <= ROWS_A_STATEMENT:
            values = [value for row in rows for value in row]
            connection.execute(INSERT + ", (?, ?, ?, ?, ?)" * (len(rows) - 1), values)
        else:
            # Not `file.writing`: a signal may part a generator from its `with`, and what collects
            # it later would roll back another thread's transaction.
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
            raise OutboxClosed(
                f"{self.path} was closed; open a new Outbox. The record is not saved."
            )
        self._process = os.getpid()
        connection = file.create_or_open(self.path, self.durability, self._max_bytes)
        connection.execute("pragma busy_timeout = 0")  # `_write` waits
        self._connection = connection
        return connection

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _release_slot(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            os.close(slot)

    def _before_fork(self) -> None:
        """Close: a child's SQLite would believe that it holds the parent's locks.

        Then the parent's last close may delete a WAL the child still writes to.
        """
        self._write_lock.acquire()
        self._let_go()

    def _after_fork_in_parent(self) -> None:
        _release(self._write_lock)

    def _after_fork_in_child(self) -> None:
        # What other threads were about to write, the parent writes.
        self._waiting.clear()
        self._is_writing = False
        self._write_lock = threading.RLock()


def _check_kind(kind: str) -> None:
    if not isinstance(kind, str) or not 0 < len(kind) <= 200 or not kind.isprintable():
        raise NotStorable(f"A kind is 1 to 200 printable characters, not {kind!r}.")


def _new_id() -> str:
    """A random UUID (version 4) as text; uuid.uuid4() takes three times as long."""
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
_held: list[Outbox] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    for box in list(_open_boxes):
        _held.append(box)  # first: what a signal stops here is still released after the fork
        box._before_fork()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._after_fork_in_parent()
    _release(_fork_lock)


def _after_fork_in_child() -> None:
    global _fork_lock
    _held.clear()
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
