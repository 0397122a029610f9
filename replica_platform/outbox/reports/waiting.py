"""What waits in outbox files, and what needs a person there."""

from dataclasses import dataclass

from replica_platform.core.reports import ReportFields, format_age
from replica_platform.outbox.reports.files import files


@dataclass(frozen=True)
class FileBacklog(ReportFields):
    """The state of one file.

    Attributes:
        path: The outbox file.
        pending: Rows that wait.
        oldest_pending_age_s: How long the oldest of them has waited, in seconds.
        dead: Dead rows.
        conflicts: Rows in conflict that nobody dismissed.
        file_bytes: The size of the file and its log.
        breaker: closed, waiting or stopped.
        breaker_why: The last failure, while the breaker is not closed.
        last_delivery: When a batch was last delivered, in seconds since 1970.
        why: Why the file could not be read.
    """

    path: str
    pending: int = 0
    oldest_pending_age_s: float = 0.0
    dead: int = 0
    conflicts: int = 0
    file_bytes: int = 0
    breaker: str = "closed"
    breaker_why: str | None = None
    last_delivery: float | None = None
    why: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing needs a person."""
        return (
            self.why is None and not self.dead and not self.conflicts and self.breaker != "stopped"
        )

    @property
    def sentence(self) -> str:
        """What waits in the file, and what blocks it."""
        reason = self.why or self.breaker_why
        return f"{self.path}: {_waiting(self)}{f' {reason}' if reason else ''}"


@dataclass(frozen=True)
class Backlog(ReportFields):
    """The state of all files.

    Attributes:
        files: One report for each file.
    """

    files: tuple[FileBacklog, ...]

    @property
    def pending(self) -> int:
        """Rows that wait."""
        return sum(one.pending for one in self.files)

    @property
    def oldest_pending_age_s(self) -> float:
        """How long the oldest of them has waited, in seconds."""
        return max((one.oldest_pending_age_s for one in self.files), default=0.0)

    @property
    def dead(self) -> int:
        """Dead rows."""
        return sum(one.dead for one in self.files)

    @property
    def conflicts(self) -> int:
        """Rows in conflict that nobody dismissed."""
        return sum(one.conflicts for one in self.files)

    @property
    def file_bytes(self) -> int:
        """The size of the files and their logs."""
        return sum(one.file_bytes for one in self.files)

    @property
    def last_delivery(self) -> float | None:
        """When a batch was last delivered, in seconds since 1970."""
        return max((f.last_delivery for f in self.files if f.last_delivery), default=None)

    @property
    def unreachable(self) -> tuple[str, ...]:
        """The files that could not be read."""
        return tuple(one.path for one in self.files if one.why)

    @property
    def ok(self) -> bool:
        """Whether nothing needs a person in any file."""
        return all(one.ok for one in self.files)

    @property
    def sentence(self) -> str:
        """What waits in all files, and what blocks each."""
        reasons = [
            f"{f.path}: {f.why or f.breaker_why}" for f in self.files if f.why or f.breaker_why
        ]
        return " ".join([_waiting(self, f" in {files(len(self.files))}"), *reasons])


@dataclass(frozen=True)
class _RowForPerson(ReportFields):
    """A row that stays until a person has dealt with it; its record by file, number, id, kind."""

    path: str
    seq: int
    id: str
    kind: str

    @property
    def ok(self) -> bool:
        """False: the row needs a person."""
        return False


@dataclass(frozen=True)
class DeadRow(_RowForPerson):
    """A row that Postgres refused for its content; it stays until it is delivered.

    Attributes:
        path: The outbox file.
        seq: The row's number in the file.
        id: The record's id.
        kind: The record's kind.
        sqlstate: Postgres's code; None if the driver refused the row.
        error: What Postgres said.
        attempts: How often the row was tried.
        since: When it was set aside, in seconds since 1970.
        age_s: How long ago that was, in seconds.
        code_version: The version of the code that tried it last.
    """

    sqlstate: str | None
    error: str
    attempts: int
    since: float
    age_s: float
    code_version: str

    @property
    def sentence(self) -> str:
        """Which row is dead, since when and why."""
        return (
            f"{self.path}: row {self.seq} ({self.kind}) has been dead for "
            f"{format_age(self.age_s)}: {self.error}; fix the target "
            "or the mapping, then replay it."
        )


@dataclass(frozen=True)
class ConflictRow(_RowForPerson):
    """A row whose id, or whose key in its kind's table, the target has with other content.

    Attributes:
        path: The outbox file.
        seq: The row's number in the file.
        id: The record's id.
        kind: The record's kind.
        table: The table of the target that has the other content.
        found_at: When the conflict was found, in seconds since 1970.
        age_s: How long ago that was, in seconds.
    """

    table: str
    found_at: float
    age_s: float

    @property
    def sentence(self) -> str:
        """Which row is in conflict with which table."""
        return (
            f"{self.path}: row {self.seq} ({self.kind}) has other content than {self.table}; "
            "compare it in outbox.conflict, then dismiss it."
        )


def _waiting(report: FileBacklog | Backlog, origin: str = "") -> str:
    oldest = f", the oldest for {format_age(report.oldest_pending_age_s)}" if report.pending else ""
    return (
        f"{report.pending} rows wait{origin}{oldest}; {report.dead} are dead, "
        f"{report.conflicts} in conflict."
    )
