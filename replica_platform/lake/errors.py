"""The errors of a lake; each text says what is wrong and what to do next, and holds no secret."""

from replica_platform.core.errors import TerminalError, TransientError


class ExtensionsMissing(TerminalError):
    """DuckDB's extensions for a lake are not installed, or are for another version of DuckDB."""


class WrongLake(TerminalError):
    """The catalog, the folder of data or the exported file belongs to something else."""


class LakeMissing(TerminalError):
    """There is no lake at this place of the catalog yet."""


class SnapshotGone(TerminalError):
    """The snapshot expired, or never existed."""


class LakeUnavailable(TransientError):
    """The catalog or the data does not answer."""


class LakeConflict(TransientError):
    """Other writers changed the same rows or tables in every attempt; nothing was written."""
