"""What the target has of what was delivered, and what was filled in there."""

from dataclasses import dataclass

from replica_platform.core.reports import ReportFields


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


def _compared(report: FileReconciliation | Reconciliation) -> str:
    missing = f"{report.rows_missing} rows and {report.batches_missing} batches are missing"
    queued = f", {report.reopened} rows are queued for resending" if report.reopened else ""
    return f"Looked for {report.rows_checked} delivered rows in the target; {missing}{queued}."
