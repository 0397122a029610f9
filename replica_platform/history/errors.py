"""Errors of the history."""

from replica_platform.core.errors import TransientError


class HistoryNotWritten(TransientError):
    """The target did not take the history; what is shown of the past lacks this moment."""
