"""What a drain did, file by file."""

from dataclasses import dataclass

from replica_platform.core.reports import ReportFields
from replica_platform.outbox.reports.files import files


@dataclass(frozen=True)
class FileDrain(ReportFields):
    """What one drain did with one file.

    Attributes:
        path: The outbox file.
        state: drained, "time is up", stopped, busy, waiting, failed or unreachable.
        why: The reason, unless the state is drained.
        sqlstate: Postgres's code, where the drain failed with one.
        delivered: Rows that were new in the target.
        absorbed: Rows sent again that the target already had.
        landed: Rows of this file in the target by its ledger, over all drains.
        conflicts: Rows with a known id or key and other content, kept in `outbox.conflict`.
        dead: Rows set aside by this drain.
        reopened: Rows queued for resending because the target no longer has them.
        revived: Dead rows tried again because the code changed.
        pruned: Rows deleted from the file after they were read back from the target.
        alerts: 1 if this drain is the first to meet a failure that a person must fix, else 0.
        pending: Rows that still wait.
        dead_rows: All dead rows of the file.
        batches: Batches committed in the target.
        seconds: How long the drain of this file took.
        retry_s: Seconds until the breaker lets a drain deliver; None if it does not wait.
    """

    path: str
    state: str
    why: str | None = None
    sqlstate: str | None = None
    delivered: int = 0
    absorbed: int = 0
    landed: int = 0
    conflicts: int = 0
    dead: int = 0
    reopened: int = 0
    revived: int = 0
    pruned: int = 0
    alerts: int = 0
    pending: int = 0
    dead_rows: int = 0
    batches: int = 0
    seconds: float = 0.0
    retry_s: float | None = None

    @property
    def unreachable(self) -> bool:
        """Whether the file could not be read."""
        return self.state == "unreachable"

    @property
    def trouble(self) -> bool:
        """Whether the delivery itself failed; dead rows and conflicts do not count."""
        return self.state in ("failed", "unreachable", "waiting")

    @property
    def rows_per_s(self) -> float:
        """Rows sent each second."""
        return (self.delivered + self.absorbed) / self.seconds if self.seconds else 0.0

    @property
    def ok(self) -> bool:
        """Whether the drain worked, and no row is dead or newly in conflict."""
        healthy = self.state in ("drained", "time is up", "stopped", "busy")
        return healthy and not self.dead_rows and not self.conflicts

    @property
    def sentence(self) -> str:
        """What the drain did with the file, and why it ended."""
        return f"{self.path}: {_drained(self)}{f' {self.why}' if self.why else ''}"


@dataclass(frozen=True)
class DrainReport(ReportFields):
    """What one drain did, file by file.

    Attributes:
        files: One report for each file.
        seconds: How long the whole drain took.
    """

    files: tuple[FileDrain, ...]
    seconds: float

    @property
    def delivered(self) -> int:
        """Rows that were new in the target."""
        return sum(one.delivered for one in self.files)

    @property
    def absorbed(self) -> int:
        """Rows sent again that the target already had."""
        return sum(one.absorbed for one in self.files)

    @property
    def landed(self) -> int:
        """Rows of these files in the target by its ledger, over all drains."""
        return sum(one.landed for one in self.files)

    @property
    def conflicts(self) -> int:
        """Rows with a known id or key and other content."""
        return sum(one.conflicts for one in self.files)

    @property
    def dead(self) -> int:
        """Rows set aside by this drain."""
        return sum(one.dead for one in self.files)

    @property
    def dead_rows(self) -> int:
        """All dead rows of the files."""
        return sum(one.dead_rows for one in self.files)

    @property
    def pending(self) -> int:
        """Rows that still wait."""
        return sum(one.pending for one in self.files)

    @property
    def rows_per_s(self) -> float:
        """Rows sent each second."""
        return (self.delivered + self.absorbed) / self.seconds if self.seconds else 0.0

    @property
    def unreachable(self) -> tuple[str, ...]:
        """The files that could not be read."""
        return tuple(one.path for one in self.files if one.unreachable)

    @property
    def trouble(self) -> bool:
        """Whether the delivery of any file failed."""
        return any(one.trouble for one in self.files)

    @property
    def ok(self) -> bool:
        """Whether every file is well."""
        return all(one.ok for one in self.files)

    @property
    def sentence(self) -> str:
        """What was delivered and what waits, and each file's trouble."""
        done = _drained(self, f" from {files(len(self.files))}")
        return " ".join([done, *[f"{f.path}: {f.why}" for f in self.files if f.why and not f.ok]])


def _drained(report: FileDrain | DrainReport, origin: str = "") -> str:
    conflicts = f", {report.conflicts} conflicts" if report.conflicts else ""
    return (
        f"Delivered {report.delivered} rows{origin} in {report.seconds:.1f} s; "
        f"{report.pending} wait, {report.dead_rows} are dead{conflicts}."
    )
