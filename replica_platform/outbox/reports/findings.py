"""What `doctor` found."""

from dataclasses import dataclass

from replica_platform.core.reports import ReportFields


@dataclass(frozen=True)
class Finding(ReportFields):
    """The result of one check of `doctor`.

    Attributes:
        name: What was checked.
        ok: Whether it is as the outbox needs it.
        sentence: What was found and, where it is wrong, what to do.
    """

    name: str
    ok: bool
    sentence: str
