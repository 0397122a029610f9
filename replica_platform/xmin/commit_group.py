"""The commit of many staged tables: each by itself, those joined by foreign keys together, or all.

What one table writes is `commit`'s; in which transaction it does so, and what happens to the others
when it fails, belongs here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from replica_platform.core.errors import PlatformError
from replica_platform.xmin.commit import Commit, run_all
from replica_platform.xmin.errors import CannotSync, translate_errors
from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.reports import SyncReport
from replica_platform.xmin.stage import StagedTable
from replica_platform.xmin.target.foreign_keys import ForeignKeys
from replica_platform.xmin.writing.written import Diverged


@dataclass
class Outcome:
    """What became of the tables, by target table.

    Attributes:
        reports: Those that were committed.
        diverged: Those to sync again, each with why its target is not believed; empty where it is.
        errors: Those that failed.
    """

    reports: dict[str, SyncReport] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)
    errors: dict[str, PlatformError] = field(default_factory=dict)


class _RolledBack(Exception):
    """A table of an atomic group failed: the transaction of all of them is rolled back."""


class GroupCommit:
    """Commits the staged tables of one sync.

    Tables that may need the source go first. It is released before the others: while its snapshot
    is open, the source keeps old row versions and lets no table be altered.
    """

    def __init__(
        self,
        target: psycopg.Connection,
        commit: Commit,
        foreign_keys: ForeignKeys,
        release_source: Callable[[], None],
    ) -> None:
        self._target = target
        self._commit = commit
        self._foreign_keys = foreign_keys
        self._release_source = release_source

    def split(self, staged: Sequence[StagedTable]) -> tuple[list[StagedTable], list[StagedTable]]:
        """Return the tables that a scan found unchanged, with all that foreign keys join to them.

        Then the others.
        """
        unchanged: list[StagedTable] = []
        others: list[StagedTable] = []
        for unit in self._units(staged):
            same = all(self._commit.is_unchanged(one) for one in unit)
            (unchanged if same else others).extend(unit)
        return unchanged, others

    def advance(
        self, unread: Sequence[PlannedTable], scanned: Sequence[StagedTable] = ()
    ) -> dict[str, SyncReport]:
        """Store the start point of the sync, and when the unchanged tables were synced.

        Both are true whatever becomes of the others; the source must have flushed its WAL.
        """
        with self._target.transaction():
            self._commit.keep_history()
            return self._commit.advance(unread, scanned)

    def each(
        self,
        staged: Sequence[StagedTable],
        on_commit: Callable[[Mapping[str, SyncReport]], None] | None = None,
    ) -> Outcome:
        """Commit each table with its watermark; those joined by foreign keys together.

        Args:
            staged: The tables.
            on_commit: Told the reports of one transaction, once it has been committed.
        """
        outcome = Outcome()
        for unit in sorted(self._units(staged), key=lambda unit: not _reads_source(unit)):
            if not _reads_source(unit):
                self._release_source()
            committed = self._commit_unit(unit, outcome)
            if on_commit and committed:
                on_commit(committed)
        return outcome

    def _units(self, staged: Sequence[StagedTable]) -> list[list[StagedTable]]:
        by_name = {one.target: one for one in staged}
        return [[by_name[name] for name in names] for names in self._foreign_keys.groups(by_name)]

    def together(self, staged: Sequence[StagedTable]) -> Outcome:
        """Commit all tables in one transaction, or none."""
        outcome = Outcome()
        try:
            with translate_errors("target", _names(staged)), self._target.transaction():
                outcome = self.each(staged)
                if outcome.errors or outcome.diverged:
                    raise _RolledBack
        except _RolledBack:
            return Outcome(diverged=outcome.diverged, errors=outcome.errors)
        except PlatformError as error:  # the common transaction failed, and with it every table
            return Outcome(errors={str(one.target): error for one in staged})
        return outcome

    def _commit_unit(
        self, unit: Sequence[StagedTable], outcome: Outcome
    ) -> Mapping[str, SyncReport]:
        """Commit tables in one transaction, note what became of them, and return the reports."""
        names = [str(one.target) for one in unit]
        at: list[str] = []  # the tables that were begun
        try:
            with translate_errors("target", _names(unit)), self._target.transaction():
                reports = self._write(unit, at)
        except Diverged as finding:
            outcome.diverged |= dict.fromkeys(names, "") | {at[-1]: str(finding)}
        except PlatformError as error:
            outcome.errors |= dict.fromkeys(names, error)
        else:  # only now the transaction has been committed
            outcome.reports |= reports
            return reports
        return {}

    def _write(self, unit: Sequence[StagedTable], at: list[str]) -> dict[str, SyncReport]:
        """Write rows to parents first, and delete from children first."""
        linked = len(unit) > 1
        if linked:
            self._target.execute("set constraints all deferred")
        runs = [(one, self._commit.steps(one, linked=linked)) for one in unit]
        for one, steps in runs:
            at.append(str(one.target))
            with translate_errors("target", one.target):
                next(steps)
        reports = {}
        for one, steps in reversed(runs):
            at.append(str(one.target))
            with translate_errors("target", one.target), self._children_untouched(one):
                reports[str(one.target)] = run_all(steps)
        return reports

    @contextmanager
    def _children_untouched(self, parent: StagedTable) -> Iterator[None]:
        """Check that the deletes in a table change no rows of others: the source has not.

        Raises:
            CannotSync: A foreign key has deleted or changed rows of another table.
        """
        acting = self._foreign_keys.acting_on(parent.target)
        before = [key.changed_children(self._target) for key in acting]
        yield
        for key, was in zip(acting, before, strict=True):
            if key.changed_children(self._target) != was:
                raise CannotSync(
                    f"Deleting rows of {key.parent} in the target also changed rows of "
                    f"{key.child}, which are unchanged in the source, by the foreign key "
                    f"{key.name}. Nothing was changed; run in the target: {key.removal};"
                )


def _reads_source(unit: Iterable[StagedTable]) -> bool:
    return any(one.reads_source for one in unit)


def _names(tables: Iterable[StagedTable]) -> str:
    return ", ".join(str(one.target) for one in tables)
