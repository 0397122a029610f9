"""What can go wrong in a sync, each as the sentence that the user reads.

Only the kinds belong here; the module that notices the trouble writes the words.
"""

from replica_platform.core.errors import TerminalError, TransientError


class BadTableName(TerminalError):
    """This is not a table's name as psql would read it."""


class NoSuchTable(TerminalError):
    """The source has no such table."""


class MissingGrant(TerminalError):
    """The role may not do what the sync needs; the text is the GRANT that is missing."""


class CannotSync(TerminalError):
    """The table cannot be synced as asked; the text says what would work."""


class SchemaRefused(TerminalError):
    """The target's columns cannot follow the source's; nothing was changed."""


class TargetTaken(TerminalError):
    """The target table holds another source table; nothing was changed."""


class TooManyDeletes(TerminalError):
    """More rows would be deleted than is allowed; nothing was changed."""


class TableBusy(TransientError):
    """Another session holds the table; try again when it is done."""


class SourceInterrupted(TransientError):
    """The source cancelled the read or went away; nothing was lost, the next sync repairs."""


class TargetInterrupted(TransientError):
    """The target cancelled the write or went away; nothing was half-written."""


class NotFlushed(TransientError):
    """The source did not make its transactions durable in time; the mark was not moved."""
