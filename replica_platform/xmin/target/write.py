"""Staged rows written into the target table: merged, or made its whole content.

Statements that write rows belong here; they run in the caller's transaction, with the watermark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.names import TableName, cast_columns, columns_sql, equal_columns
from replica_platform.xmin.target.tables import (
    BLOCK,
    CTID,
    LEAF,
    bucket_sql,
    sync_columns,
)


@dataclass(frozen=True)
class WrittenRows:
    """How many rows a write changed.

    Attributes:
        inserted: Rows inserted.
        updated: Rows updated.
        deleted: Rows deleted.
        left: Of a merge: from which bucket of source blocks the updated rows have gone, where that
            is known.
    """

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    left: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WriteSpec:
    """A target table and its staging table, as the writing statements need them.

    Attributes:
        target: The target table.
        staging: The table of staged rows.
        columns: The columns to write.
        key: The columns that rows are matched by; empty for none.
        never_set: Columns that an UPDATE may not set.
        casts: Columns that are wider in the target, with their types there: values of different
            types need not compare, and their images differ.
        delete_changed: Whether a changed row is deleted and inserted again, since another row may
            have the value that a unique index keeps it from getting.
        scope: For `replace_by_key`: the target's rows that the staged ones replace.
        locations: Whether the target keeps the rows' locations in the source.
    """

    target: TableName
    staging: TableName
    columns: Sequence[str]
    key: Sequence[str]
    never_set: frozenset[str] = frozenset()
    casts: Mapping[str, str] = field(default_factory=dict)
    delete_changed: bool = False
    scope: sql.Composable = field(default_factory=lambda: sql.SQL("true"))
    locations: bool = False

    @property
    def data_columns(self) -> list[str]:
        """The columns without those of the sync."""
        ours = sync_columns(locations=self.locations)
        return [name for name in self.columns if name not in ours]

    @property
    def location_columns(self) -> list[str]:
        """The columns of the rows' locations in the source; none where the target keeps none."""
        return [LEAF, BLOCK, CTID] if self.locations else []

    @property
    def key_matches(self) -> sql.Composed:
        """The join condition of target `t` and staging `s`.

        Raises:
            CannotSync: There is no key.
        """
        if not self.key:
            raise CannotSync(f"{self.target} has no key to merge by.")
        return equal_columns(self.key, casts=self.casts)


class Equality(Enum):
    """When a staged row equals the target's row of its key, so that it is not written.

    Attributes:
        XMIN: When the low 32 bits of their xmins are equal; the epoch is computed, not compared.
        XMIN_AND_CONTENT: When in addition all columns are equal, byte by byte.
        CONTENT: When all columns are equal; for tables without xmin.
    """

    XMIN = auto()
    XMIN_AND_CONTENT = auto()
    CONTENT = auto()


_XMIN_DIFFERS = sql.SQL(
    "(t.source_xmin & 4294967295) is distinct from (s.source_xmin & 4294967295)"
)


def merge(
    target: psycopg.Connection, spec: WriteSpec, equality: Equality, blocks: int | None = None
) -> WrittenRows:
    """Merge the staged rows by key; equal rows are not written, so a replay writes nothing.

    Args:
        target: A session on the target, in a transaction.
        spec: What is merged.
        equality: Which rows are equal.
        blocks: How many blocks a bucket has, to count where the updated rows were.

    Raises:
        CannotSync: There is no key.
    """
    differs = _differs(spec, equality)
    if spec.delete_changed:
        changed = _insert_anew(target, spec, differs)
        merged = merge(target, replace(spec, delete_changed=False), equality)
        return replace(merged, updated=merged.updated + changed)
    statement = _merge(spec, differs)
    if target.info.server_version >= 180000:
        return _merge_returning(target, statement, blocks)
    # An older MERGE does not return where a row was: the rows to update are counted before.
    inserted, left = _count_matches(target, spec, blocks)
    return WrittenRows(inserted, target.execute(statement).rowcount - inserted, left=left)


def _merge_returning(
    target: psycopg.Connection, statement: sql.Composed, blocks: int | None
) -> WrittenRows:
    bucket = bucket_sql(sql.SQL("old.source_ctid"), blocks) if blocks else sql.SQL("null::bigint")
    counted = sql.SQL(
        "with merged as ({} returning merge_action() as did, {} as bucket) "
        "select did, bucket, count(*) from merged group by 1, 2"
    )
    inserted, left = 0, {}
    updated = 0
    for did, number, count in target.execute(counted.format(statement, bucket)):
        if did == "INSERT":
            inserted += count
        else:
            updated += count
            left[number] = count
    left.pop(None, None)
    return WrittenRows(inserted, updated, left=left)


def _count_matches(
    target: psycopg.Connection, spec: WriteSpec, blocks: int | None
) -> tuple[int, dict[int, int]]:
    """Return how many staged keys are new, and the others by the bucket that their rows are in."""
    place = sql.Identifier("t", CTID)
    bucket = bucket_sql(place, blocks) if blocks else sql.SQL("null::bigint")
    found = target.execute(
        sql.SQL(
            "select t.ctid is null, {bucket}, count(*) from {staging} s left join {target} t "
            "on {on} group by 1, 2"
        ).format(
            bucket=bucket, staging=spec.staging.sql, target=spec.target.sql, on=spec.key_matches
        )
    ).fetchall()
    inserted = sum(count for new, _, count in found if new)
    return inserted, {
        number: count for new, number, count in found if not new and number is not None
    }


def count_new_keys(target: psycopg.Connection, spec: WriteSpec) -> int:
    """Return how many staged rows have a key that the target lacks."""
    found = target.execute(
        sql.SQL(
            "select count(*) from {staging} s where not exists (select from {target} t where {on})"
        ).format(staging=spec.staging.sql, target=spec.target.sql, on=spec.key_matches)
    )
    return int(one_value(found))


_INSERT_ANEW = """
with gone as (
    delete from {target} t using {staging} s where {on} and {differs} returning s.ctid as tid)
insert into {target} ({columns}) overriding system value
select {staged} from {staging} s
where s.ctid = any(array(select tid from gone))  -- an array is complete before the first insert
"""


def _insert_anew(target: psycopg.Connection, spec: WriteSpec, differs: sql.Composable) -> int:
    """Delete the target's rows that a merge would update, and insert the new ones; return how many.

    In one statement, at whose end foreign keys are checked: a row that others refer to is there.
    """
    statement = sql.SQL(_INSERT_ANEW).format(
        target=spec.target.sql,
        staging=spec.staging.sql,
        on=spec.key_matches,
        differs=differs,
        columns=columns_sql(spec.columns),
        staged=columns_sql(spec.columns, "s"),
    )
    return target.execute(statement).rowcount


def _differs(spec: WriteSpec, equality: Equality) -> sql.Composable:
    """Return the condition on `t` and `s` under which a staged row is written."""
    differs = _differs_by(spec, equality)
    if spec.location_columns:
        # A rewrite of the source's table moves rows without another xmin.
        moved = sql.SQL("({}) is distinct from ({})").format(
            columns_sql(spec.location_columns, "t"), columns_sql(spec.location_columns, "s")
        )
        differs = sql.SQL("({} or {})").format(differs, moved)
    return differs


def _differs_by(spec: WriteSpec, equality: Equality) -> sql.Composable:
    if equality is Equality.XMIN:
        return _XMIN_DIFFERS
    # *<> compares images: it needs no equality operator and tells 1.0 from 1.00.
    content_differs = sql.SQL("row({})::record *<> row({})::record").format(
        columns_sql(spec.data_columns, "t"), _staged(spec)
    )
    if equality is Equality.CONTENT:
        return content_differs
    return sql.SQL("({} or {})").format(_XMIN_DIFFERS, content_differs)


def _merge(spec: WriteSpec, differs: sql.Composable) -> sql.Composed:
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier("s", name))
        for name in spec.columns
        if name not in spec.never_set
    )
    return sql.SQL(
        "merge into {target} t using {staging} s on {on} "
        "when matched and {differs} then update set {assignments} "
        "when not matched then insert ({columns}) overriding system value values ({values})"
    ).format(
        target=spec.target.sql,
        staging=spec.staging.sql,
        on=spec.key_matches,
        differs=differs,
        assignments=assignments,
        columns=columns_sql(spec.columns),
        values=columns_sql(spec.columns, "s"),
    )


def replace_by_key(target: psycopg.Connection, spec: WriteSpec) -> WrittenRows:
    """Replace the target's rows in `spec.scope` by the staged ones; equal rows are not written.

    In place and in one transaction rather than by a new table under the old name: grants and
    views of the target stay as they are, and a reader whose snapshot is older than the new table
    would find that one empty.

    Raises:
        CannotSync: There is no key.
    """
    deleted = delete_unstaged(target, spec)
    return replace(merge(target, spec, Equality.XMIN_AND_CONTENT), deleted=deleted)


def delete_unstaged(target: psycopg.Connection, spec: WriteSpec) -> int:
    """Delete the target's rows in `spec.scope` whose keys are not staged; return how many."""
    return target.execute(
        sql.SQL(
            "delete from {target} t where {scope} "
            "and not exists (select from {staging} s where {on})"
        ).format(
            target=spec.target.sql,
            scope=spec.scope,
            staging=spec.staging.sql,
            on=spec.key_matches,
        )
    ).rowcount


_UNWRITTEN = """
select exists (
    select from {staging} s
    where not exists (select from {target} t where {on} and not {differs}))
"""
_UNDELETED = """
select exists (
    select from {target} t where {scope} and not exists (select from {staging} s where {on}))
"""
_OTHER_COUNT = "select (select count(*) from {target}) <> (select count(*) from {staging})"


def differs_from_staged(target: psycopg.Connection, spec: WriteSpec, *, replaced: bool) -> bool:
    """Return whether the target is not what was written, as a trigger may bring about.

    Args:
        target: A session on the target.
        spec: What was written.
        replaced: Whether the staged rows are all that `spec.scope` has to hold.
    """
    queries = [_OTHER_COUNT] if not spec.key else [_UNWRITTEN, _UNDELETED][: 1 + replaced]
    return any(
        one_value(
            target.execute(
                sql.SQL(query).format(
                    staging=spec.staging.sql,
                    target=spec.target.sql,
                    scope=spec.scope,
                    on=spec.key_matches if spec.key else sql.SQL(""),
                    differs=_differs(spec, Equality.XMIN_AND_CONTENT),
                )
            )
        )
        for query in queries
    )


_RANKED = """
-- Each row's location, 128 bits of its content, and its number among equal rows.
create temp table pg_temp.{name} on commit drop as
select leaf, tid, one, two, row_number() over (partition by one, two) as nth from (
    select leaf, tid, hashtextextended(image, 0) as one, hashtextextended(image, 1) as two from (
        select s.tableoid as leaf, s.ctid as tid,
            row({columns}, s.source_xmin & 4294967295)::text as image
        from {table} s offset 0) i) h  -- the offset keeps the image from being computed twice
"""
_DELETE_SURPLUS = """
delete from {target} t using pg_temp.replica_had h
where t.tableoid = h.leaf and t.ctid = h.tid and not exists (
    select from pg_temp.replica_wanted w where (w.one, w.two, w.nth) = (h.one, h.two, h.nth))
"""
_INSERT_LACKING = """
insert into {target} ({columns}) overriding system value
select {staged} from {staging} s join pg_temp.replica_wanted w on s.ctid = w.tid
where not exists (
    select from pg_temp.replica_had h where (h.one, h.two, h.nth) = (w.one, w.two, w.nth))
"""


def replace_multiset(target: psycopg.Connection, spec: WriteSpec) -> WrittenRows:
    """Make the rows of a table without a key equal to the staged ones, as multisets."""
    # With their locations, rows that a rewrite has moved are other rows.
    located = spec.location_columns
    sides = {
        "replica_had": (spec.target, columns_sql([*spec.data_columns, *located], "s")),
        "replica_wanted": (
            spec.staging,
            cast_columns([*spec.data_columns, *located], spec.casts, "s"),
        ),
    }
    for name, (table, columns) in sides.items():
        listed = columns if spec.data_columns or located else sql.SQL("null")
        ranked = sql.SQL(_RANKED).format(name=sql.Identifier(name), columns=listed, table=table.sql)
        target.execute(ranked)
        target.execute(sql.SQL("analyze pg_temp.{}").format(sql.Identifier(name)))
    # Deletes first, for a unique index that a user has created on the target.
    deleted = target.execute(sql.SQL(_DELETE_SURPLUS).format(target=spec.target.sql)).rowcount
    lacking = sql.SQL(_INSERT_LACKING).format(
        target=spec.target.sql,
        staging=spec.staging.sql,
        columns=columns_sql(spec.columns),
        staged=columns_sql(spec.columns, "s"),
    )
    inserted = target.execute(lacking).rowcount
    target.execute("drop table pg_temp.replica_had, pg_temp.replica_wanted")
    return WrittenRows(inserted=inserted, deleted=deleted)


def _staged(spec: WriteSpec) -> sql.Composed:
    """Return the staged data columns, cast to the target's types."""
    return cast_columns(spec.data_columns, spec.casts, "s")
