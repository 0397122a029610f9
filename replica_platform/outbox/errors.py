"""What can go wrong with an outbox, each as a type of its own.

Errors that a caller of `Outbox`, `drain` and their like can catch belong here; how an error of
Postgres is judged does not (see `failures`).
"""

from replica_platform.core.errors import TerminalError, TransientError


class OutboxFull(TransientError):
    """The disk is full or the file has reached its cap; the record is not saved."""


class OutboxBusy(TransientError):
    """Another process held the file's write lock too long; the record is not saved."""


class SlotLocked(TransientError):
    """Another process is the writer of this outbox file; each worker needs a file of its own."""


class OutboxClosed(TerminalError):
    """`append` after `close`; the record is not saved."""


class NotStorable(TerminalError):
    """The record holds something that Postgres cannot keep in jsonb; it is not saved."""


class NetworkFileSystem(TerminalError):
    """SQLite's WAL needs shared memory, which a network file system does not have."""


class NotAnOutbox(TerminalError):
    """The file is missing, is not SQLite, or belongs to another program or version."""


class OutboxDamaged(TerminalError):
    """SQLite cannot read or write the file; what was acknowledged may need its backup."""


class NotDurable(TerminalError):
    """SQLite did not take the durability that was asked for."""


class ForkedOutbox(TerminalError):
    """The process was forked behind Python's back with the outbox open."""


class BadMapping(TerminalError):
    """A mapping of a kind to a table does not say what it must."""
