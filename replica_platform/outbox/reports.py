"""What the engine's calls answer: frozen, plain, fit for JSON, each with a sentence for people."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FileDrain:
    """What one drain did with one file."""

    path: str
    state: str  # drained | time is up | stopped | busy | waiting | failed | unreachable
    why: str | None = None  # the sentence, where the state is not "drained"
    sqlstate: str | None = None
    delivered: int = 0  # rows new in the target
    absorbed: int = 0  # rows sent again that the target had
    landed: int = 0  # rows of this file in the target, by its ledger, all runs together
    conflicts: int = 0  # rows with a known id and other content, kept in outbox.conflict
    dead: int = 0  # rows set aside in this run
    reopened: int = 0  # rows to go again because the target had forgotten them
    revived: int = 0  # dead rows tried again because the code changed
    pruned: int = 0  # rows deleted locally after they were read back
    alerts: int = 0  # 1 when this run met a failure that somebody must mend, and is the first to
    pending: int = 0  # rows that still wait
    dead_rows: int = 0  # all dead rows of the file
    batches: int = 0
    seconds: float = 0.0

    @property
    def unreachable(self) -> bool:
        return self.state == "unreachable"

    @property
    def trouble(self) -> bool:
        """Whether the delivery itself did not work; dead rows and conflicts are not that."""
        return self.state in ("failed", "unreachable", "waiting")

    @property
    def rows_per_s(self) -> float:
        return (self.delivered + self.absorbed) / self.seconds if self.seconds else 0.0

    @property
    def ok(self) -> bool:
        healthy = self.state in ("drained", "time is up", "stopped", "busy")
        return healthy and not self.dead_rows and not self.conflicts

    def as_dict(self) -> dict[str, Any]:
        names = ("unreachable", "trouble", "rows_per_s", "ok")
        extra = {name: getattr(self, name) for name in names}
        return asdict(self) | extra


@dataclass(frozen=True)
class DrainReport:
    """What one drain did, file by file."""

    files: tuple[FileDrain, ...]
    seconds: float

    def total(self, figure: str) -> int:
        return sum(getattr(one, figure) for one in self.files)

    @property
    def delivered(self) -> int:
        return self.total("delivered")

    @property
    def absorbed(self) -> int:
        return self.total("absorbed")

    @property
    def landed(self) -> int:
        return self.total("landed")

    @property
    def conflicts(self) -> int:
        return self.total("conflicts")

    @property
    def dead(self) -> int:
        return self.total("dead")

    @property
    def dead_rows(self) -> int:
        return self.total("dead_rows")

    @property
    def pending(self) -> int:
        return self.total("pending")

    @property
    def rows_per_s(self) -> float:
        return (self.delivered + self.absorbed) / self.seconds if self.seconds else 0.0

    @property
    def unreachable(self) -> tuple[str, ...]:
        return tuple(one.path for one in self.files if one.unreachable)

    @property
    def trouble(self) -> bool:
        return any(one.trouble for one in self.files)

    @property
    def ok(self) -> bool:
        return all(one.ok for one in self.files)

    @property
    def sentence(self) -> str:
        words = f"Delivered {self.delivered} rows from {_files(len(self.files))}"
        words += f" in {self.seconds:.1f} s; {self.pending} wait, {self.dead_rows} are dead"
        words += f", {self.conflicts} conflicts." if self.conflicts else "."
        troubles = [f"{f.path}: {f.why}" for f in self.files if f.why and not f.ok]
        return " ".join([words, *troubles])

    def as_dict(self) -> dict[str, Any]:
        totals = {
            name: getattr(self, name)
            for name in (
                "delivered", "absorbed", "landed", "conflicts", "dead", "dead_rows", "pending",
                "seconds", "rows_per_s", "trouble", "ok", "sentence",
            )
        }  # fmt: skip
        return totals | {
            "unreachable": list(self.unreachable),
            "files": [one.as_dict() for one in self.files],
        }


@dataclass(frozen=True)
class FileBacklog:
    """How one file stands, read without touching it."""

    path: str
    pending: int = 0
    oldest_pending_age_s: float = 0.0
    dead: int = 0
    conflicts: int = 0
    file_bytes: int = 0
    breaker: str = "closed"  # closed | waiting | stopped
    breaker_why: str | None = None
    last_delivery: float | None = None  # seconds since 1970
    why: str | None = None  # why it could not be read

    @property
    def ok(self) -> bool:
        return (
            self.why is None and not self.dead and not self.conflicts and self.breaker != "stopped"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


@dataclass(frozen=True)
class Backlog:
    """How all files stand."""

    files: tuple[FileBacklog, ...]

    @property
    def pending(self) -> int:
        return sum(one.pending for one in self.files)

    @property
    def oldest_pending_age_s(self) -> float:
        return max((one.oldest_pending_age_s for one in self.files), default=0.0)

    @property
    def dead(self) -> int:
        return sum(one.dead for one in self.files)

    @property
    def conflicts(self) -> int:
        return sum(one.conflicts for one in self.files)

    @property
    def file_bytes(self) -> int:
        return sum(one.file_bytes for one in self.files)

    @property
    def last_delivery(self) -> float | None:
        return max((f.last_delivery for f in self.files if f.last_delivery), default=None)

    @property
    def unreachable(self) -> tuple[str, ...]:
        return tuple(one.path for one in self.files if one.why)

    @property
    def ok(self) -> bool:
        return all(one.ok for one in self.files)

    @property
    def sentence(self) -> str:
        words = f"{self.pending} rows wait in {_files(len(self.files))}"
        if self.pending:
            words += f", the oldest for {self.oldest_pending_age_s:.0f} s"
        words += f"; {self.dead} are dead, {self.conflicts} in conflict."
        troubles = [
            f"{f.path}: {f.why or f.breaker_why}" for f in self.files if f.why or f.breaker_why
        ]
        return " ".join([words, *troubles])

    def as_dict(self) -> dict[str, Any]:
        totals = {
            name: getattr(self, name)
            for name in (
                "pending", "oldest_pending_age_s", "dead", "conflicts", "file_bytes",
                "last_delivery", "ok", "sentence",
            )
        }  # fmt: skip
        return totals | {
            "unreachable": list(self.unreachable),
            "files": [one.as_dict() for one in self.files],
        }


@dataclass(frozen=True)
class DeadRow:
    """A row that Postgres refused by itself; it stays until it is delivered."""

    path: str
    seq: int
    id: str
    kind: str
    sqlstate: str | None
    error: str
    attempts: int
    since: float  # seconds since 1970
    age_s: float
    code_version: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ConflictRow:
    """A row whose id, or whose key in its kind's table, the target has with other content."""

    path: str
    seq: int
    id: str
    kind: str
    place: str  # the table that holds the other content
    found_at: float  # seconds since 1970
    age_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class FileReconciliation:
    """What the target lacks of what a file says was delivered."""

    path: str
    batches: int = 0
    batches_missing: int = 0  # by ledger and digest
    rows_checked: int = 0
    rows_missing: int = 0  # by id and content
    reopened: int = 0
    why: str | None = None

    @property
    def ok(self) -> bool:
        return self.why is None and not self.batches_missing and not self.rows_missing

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


@dataclass(frozen=True)
class Reconciliation:
    """Nothing acknowledged may be lacking in the target: what was compared, what was missing."""

    files: tuple[FileReconciliation, ...]

    @property
    def rows_checked(self) -> int:
        return sum(one.rows_checked for one in self.files)

    @property
    def rows_missing(self) -> int:
        return sum(one.rows_missing for one in self.files)

    @property
    def batches_missing(self) -> int:
        return sum(one.batches_missing for one in self.files)

    @property
    def reopened(self) -> int:
        return sum(one.reopened for one in self.files)

    @property
    def ok(self) -> bool:
        return all(one.ok for one in self.files)

    @property
    def sentence(self) -> str:
        words = (
            f"{self.rows_checked} delivered rows were looked for in the target; "
            f"{self.rows_missing} rows and {self.batches_missing} batches are missing"
        )
        words += f", {self.reopened} rows go again." if self.reopened else "."
        return " ".join([words, *[f"{f.path}: {f.why}" for f in self.files if f.why]])

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows_checked": self.rows_checked,
            "rows_missing": self.rows_missing,
            "batches_missing": self.batches_missing,
            "reopened": self.reopened,
            "ok": self.ok,
            "sentence": self.sentence,
            "files": [one.as_dict() for one in self.files],
        }


@dataclass(frozen=True)
class Finding:
    """One thing the doctor looked at."""

    name: str
    ok: bool
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
