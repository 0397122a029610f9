"""The entry of tables to sync: by name or by pattern, their columns, masks, budgets and times."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, model_validator

from replica_platform.app.entries.base import (
    Cron,
    Entry,
    Fraction,
    Name,
    Owner,
    Part,
    Positive,
    Timezone,
    Variable,
    WrongEntry,
    checked,
)
from replica_platform.core.errors import PlatformError
from replica_platform.xmin import ListedTable, Mask, TableSpec
from replica_platform.xmin.names import TableName

_WILDCARD = re.compile(r"[*?]")
MOST_SHARDS = 256


def _shards(number: int) -> str:
    within = 1 <= number <= MOST_SHARDS
    return "" if within else f"{number} should be between 1 and {MOST_SHARDS}"


Shards = Annotated[int, checked(_shards)]


class FixedMask(Part):
    """A mask that is one value in every row.

    Attributes:
        fixed: The value, as text of the column's type.
    """

    fixed: str


class TableEntry(Part):
    """A table of the source or a pattern of tables, and how they are synced.

    Attributes:
        table: A name in the source, `schema.table`, or a pattern of names such as `public.*`. A
            pattern takes tables, not views, and none that an entry before it takes or that
            another entry names.
        exclude: Names and patterns of tables that a pattern leaves out.
        mode: How changes are found: `scan` reads every row's xmin, `blocks` the blocks that
            changed, `timestamp` the rows above the newest timestamp, `full` all rows; `auto`
            chooses.
        timestamp_column: The column that `timestamp` reads by.
        timestamp_zone: The writers' time zone, for a timestamp column that has none.
        deletes: Whether rows that the source deleted are deleted here: `auto` finds them by
            changed blocks or, when the numbers of rows differ, by keys, `keys` always compares
            keys, `never` keeps them.
        key: The key columns, where the source has no key.
        columns: The columns to copy; all when absent. Of a pattern: those that each table has.
        left_out: Columns that are not copied.
        mask: What the target holds instead of a column's values: null, hash, or {fixed: VALUE}.
        together: Tables with the same name here stay in one shard, synced from one snapshot.
    """

    table: str
    exclude: Sequence[str] = ()
    mode: Literal["auto", "scan", "blocks", "timestamp", "full"] = "auto"
    timestamp_column: str | None = None
    timestamp_zone: str | None = None
    deletes: Literal["auto", "keys", "blocks", "never"] = "auto"
    key: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    left_out: Sequence[str] = ()
    # YAML reads a bare null as no value.
    mask: Mapping[str, Literal["null", "hash"] | FixedMask | None] = {}
    together: str | None = None

    @model_validator(mode="after")
    def _sound(self) -> "TableEntry":
        if self.is_pattern:
            if self.table.count(".") != 1:
                raise ValueError(f"{self.table!r} is not a pattern such as public.*")
            if self.columns is not None:
                raise ValueError("a pattern cannot list columns; use left_out, or name the table")
        elif self.exclude:
            raise ValueError("exclude belongs to a pattern such as public.*")
        else:
            try:
                TableName.parse(self.table)
            except PlatformError as error:
                raise ValueError(str(error)) from error
        if self.columns is not None and not self.columns:
            raise ValueError("columns is empty; list those to copy, or remove it")
        return self

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for several tables."""
        return '"' not in self.table and _WILDCARD.search(self.table) is not None

    def takes(self, name: TableName) -> bool:
        """Return whether the pattern takes a table of this name."""
        plain = f"{name.schema}.{name.table}"
        return fnmatchcase(plain, self.table) and not any(
            fnmatchcase(plain, one) or str(name) == one for one in self.exclude
        )


class XminTablesEntry(Entry):
    """A group of tables, synced in one step from one snapshot of the source, or in shards.

    Attributes:
        tables: The tables of the group, by name or by pattern.
        source: The environment variable with the DSN of the source; `REPLICA_SOURCE_DSN` when
            absent.
        target: The environment variable with the DSN of the target; `REPLICA_TARGET_DSN` when
            absent.
        into: The schema in the target; that of each table in the source when null.
        name: The name of the group, its schedule, its job and its pool.
        salt_env: The environment variable with the secret of the masks `hash`.
        threshold: The integrity score, 0 to 1, below which dependent assets are blocked; a table
            whose score is capped (without a key, mode `timestamp`) is blocked below that part of
            its cap.
        prove_within_s: The seconds in which the syncs compare the whole content of each table
            once, a part at each sync, and repair what differs; null compares nothing.
        max_snapshot_s: The seconds that a first copy holds a snapshot of the source; a larger table
            is copied in slices.
        max_source_connections: How many sessions may read the source; null chooses.
        max_source_fraction: The largest part of the time, above 0 and at most 1, that each of them
            may work.
        checkpoint: Whether syncs by blocks may ask the source for checkpoints.
        watch_s: The seconds for which each run of the schedule goes on syncing, every second,
            before it reports; null syncs once. Keep it below the schedule's interval.
        fresh_within_s: The age in seconds above which the last sync counts as too old.
        cron_schedule: When the group is synced.
        timezone: The time zone of the schedules.
        report_unchanged_s: The seconds after which the schedule reports and checks a table again
            that did not change.
        max_delete_fraction: The largest part of a table that a sync may delete.
        catalog_cron_schedule: When a group with patterns looks for new tables.
        group: The group of the assets.
        pool: The pool of the syncs, and of all shards; when absent, each shard has its own,
            which is called like the group.
        shards: In how many shards the tables are synced, at most 256: each has its own snapshot,
            step, job and schedule, so that shards run at the same time, on other hosts too.
        keep_joined: Whether tables that foreign keys of the source join stay in one shard.
    """

    tables: Sequence[TableEntry]
    source: Variable | None = None
    target: Variable | None = None
    into: str | None = "raw_data"
    name: Name = "warehouse"
    salt_env: Variable | None = None
    threshold: Fraction = 0.9
    prove_within_s: Positive | None = 86_400
    max_snapshot_s: float = Field(default=60.0, gt=0)
    max_source_connections: Positive | None = None
    max_source_fraction: float = Field(default=1.0, gt=0, le=1)
    checkpoint: bool = True
    watch_s: float | None = Field(default=None, gt=0)
    fresh_within_s: Positive = 1800
    cron_schedule: Cron = "*/5 * * * *"
    timezone: Timezone = "UTC"
    report_unchanged_s: Positive = 7200
    max_delete_fraction: Fraction = 0.5
    catalog_cron_schedule: Cron = "7 * * * *"
    group: Name = "warehouse"
    owners: Sequence[Owner] = ("team:warehouse",)
    pool: Name | None = None
    shards: Shards = 1
    keep_joined: bool = True

    @model_validator(mode="after")
    def _sound(self) -> "XminTablesEntry":
        hashed = any("hash" in table.mask.values() for table in self.tables)
        if hashed and not self.salt_env:
            raise ValueError(
                "a mask is hash, which needs a salt; name the environment variable that holds it "
                "as salt_env"
            )
        try:
            self.resolved(())
        except WrongEntry as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def has_patterns(self) -> bool:
        """Whether the source's catalog decides which tables there are."""
        return any(table.is_pattern for table in self.tables)

    def resolved(self, catalog: Sequence[ListedTable]) -> list[TableEntry]:
        """Return an entry for each table, in the order of the file, patterns by name.

        Args:
            catalog: The tables of the source, as far as they are known.

        Raises:
            WrongEntry: Two entries name one table, or two tables would arrive as one.
        """
        named = {TableName.parse(one.table) for one in self.tables if not one.is_pattern}
        free = {table.name for table in catalog if table.is_table} - named
        tables: dict[TableName, TableEntry] = {}
        for entry in self.tables:
            if not entry.is_pattern:
                name = TableName.parse(entry.table)
                if name in tables:
                    raise WrongEntry(f"{entry.table} is listed twice in {self.name}; list it once.")
                tables[name] = entry
            for name in sorted(name for name in free if entry.is_pattern and entry.takes(name)):
                free.discard(name)
                tables[name] = entry.model_copy(update={"table": str(name), "exclude": ()})
        self._refuse_shared_targets(tables.values())
        return list(tables.values())

    def _refuse_shared_targets(self, tables: Iterable[TableEntry]) -> None:
        seen: dict[TableName, str] = {}
        for table in tables:
            target = self.target_of(table)
            if target in seen:
                raise WrongEntry(
                    f"{seen[target]} and {table.table} both arrive as {target}; list one of them, "
                    "move one to another entry with another `into`, or use `into: null`."
                )
            seen[target] = table.table

    def target_of(self, table: TableEntry) -> TableName:
        """Return the name of a table in the target."""
        return TableSpec(table.table, into=self.into).target_name

    def spec(self, table: TableEntry) -> TableSpec:
        """Return what a sync is asked for, with the salt of the environment.

        Raises:
            WrongEntry: The variable of the salt is not set.
        """
        by_pattern = not any(one.table == table.table for one in self.tables)
        return TableSpec(
            table.table,
            into=self.into,
            mode=table.mode,
            timestamp_column=table.timestamp_column,
            timestamp_zone=table.timestamp_zone,
            deletes=table.deletes,
            key=tuple(table.key) if table.key else None,
            columns=tuple(table.columns) if table.columns else None,
            left_out=tuple(table.left_out),
            masks={column: self._mask(mask) for column, mask in table.mask.items()},
            lenient=by_pattern,
        )

    def _mask(self, mask: "str | FixedMask | None") -> Mask:
        if isinstance(mask, FixedMask):
            return Mask("fixed", value=mask.fixed)
        if mask != "hash":
            return Mask("null")
        salt = os.environ.get(self.salt_env or "")
        if not salt:
            raise WrongEntry(
                f"{self.name} masks by hash, and {self.salt_env} is not set; set it to the secret "
                "of the last sync, or to a new one, which has every row masked again."
            )
        return Mask("hash", salt=salt)
