"""Tables of the target: inspected, created for staging, and adopted after a first copy.

The columns of a table that is there already are `columns`'; rows are `write`'s.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.errors import LOCK_TIMEOUT_S, CannotSync
from replica_platform.xmin.names import TableName, block_sql, columns_sql
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.target.schemas import SCHEMA

XMIN, CTID = "source_xmin", "source_ctid"
ALTER_WAIT_S, ALTER_PAUSE_S = 0.5, 1.0
# The columns that the sync adds to each target table.
SYNC_COLUMNS = {XMIN: "bigint", CTID: "tid"}
LEAF, BLOCK = "source_leaf", "source_block"
# A row's location in the source, for reading by blocks; the tid alone is one of many leaves'.
LOCATION_COLUMNS = {LEAF: "oid", BLOCK: "bigint"}
ALL_SYNC_COLUMNS = {**SYNC_COLUMNS, **LOCATION_COLUMNS}


@dataclass(frozen=True)
class TargetColumn:
    """A column of a target table.

    Attributes:
        type: Its type with modifier, as `format_type` spells it.
        generated: Whether the target computes it.
        always_identity: Whether it is GENERATED ALWAYS AS IDENTITY, which no UPDATE may set.
    """

    type: str
    generated: bool
    always_identity: bool


@dataclass(frozen=True)
class TargetTable:
    """A table that the target has.

    Attributes:
        oid: Its oid.
        kind: Its `relkind`.
        columns: Its columns by name.
        unique_keys: The columns of each of its unique indexes.
        exclusive: How many indexes keep two rows from having one value, of any kind.
        referred_to: Whether a foreign key refers to it.
        acted_upon: Whether a foreign key refers to it that forbids to delete a row and insert it
            again in one statement, or that then changes others.
        row_triggers: The user's triggers that see each row before it is written.
        xmin_btrees: Its btrees on `source_xmin` alone, which earlier versions created.
    """

    oid: int
    kind: str
    columns: dict[str, TargetColumn]
    unique_keys: tuple[frozenset[str], ...]
    exclusive: int
    referred_to: bool
    acted_upon: bool
    row_triggers: tuple[str, ...]
    xmin_btrees: tuple[str, ...] = ()

    @property
    def generated(self) -> frozenset[str]:
        """The columns that a write may not list."""
        return frozenset(name for name, column in self.columns.items() if column.generated)

    def has_constraints_beside(self, key: Sequence[str]) -> bool:
        """Whether rows exclude one another by more than the key."""
        return self.exclusive > (frozenset(key) in self.unique_keys)

    @property
    def always_identity(self) -> frozenset[str]:
        """The columns that an UPDATE may not set."""
        return frozenset(name for name, column in self.columns.items() if column.always_identity)


_INSPECT = """
select c.oid, n.nspname, c.relname, c.relkind::text,
       (select json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod),
               a.attgenerated <> '', a.attidentity = 'a') order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
       (select json_agg((select json_agg(a.attname) from pg_attribute a
               where a.attrelid = c.oid and a.attnum = any(i.indkey[0:i.indnkeyatts - 1])))
        from pg_index i where i.indrelid = c.oid and i.indisunique and i.indisvalid
          and i.indpred is null and i.indexprs is null),
       (select count(*) from pg_index i
        where i.indrelid = c.oid and (i.indisunique or i.indisexclusion)),
       -- pg_constraint has no index on confrelid: one hash of it serves all tables.
       c.oid in (select k.confrelid from pg_constraint k where k.contype = 'f'),
       c.oid in (select k.confrelid from pg_constraint k
                 where k.contype = 'f' and k.confdeltype <> 'a'),
       -- Bits of tgtype: for each row, before. Those of replicas do not run in a sync.
       case when c.relhastriggers or c.relkind = 'p' then
       array(select distinct g.tgname::text
             from pg_trigger g
             where g.tgrelid in (select c.oid union all select relid from pg_partition_tree(c.oid))
               and not g.tgisinternal and g.tgenabled in ('O', 'A') and g.tgtype & 3 = 3
             order by 1) else '{}' end,
       array(select format('%%I.%%I', n.nspname, x.relname) from pg_index i
             join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
             join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
             where i.indrelid = c.oid and i.indnatts = 1 and m.amname = 'btree'
               and a.attname = 'source_xmin' and i.indpred is null)
from unnest(%s::text[], %s::text[]) w(schema, name)
join pg_namespace n on n.nspname = w.schema
join pg_class c on c.relnamespace = n.oid and c.relname = w.name
"""


def inspect(target: psycopg.Connection, names: Iterable[TableName]) -> dict[TableName, TargetTable]:
    """Return the tables among `names` that the target has."""
    wanted = list(names)
    found = {}
    with target.transaction():
        # Types are spelled as on the source: in full, unless built in.
        target.execute("select set_config('search_path', '', true)")
        rows = target.execute(
            _INSPECT, [[name.schema for name in wanted], [name.table for name in wanted]]
        ).fetchall()
    for oid, schema, table, kind, columns, keys, exclusive, referred, acted, *names in rows:
        described = {name: TargetColumn(*column) for name, *column in columns or []}
        unique = tuple(frozenset(key) for key in keys or [])
        found[TableName(schema, table)] = TargetTable(
            oid, kind, described, unique, exclusive, referred, acted, *map(tuple, names)
        )
    return found


def staging_name(target: TableName) -> TableName:
    """Return the staging table of a target table: one name, so that leftovers are found."""
    return _sync_table("stage", target)


def load_name(target: TableName) -> TableName:
    """Return the table that a first copy fills, and that then becomes the target table."""
    return _sync_table("load", target)


def _sync_table(kind: str, target: TableName) -> TableName:
    digest = hashlib.sha256(str(target).encode()).hexdigest()[:16]
    return TableName(SCHEMA, f"{kind}_{digest}")


def sync_columns(*, locations: bool) -> dict[str, str]:
    """Return the columns of the sync that a table gets, with or without the rows' locations."""
    return ALL_SYNC_COLUMNS if locations else SYNC_COLUMNS


def create_staging(
    target: psycopg.Connection,
    name: TableName,
    table: SourceTable,
    *,
    locations: bool = False,
    logged: bool = False,
) -> None:
    """Create an empty table with the columns of the source and of the sync.

    Args:
        target: A session on the target.
        name: The table, which is dropped first where it is left over.
        table: The source table.
        locations: Whether it has the columns of the rows' locations.
        logged: Whether it survives a crash. A table that becomes the target table is logged from
            the start: to rewrite it later takes longer than to log it, and twice the disk space.

    Raises:
        CannotSync: The source has a column with the name of one of the sync's.
    """
    clash = set(sync_columns(locations=locations)) & set(table.names)
    if clash:
        raise CannotSync(
            f"{table.name} has a column {min(clash)}, a name that the sync needs for its own; "
            "rename it in the source or sync a view without it."
        )
    kinds = {**table.types, **sync_columns(locations=locations)}
    # To add the key later would read the whole table once more, for a NULL.
    not_null = table.key if logged else ()
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(
            column_definition(name, kind), sql.SQL("not null" if name in not_null else "")
        )
        for name, kind in kinds.items()
    )
    drop(target, name)
    target.execute(
        sql.SQL("create {} table {} ({}) with (autovacuum_enabled = false)").format(
            sql.SQL("" if logged else "unlogged"), name.sql, columns
        )
    )


def drop(target: psycopg.Connection, name: TableName) -> None:
    """Drop a staging table where it exists."""
    target.execute(sql.SQL("drop table if exists {}").format(name.sql))


def count_rows(target: psycopg.Connection, name: TableName) -> int:
    """Return the number of rows of a table."""
    return int(one_value(target.execute(sql.SQL("select count(*) from {}").format(name.sql))))


def bucket_sql(place: sql.Composable, blocks: int) -> sql.Composed:
    """Return the bucket of `blocks` blocks that a tid lies in."""
    return sql.SQL("({} / {})").format(block_sql(place), sql.Literal(blocks))


def count_by_bucket(target: psycopg.Connection, name: TableName, blocks: int) -> dict[int, int]:
    """Return the rows of a table by the bucket of source blocks that they came from."""
    bucket = bucket_sql(sql.Identifier(CTID), blocks)
    found = target.execute(
        sql.SQL("select {}, count(*) from {} where {} is not null group by 1").format(
            bucket, name.sql, sql.Identifier(CTID)
        )
    )
    return dict(found.fetchall())


def add_keys(
    target: psycopg.Connection, loaded: TableName, key: tuple[str, ...], *, locations: bool = False
) -> None:
    """Give a loaded table its key and indexes, where it has none; call it in a transaction.

    Args:
        target: A session on the target.
        loaded: The table.
        key: Its key columns; empty for none.
        locations: Whether it has the columns of the rows' locations.
    """
    found = target.execute(_HAS_INDEX, [loaded.sql.as_string()])
    if one_value(found):
        return
    target.execute("select set_config('maintenance_work_mem', '256MB', true)")
    if key:
        target.execute(
            sql.SQL("alter table {} add constraint {} primary key ({})").format(
                loaded.sql, sql.Identifier(f"{loaded.table}_pkey"), columns_sql(key)
            )
        )
    target.execute(create_xmin_index(loaded))
    if locations:
        target.execute(create_location_index(loaded))
    target.execute(sql.SQL("analyze {}").format(loaded.sql))


_HAS_INDEX = "select exists (select from pg_index where indrelid = %s::regclass)"
_INDEXES = """
select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indrelid = %s::regclass
"""


def adopt(
    target: psycopg.Connection, name: TableName, key: tuple[str, ...], *, locations: bool = False
) -> int:
    """Turn the loaded table into the target table: keyed and indexed. Return its oid.

    Args:
        target: A session on the target, in a transaction.
        name: The target table.
        key: Its key columns; empty for none.
        locations: Whether it has the columns of the rows' locations.
    """
    run = target.execute
    loaded = load_name(name)
    add_keys(target, loaded, key, locations=locations)
    moved = TableName(name.schema, loaded.table)
    run(sql.SQL("alter table {} reset (autovacuum_enabled)").format(loaded.sql))
    run(sql.SQL("alter table {} set schema {}").format(loaded.sql, sql.Identifier(name.schema)))
    run(sql.SQL("alter table {} rename to {}").format(moved.sql, sql.Identifier(name.table)))
    for (index,) in run(_INDEXES, [name.sql.as_string()]).fetchall():
        suffix = index.removeprefix(loaded.table)
        _rename_index(target, TableName(name.schema, index), _trimmed(name.table, suffix))
    return int(one_value(run("select %s::regclass::oid", [name.sql.as_string()])))


def _rename_index(target: psycopg.Connection, index: TableName, name: str) -> None:
    """Rename an index; where the name is taken, it keeps the unique one that it has."""
    with suppress(psycopg.errors.DuplicateTable), target.transaction():
        target.execute(
            sql.SQL("alter index {} rename to {}").format(index.sql, sql.Identifier(name))
        )


def _trimmed(table: str, suffix: str) -> str:
    """Return a name of at most 63 bytes, the most that Postgres keeps."""
    return table.encode()[: 63 - len(suffix)].decode(errors="ignore") + suffix


def alter(target: psycopg.Connection, statement: sql.SQL | sql.Composed) -> None:
    """Run a statement that changes a table which others read; call it in a transaction.

    While it waits behind a long reader, every later reader waits behind it. So it gives up soon,
    lets them pass, and tries again.
    """
    until = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            with target.transaction():
                _set_lock_timeout(target, ALTER_WAIT_S)
                target.execute(statement)
                _set_lock_timeout(target, LOCK_TIMEOUT_S)
            return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > until:
                raise
            time.sleep(ALTER_PAUSE_S)


def _set_lock_timeout(target: psycopg.Connection, seconds: float) -> None:
    target.execute("select set_config('lock_timeout', %s, true)", [f"{int(seconds * 1000)}ms"])


def create_unique_index(name: TableName, columns: Sequence[str]) -> sql.Composed:
    """Return the statement that creates a unique index."""
    return sql.SQL("create unique index on {} ({})").format(name.sql, columns_sql(columns))


def create_xmin_index(name: TableName, *, concurrently: bool = False) -> sql.Composed:
    """Return the statement that creates the index on `source_xmin`.

    A btree there would make every update of a row write to all indexes of the table. BRIN does not,
    from version 16 on (of 49,400 updates 0 were HOT with a btree, 19,700 with BRIN and 20,500
    without an index), and is built in a third of the time.
    """
    how = sql.SQL("concurrently" if concurrently else "")
    return sql.SQL("create index {} on {} using brin ({})").format(
        how, name.sql, columns_sql((XMIN,))
    )


def create_location_index(name: TableName) -> sql.Composed:
    """Return the statement that creates the index on the rows' locations.

    On leaf and block, not on the tid: a row that stays in its block can be updated in place here
    (HOT), as it was there.
    """
    return sql.SQL("create index on {} ({})").format(name.sql, columns_sql((LEAF, BLOCK)))


def column_definition(name: str, kind: str) -> sql.Composed:
    """Return a column and its type, for CREATE and ALTER TABLE."""
    # format_type has quoted the type already: it can be no parameter and no identifier.
    return sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))
