"""Two generations, leased and attached side by side, and what differs between them.

Readers and publications are not held up: a comparison reads immutable files under a lease, as a
reader does.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from replica_platform.core.reports import Progress
from replica_platform.replica.compare.reports import GenerationDiff, TableDiff
from replica_platform.replica.compare.row_groups import SameBlocks, find_unread
from replica_platform.replica.compare.rows import compare_rows
from replica_platform.replica.compare.tables import Pair, Table, tables_of
from replica_platform.replica.copy.file_format import attach_sql
from replica_platform.replica.errors import GenerationDamaged, NothingPublished, TableUnknown
from replica_platform.replica.serving.lease import Lease
from replica_platform.replica.store.integrity import Unusable, check
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest
from replica_platform.replica.store.moment import At

BEFORE, AFTER = "before", "after"
MEMORY_BYTES = 1024**3


def diff(
    store: Path | str,
    before: At | None = None,
    after: At | None = None,
    *,
    tables: Sequence[str] | None = None,
    rows: int = 0,
    most_values: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> GenerationDiff:
    """Return what differs between two kept generations.

    Rows belong together by the table's primary key, or by the first unique one that both
    generations have; of a table without one, a changed row is a removed and an added one. Of a
    table whose columns differ, the columns of one name and type are compared.

    Args:
        store: The store's folder.
        before: The first generation, as `ReplicaReader` takes `at`; by default the one before the
            other.
        after: The other one; by default the current one.
        tables: The tables to compare, `schema.table` or `table` in main; by default all.
        rows: How many added, removed and changed rows of each table are shown, at most.
        most_values: How many values (rows times columns, in both generations) are read at most;
            tables beyond that are not compared by rows. By default there is no limit.
        memory_bytes: The memory that DuckDB may use; what does not fit goes to a temporary folder.
        progress: Told the tables that are done.

    Returns:
        The tables that differ.

    Raises:
        NothingPublished: One of them is not kept; the text names those that are.
        GenerationDamaged: One of them cannot be read.
        TableUnknown: Neither has a table of that name.
        ValueError: A time without a zone, or a text that is no number, day or time.
    """
    began = time.monotonic()
    layout = Layout(store)
    later = layout.find(None) if after is None else layout.find_at(after)
    earlier = _before(layout, later) if before is None else layout.find_at(before)
    found: list[TableDiff] = []
    same = 0
    if earlier.file == later.file:
        same = len(later.tables)
    else:
        with _attached(layout, earlier, later, memory_bytes) as connection:
            comparison = _Comparison(connection, earlier, later, rows, most_values)
            for one in comparison.run(tables, progress):
                found.append(one)
                same += not one.differs
    return GenerationDiff(
        before=earlier.generation,
        after=later.generation,
        published_before=earlier.published_at,
        published_after=later.published_at,
        tables=[one for one in found if one.differs],
        same=same,
        rows_read=sum(one.rows_read for one in found),
        seconds=time.monotonic() - began,
    )


def _before(layout: Layout, later: Manifest) -> Manifest:
    """Return the newest kept generation that is older than another one."""
    older = [one for one in layout.kept() if one.generation < later.generation]
    if not older:
        raise NothingPublished(
            f"No generation before {later.generation} is kept in {layout.root}; publish with a "
            "larger `keep`, and compare after the next publication."
        )
    return older[0]


@contextmanager
def _attached(
    layout: Layout, before: Manifest, after: Manifest, memory_bytes: int
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to which both generations are attached, while they are leased."""
    with ExitStack() as stack:
        for manifest in (before, after):
            try:
                stack.callback(Lease.take(layout, manifest).release)
                check(layout.data(manifest), manifest)
            except (Unusable, OSError) as error:
                raise GenerationDamaged(
                    f"Generation {manifest.generation} of {layout.root} cannot be compared "
                    f"({error}); repair the store, or name another generation."
                ) from error
        folder = stack.enter_context(TemporaryDirectory(prefix="replica-diff-"))
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory_bytes}B",
            "temp_directory": folder,
            "threads": max(1, (os.cpu_count() or 1) // 2),  # as a publication
            "preserve_insertion_order": False,
        }
        connection = stack.enter_context(duckdb.connect(config=config))
        for catalog, manifest in ((BEFORE, before), (AFTER, after)):
            try:
                connection.execute(attach_sql(layout.data(manifest), catalog))
            except duckdb.Error as error:
                raise GenerationDamaged(
                    f"DuckDB cannot open generation {manifest.generation} of {layout.root} "
                    f"({_reason(error)}); verify it by `replica verify-generation`."
                ) from error
        connection.execute("set enable_external_access = false")
        connection.execute("set timezone = 'UTC'")
        yield connection


class _Comparison:
    """The comparison of two attached generations, table by table."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        before: Manifest,
        after: Manifest,
        samples: int,
        most_values: int | None,
    ) -> None:
        self._connection = connection
        self._generations = f"{before.generation} or {after.generation}"
        self._samples = samples
        self._values_left = most_values
        self._rows = {
            BEFORE: {name: table.rows for name, table in before.tables.items()},
            AFTER: {name: table.rows for name, table in after.tables.items()},
        }
        sizes = dict(
            connection.execute(
                "select database_name, block_size from pragma_database_size()"
            ).fetchall()
        )
        self._same = SameBlocks(before, after, (sizes[BEFORE], sizes[AFTER]))
        self._before = tables_of(connection, BEFORE)
        self._after = tables_of(connection, AFTER)

    def run(self, wanted: Sequence[str] | None, progress: Progress | None) -> Iterator[TableDiff]:
        """Yield what differs of each table, by name.

        Raises:
            TableUnknown: Neither generation has a table of that name.
        """
        names = sorted({*self._before, *self._after})
        if wanted is not None:
            asked = {name.removeprefix("main.") for name in wanted}
            if unknown := sorted(asked - set(names)):
                raise TableUnknown(
                    f"Neither generation has a table {unknown[0]}; there are {', '.join(names)}."
                )
            names = sorted(asked)
        for done, name in enumerate(names):
            yield self._table(name)
            if progress:
                progress(done + 1, len(names), "tables")

    def _table(self, name: str) -> TableDiff:
        before, after = self._before.get(name), self._after.get(name)
        if before is None or after is None:
            table = after or before
            assert table is not None
            rows = self._count(table)
            if before is None:
                return TableDiff(name, "added", 0, rows, rows_added=rows)
            return TableDiff(name, "removed", rows, 0, rows_removed=rows)
        pair = Pair(before, after)
        ours, theirs = before.columns, after.columns
        both = TableDiff(
            name,
            rows_before=self._count(before),
            rows_after=self._count(after),
            key=pair.key,
            columns_added={one: theirs[one] for one in theirs if one not in ours},
            columns_removed={one: ours[one] for one in ours if one not in theirs},
            columns_retyped={
                one: (ours[one], theirs[one])
                for one in ours
                if one in theirs and ours[one] != theirs[one]
            },
        )
        try:
            return self._with_rows(both, pair)
        except (duckdb.InternalError, duckdb.FatalException) as error:
            # The instance cannot be used any more.
            raise GenerationDamaged(
                f"DuckDB failed at table {name} of generation {self._generations} "
                f"({_reason(error)}); verify both by `replica verify-generation`, or leave the "
                "table out."
            ) from error
        except duckdb.Error as error:
            return _not_compared(both, _reason(error))

    def _with_rows(self, table: TableDiff, pair: Pair) -> TableDiff:
        if not pair.shared:
            return _not_compared(table, "no column has one name and type in both")
        counts = (table.rows_before, table.rows_after)
        unread = find_unread(self._connection, pair, self._same, counts)
        values = unread.rows * len(pair.shared)
        if not unread.rows:
            return table
        if self._values_left is not None:
            if values > self._values_left:
                reason = f"{values:,} values are more than the {self._values_left:,} left to read"
                return _not_compared(table, reason)
            self._values_left -= values
        found = compare_rows(self._connection, pair, unread, self._samples)
        return replace(
            table,
            rows_added=found.added,
            rows_removed=found.removed,
            rows_changed=found.changed,
            changed_columns=found.changed_columns,
            samples=found.samples,
            rows_read=unread.rows,
        )

    def _count(self, table: Table) -> int:
        return self._rows[table.catalog][table.label]


def _not_compared(table: TableDiff, reason: str) -> TableDiff:
    return replace(table, rows_added=None, rows_removed=None, rows_changed=None, problem=reason)


def _reason(error: duckdb.Error) -> str:
    """Return DuckDB's reason in one line, with what to do about too little memory."""
    text = str(error).split("LINE ")[0].split("Possible solutions")[0].split("Stack Trace")[0]
    text = " ".join(text.split())
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"too little memory or temporary disk space; allow more memory ({text})"
    return text
