"""The results of the engine's functions: frozen, fit for JSON, each with a sentence for people."""

from dataclasses import dataclass

from replica_platform.core.reports import ReportFields, format_age


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
        done = _drained(self, f" from {_files(len(self.files))}")
        return " ".join([done, *[f"{f.path}: {f.why}" for f in self.files if f.why and not f.ok]])


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
        return " ".join([_waiting(self, f" in {_files(len(self.files))}"), *reasons])


@dataclass(frozen=True)
class DeadRow(ReportFields):
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

    path: str
    seq: int
    id: str
    kind: str
    sqlstate: str | None
    error: str
    attempts: int
    since: float
    age_s: float
    code_version: str

    @property
    def ok(self) -> bool:
        """False: a dead row needs a person."""
        return False

    @property
    def sentence(self) -> str:
        """Which row is dead, since when and why."""
        return (
            f"{self.path}: row {self.seq} ({self.kind}) has been dead for "
            f"{format_age(self.age_s)}: {self.error}; fix the target "
            "or the mapping, then replay it."
        )


@dataclass(frozen=True)
class ConflictRow(ReportFields):
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

    path: str
    seq: int
    id: str
    kind: str
    table: str
    found_at: float
    age_s: float

    @property
    def ok(self) -> bool:
        """False: a conflict needs a person."""
        return False

    @property
    def sentence(self) -> str:
        """Which row is in conflict with which table."""
        return (
            f"{self.path}: row {self.seq} ({self.kind}) has other content than {self.table}; "
            "compare it in outbox.conflict, then dismiss it."
        )


@dataclass(frozen=True)
class FileReconciliation(ReportFields):
    """What the target lacks of the rows that a file notes as delivered.

    Attributes:
        path: The outbox file.
        batches: Delivered batches in the file's ledger.
        batches_missing: Those that the target's ledger lacks or has with another digest.
        rows_checked: Delivered rows that are still in the file.
        rows_missing: Those that the target lacks or has with other content.
        reopened: Rows queued for resending.
        why: Why the file or the target could not be read.
    """

    path: str
    batches: int = 0
    batches_missing: int = 0
    rows_checked: int = 0
    rows_missing: int = 0
    reopened: int = 0
    why: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the target has all that the file notes as delivered."""
        return self.why is None and not self.batches_missing and not self.rows_missing

    @property
    def sentence(self) -> str:
        """What was compared, and what is missing."""
        return f"{self.path}: {self.why or _compared(self)}"


@dataclass(frozen=True)
class Reconciliation(ReportFields):
    """What the target lacks of the rows that all files note as delivered.

    Attributes:
        files: One report for each file, and for each outbox that was taken away.
    """

    files: tuple[FileReconciliation, ...]

    @property
    def rows_checked(self) -> int:
        """Delivered rows that are still in the files."""
        return sum(one.rows_checked for one in self.files)

    @property
    def rows_missing(self) -> int:
        """Those that the target lacks or has with other content."""
        return sum(one.rows_missing for one in self.files)

    @property
    def batches_missing(self) -> int:
        """Batches that the target's ledger lacks or has with another digest."""
        return sum(one.batches_missing for one in self.files)

    @property
    def reopened(self) -> int:
        """Rows queued for resending."""
        return sum(one.reopened for one in self.files)

    @property
    def ok(self) -> bool:
        """Whether the target has all that the files note as delivered."""
        return all(one.ok for one in self.files)

    @property
    def sentence(self) -> str:
        """What was compared, what is missing, and which files could not be read."""
        return " ".join([_compared(self), *[f"{f.path}: {f.why}" for f in self.files if f.why]])


@dataclass(frozen=True)
class Refill(ReportFields):
    """What a kind's own table got from the records.

    Attributes:
        kind: The kind.
        table: Schema and name of its table.
        records: Records of the kind.
        filled: Those that the table lacked and has now.
        refused: Those that do not fit the table.
        why: The id of the first of them, and what Postgres said.
    """

    kind: str
    table: str
    records: int
    filled: int
    refused: int
    why: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every record fits the table."""
        return not self.refused

    @property
    def sentence(self) -> str:
        """What was missing and is filled in, and what does not fit."""
        left_out = f"; {self.refused} do not fit, the first: {self.why}" if self.refused else ""
        return f"{self.filled} of {self.records} records were missing in {self.table}{left_out}."


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


def _drained(report: FileDrain | DrainReport, origin: str = "") -> str:
    conflicts = f", {report.conflicts} conflicts" if report.conflicts else ""
    return (
        f"Delivered {report.delivered} rows{origin} in {report.seconds:.1f} s; "
        f"{report.pending} wait, {report.dead_rows} are dead{conflicts}."
    )


def _waiting(report: FileBacklog | Backlog, origin: str = "") -> str:
    oldest = f", the oldest for {format_age(report.oldest_pending_age_s)}" if report.pending else ""
    return (
        f"{report.pending} rows wait{origin}{oldest}; {report.dead} are dead, "
        f"{report.conflicts} in conflict."
    )


def _compared(report: FileReconciliation | Reconciliation) -> str:
    missing = f"{report.rows_missing} rows and {report.batches_missing} batches are missing"
    queued = f", {report.reopened} rows are queued for resending" if report.reopened else ""
    return f"Looked for {report.rows_checked} delivered rows in the target; {missing}{queued}."


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
