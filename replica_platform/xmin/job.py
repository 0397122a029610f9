"""One table on its way through a sync: what is known of it so far.

No step belongs here; `stage` and `settle` fill it in.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from psycopg import sql

from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.names import TableName, parse_schema
from replica_platform.xmin.plan import Plan
from replica_platform.xmin.reports import SyncReport, TableSpec
from replica_platform.xmin.source.catalog import Table
from replica_platform.xmin.target.tables import Change, Target
from replica_platform.xmin.target.watermark import SCHEMA, Mark

DELETES = ("auto", "keys", "never")


def target_of(spec: TableSpec) -> TableName:
    """Return the target table of a spec. Errors: `BadTableName`."""
    source = TableName.parse(spec.table)
    return TableName(parse_schema(spec.into) if spec.into else source.schema, source.table)


class Diverged(Exception):
    """The counts prove that the target lacks rows which the mark says it has."""


@dataclass
class Job:
    """One table, from its spec to its report."""

    spec: TableSpec
    source: TableName
    target: TableName
    distrust: str = ""
    """Why the target is not believed to hold what its mark says; then it is copied in full."""
    take_over: bool = False
    """Whether the target may be taken from another source table."""
    holder: Mark | None = None
    """The target's watermark, which names its owner, even if the target was made anew since."""
    taken_over: bool = False
    before: Mark | None = None
    """The watermark that this sync goes on from."""
    found: Target | None = None
    """The target table as it was found; None where there is none."""
    table: Table | None = None
    key: tuple[str, ...] = ()
    plan: Plan | None = None
    changes: list[Change] = field(default_factory=list)
    staged: bool = False
    """Whether rows wait in the staging table to be merged."""
    loaded: bool = False
    """Whether a first copy waits to become the target table."""
    scope: sql.Composable | None = None
    """For a full read after hashes were compared: the keys that it was about."""
    window: sql.Composable | None = None
    """For a read by timestamp: the rows that it is about."""
    rest: Plan | None = None
    """For a first copy that was interrupted: what was merged over it."""
    source_rows: int | None = None
    """Live rows under the snapshot, where they were counted."""
    report: SyncReport | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """By step, for the report."""
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, spec: TableSpec, distrust: str = "", take_over: bool = False) -> "Job":
        """Read the names of a spec. Errors: `BadTableName`, `CannotSync`."""
        if spec.deletes not in DELETES:
            raise CannotSync(f"deletes is one of {', '.join(DELETES)}, not {spec.deletes!r}.")
        target = target_of(spec)
        if target.schema == SCHEMA:
            raise CannotSync(
                f"The schema {SCHEMA} of the target is the sync's own; let {spec.table} arrive in "
                "another one with `into`."
            )
        return cls(spec, TableName.parse(spec.table), target, distrust, take_over)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take the time of a step."""
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def planned(self) -> tuple[Table, Plan, SyncReport]:
        """Table, plan and report of a job that has been planned."""
        assert self.table is not None and self.plan is not None and self.report is not None
        return self.table, self.plan, self.report
