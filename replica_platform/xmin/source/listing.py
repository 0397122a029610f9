"""Every table of a database with what a reader wants to know of it: columns, comments, references.

For choosing tables and describing them; a sync describes the tables it reads by `catalog`, at its
own snapshot. Nothing here reads a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from replica_platform.core.postgres import connect
from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.names import TableName

TABLE_KINDS = "rp"  # plain and partitioned tables; the others are views and foreign tables


@dataclass(frozen=True)
class ListedColumn:
    """A column.

    Attributes:
        name: Its name.
        type: Its type with modifier, as `format_type` spells it.
        comment: Its comment; None without one.
        nullable: Whether it may be NULL.
    """

    name: str
    type: str
    comment: str | None = None
    nullable: bool = True


@dataclass(frozen=True)
class Reference:
    """A foreign key.

    Attributes:
        columns: The columns that refer.
        table: The table that they refer to.
        referred: The columns there, in the same order.
    """

    columns: tuple[str, ...]
    table: TableName
    referred: tuple[str, ...]


@dataclass(frozen=True)
class ListedTable:
    """A table, view or foreign table.

    Attributes:
        name: Its name.
        kind: `relkind`: `r` table, `p` partitioned, `v` view, `m` materialized view, `f` foreign.
        comment: Its comment; None without one.
        columns: Its columns in order.
        key: Its primary key, else the shortest unique index of NOT NULL columns; empty for none.
        references: Its foreign keys.
        rows: The server's estimate of its rows; None where it was never analysed.
        bytes: Its size on disk, without indexes.
    """

    name: TableName
    kind: str
    comment: str | None
    columns: tuple[ListedColumn, ...]
    key: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()
    rows: int | None = None
    bytes: int = 0

    @property
    def is_table(self) -> bool:
        """Whether it holds rows itself, so that a pattern of names takes it."""
        return self.kind in TABLE_KINDS


_LIST = """
select n.nspname, c.relname, c.relkind::text, obj_description(c.oid, 'pg_class'),
       (select json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod),
               col_description(c.oid, a.attnum), not a.attnotnull) order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
       (select array(select a.attname::text from unnest(i.indkey[0:i.indnkeyatts - 1])
                     with ordinality k(attnum, position)
                     join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                     order by k.position)
        from pg_index i join pg_class x on x.oid = i.indexrelid
        where i.indrelid = c.oid and i.indisunique and i.indisvalid
          and i.indpred is null and i.indexprs is null
          and not exists (select from unnest(i.indkey[0:i.indnkeyatts - 1]) k(attnum)
                          join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                          where not a.attnotnull)
        order by i.indisprimary desc, i.indnkeyatts, x.relname limit 1),
       (select json_agg(json_build_array(
            (select json_agg(a.attname order by p.position)
             from unnest(f.conkey) with ordinality p(attnum, position)
             join pg_attribute a on a.attrelid = f.conrelid and a.attnum = p.attnum),
            rn.nspname, r.relname,
            (select json_agg(a.attname order by p.position)
             from unnest(f.confkey) with ordinality p(attnum, position)
             join pg_attribute a on a.attrelid = f.confrelid and a.attnum = p.attnum))
            order by f.conname)
        from pg_constraint f join pg_class r on r.oid = f.confrelid
        join pg_namespace rn on rn.oid = r.relnamespace
        where f.conrelid = c.oid and f.contype = 'f' and f.conparentid = 0),
       case when c.relkind = 'p' then
           (select sum(l.reltuples) from pg_partition_tree(c.oid) t
            join pg_class l on l.oid = t.relid where t.isleaf and l.reltuples >= 0)
            when c.reltuples >= 0 then c.reltuples end::bigint,
       case when c.relkind in ('r', 'm') then pg_table_size(c.oid)
            when c.relkind = 'p' then
           (select coalesce(sum(pg_table_size(t.relid)), 0) from pg_partition_tree(c.oid) t
            where t.isleaf) else 0 end::bigint
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition
  and c.relpersistence <> 't'
  and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'replica_platform')
order by n.nspname, c.relname
"""


def list_tables(dsn: str, *, connect_timeout_s: int | None = None) -> list[ListedTable]:
    """Return all tables, views and foreign tables of a database, by schema and name.

    Partitions are parts of their table, and are not listed; nor are the server's own tables.

    Args:
        dsn: The database.
        connect_timeout_s: How long to wait for the server; None for as long as everywhere.

    Raises:
        CannotConnect: The database does not answer.
        CannotSync: The database refused the question.
    """
    if connect_timeout_s is not None:
        given = {"connect_timeout": connect_timeout_s, **conninfo_to_dict(dsn)}
        dsn = make_conninfo("", **given)
    with (
        connect(dsn, autocommit=True) as connection,
        translate_errors("source", "the list of tables"),
    ):
        # With the empty path, format_type spells every type that is not built in with its schema.
        connection.execute("select set_config('search_path', '', false)")
        return [_listed(*row) for row in connection.execute(_LIST)]


def _listed(
    schema: str,
    name: str,
    kind: str,
    comment: str | None,
    columns: list[list[Any]] | None,
    key: list[str] | None,
    references: list[list[Any]] | None,
    rows: int | None,
    size: int,
) -> ListedTable:
    return ListedTable(
        TableName(schema, name),
        kind,
        comment,
        tuple(ListedColumn(*column) for column in columns or ()),
        tuple(key or ()),
        tuple(_reference(*one) for one in references or ()),
        rows,
        size,
    )


def _reference(
    columns: Sequence[str], schema: str, table: str, referred: Sequence[str]
) -> Reference:
    return Reference(tuple(columns), TableName(schema, table), tuple(referred))
