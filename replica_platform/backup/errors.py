"""What can go wrong with a backup, each as the sentence that a person reads.

Only the kinds belong here; the sentence is written where the cause is known.
"""

from replica_platform.core.errors import PlatformError, TerminalError, TransientError


class Unreadable(TerminalError):
    """The file is not there, not ours to read, or not a SQLite database."""


class Damaged(TerminalError):
    """SQLite's own check or the checksum says that this file is not sound."""


class NoRoom(TransientError):
    """The disk has no room for another copy; nothing was kept of the attempt."""


class Busy(TransientError):
    """Somebody else is at work on the same file or in the same folder."""


class NameTaken(TransientError):
    """A backup of this name is there already; it is never overwritten."""


class Unsaved(TerminalError):
    """Changes that were never folded into the file lie beside it, and would be lost."""


class ChildFailed(TransientError):
    """The process that does the copying ended without an answer."""


class Unreachable(TransientError):
    """The other machine does not answer, or stopped answering."""


class HostUnknown(TerminalError):
    """The other machine's key is not one that we know; it may be somebody else."""


class NotAllowed(TerminalError):
    """The other machine does not let us in."""


BY_NAME: dict[str, type[PlatformError]] = {
    kind.__name__: kind
    for kind in (Unreadable, Damaged, NoRoom, Busy, NameTaken, Unsaved, ChildFailed)
}
