"""What the source's catalog says of a table: columns, key, leaves, and the fingerprint of it all.

Nothing here reads a row of a table or decides anything. The session's search_path is empty,
so that `format_type` spells every type that is not built in with its schema.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.xmin.names import TableName, columns_sql

FIRST_USER_OID = 16384


@dataclass(frozen=True)
class Column:
    """One column of the source."""

    attnum: int
    name: str
    type: str
    """As `format_type` spells it, with its modifier."""
    binary: bool
    """Whether its binary form means the same on another server."""
    built_in: bool
    """Whether every server has the type."""
    missing: str | None
    """The constant that rows older than the column have (`attmissingval`)."""
    generated: str
    """How a generated column is computed; empty for others."""
    definition: str
    """What else changes values in place: enum labels, composite parts."""


@dataclass(frozen=True)
class Leaf:
    """A physical heap table; a plain table is its own only leaf."""

    oid: int
    name: TableName
    filenode: int
    blocks: int
    persistence: str
    heap: bool
    layout: tuple["Place", ...] = ()
    """Of a partition: its own columns, which may be older or newer than the parent's."""


@dataclass(frozen=True)
class Place:
    """A column of a partition, where it differs from the parent's without anybody's notice."""

    name: str
    attnum: int
    generated: str
    missing: str | None
    """As of a column: a partitioned table has no rows, and so no such constant."""


@dataclass(frozen=True)
class Table:
    """A table of the source under the leader's snapshot."""

    oid: int
    name: TableName
    kind: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    policies: str

    @property
    def has_xmin(self) -> bool:
        """Whether every row lies in a heap: views, foreign tables and others know no xmin."""
        return self.kind in "rpm" and all(leaf.heap for leaf in self.leaves)

    def rows(self, columns: Sequence[str], *, system: bool = False) -> sql.Composable:
        """All its rows as a FROM item, with `system` also their xmin, as `version`.

        Leaf by leaf, never through the parent: a leaf that is attached meanwhile would show
        there, whatever the snapshot. Tables that inherit are tables of their own.
        """
        listed = columns_sql(list(columns)) if columns else sql.SQL("null as nothing")
        if not self.has_xmin:
            return sql.SQL("(select {} from {}) s").format(listed, self.name.sql)
        if system:
            listed += sql.SQL(", xmin as {}").format(self.version)
        leaves = [
            sql.SQL("select {} from only {}").format(listed, leaf.name.sql) for leaf in self.leaves
        ]
        if not leaves:
            leaves = [sql.SQL("select {} from {} where false").format(listed, self.name.sql)]
        return sql.SQL("({}) s").format(sql.SQL(" union all ").join(leaves))

    @property
    def version(self) -> sql.Identifier:
        """What `rows` calls the xmin: a name that no column has."""
        name = "version"
        while name in self.names:
            name += "_"
        return sql.Identifier(name)

    @property
    def built_in(self) -> bool:
        """Whether every server knows the types of all columns."""
        return all(column.built_in for column in self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names in order."""
        return tuple(column.name for column in self.columns)

    @property
    def binary(self) -> bool:
        """Whether the table can go as binary COPY."""
        return all(column.binary for column in self.columns)

    @property
    def blocks(self) -> int:
        """Heap blocks of all leaves."""
        return sum(leaf.blocks for leaf in self.leaves)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What changes content without changing xmin; stored in the mark and compared."""
        return {
            "oid": self.oid,
            "columns": [
                [c.attnum, c.name, c.type, c.generated, c.definition] for c in self.columns
            ],
            "key": list(self.key),
            "policies": self.policies,
            "layouts": {
                str(leaf.oid): {
                    place.name: [place.attnum, place.generated] for place in leaf.layout
                }
                for leaf in self.leaves
            },
        }


_TABLES = """
-- The relations asked for, each with the leaves it has.
select c.oid, n.nspname, c.relname, c.relkind::text, leaf.oid, leaf.nspname, leaf.relname,
       pg_relation_filenode(leaf.oid), leaf.relpersistence::text,
       coalesce(leaf.amname = 'heap', false),
       case when leaf.amname is not null then pg_relation_size(leaf.oid) else 0 end
       / current_setting('block_size')::bigint,
       (select coalesce(json_agg(json_build_array(p.polname, p.polcmd, p.polroles::text,
               pg_get_expr(p.polqual, p.polrelid)) order by p.polname)::text, '')
        from pg_policy p where p.polrelid = c.oid and c.relrowsecurity),
       (select json_agg(json_build_array(a.attname, a.attnum,
               case when a.attgenerated <> '' then pg_get_expr(d.adbin, d.adrelid) else '' end,
               case when a.atthasmissing then (a.attmissingval::text::text[])[1] end)
               order by a.attnum)
        from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where c.relkind = 'p' and a.attrelid = leaf.oid and a.attnum > 0 and not a.attisdropped)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
left join lateral (
    select l.oid, ln.nspname, l.relname, l.relpersistence, am.amname
    from (select c.oid as relid where c.relkind <> 'p'
          union all
          select t.relid from pg_partition_tree(c.oid) t where c.relkind = 'p' and t.isleaf) t
    join pg_class l on l.oid = t.relid
    join pg_namespace ln on ln.oid = l.relnamespace
    left join pg_am am on am.oid = l.relam
    where l.relkind <> 'p') leaf on true
where c.oid = any(%s)
order by c.oid, leaf.oid
"""

_COLUMNS = """
-- Their columns; a domain is followed to its base, and anything that an ALTER TYPE can
-- change under the rows is spelled out in the definition.
with recursive base as (
    select t.oid, t.oid as base, t.typtype, t.typbasetype from pg_type t
    where t.oid in (select atttypid from pg_attribute where attrelid = any(%(oids)s))
    union all
    select b.oid, t.oid, t.typtype, t.typbasetype
    from base b join pg_type t on t.oid = b.typbasetype where b.typtype = 'd'
)
select a.attrelid, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
       -- regclass and its like send an oid, which is somebody else's on another server.
       t.oid < %(user)s and t.typsend <> 0 and t.typreceive <> 0 and t.typtype in ('b', 'r', 'm')
       and t.typname !~ '^_?reg' or t.typtype = 'e',
       a.atttypid < %(user)s,
       case when a.atthasmissing then (a.attmissingval::text::text[])[1] end,
       case when a.attgenerated <> '' then a.attgenerated::text || pg_get_expr(d.adbin, d.adrelid)
            else '' end,
       concat_ws(' ',
           (select string_agg(quote_literal(e.enumlabel), ',' order by e.enumsortorder)
            from pg_enum e where e.enumtypid in (t.oid, t.typelem)),
           (select string_agg(quote_ident(f.attname) || ' ' || format_type(f.atttypid, f.atttypmod),
                              ',' order by f.attnum)
            from pg_type ct join pg_attribute f on f.attrelid = ct.typrelid
            where ct.oid in (t.oid, t.typelem) and ct.typtype = 'c'
              and f.attnum > 0 and not f.attisdropped))
from pg_attribute a
join base b on b.oid = a.atttypid and b.typtype <> 'd'
join pg_type t on t.oid = b.base
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = any(%(oids)s) and a.attnum > 0 and not a.attisdropped
order by a.attrelid, a.attnum
"""

_KEYS = """
-- The primary key, else the shortest unique index whose columns are all NOT NULL.
select distinct on (i.indrelid) i.indrelid,
       array(select a.attname::text from unnest(i.indkey[0:i.indnkeyatts - 1])
             with ordinality k(attnum, place)
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
             order by k.place)
from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indrelid = any(%s) and i.indisunique and i.indisvalid
  and i.indpred is null and i.indexprs is null
  and not exists (select from unnest(i.indkey[0:i.indnkeyatts - 1]) k(attnum)
                  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                  where not a.attnotnull)
order by i.indrelid, i.indisprimary desc, i.indnkeyatts, c.relname
"""


def describe(connection: psycopg.Connection, oids: Iterable[int]) -> dict[int, Table]:
    """Describe relations by oid, all in three statements."""
    wanted = list(oids)
    columns: dict[int, list[Column]] = {oid: [] for oid in wanted}
    for oid, *rest in connection.execute(_COLUMNS, {"oids": wanted, "user": FIRST_USER_OID}):
        columns[oid].append(Column(*rest))
    keys = {oid: tuple(key) for oid, key in connection.execute(_KEYS, [wanted])}
    tables: dict[int, Table] = {}
    leaves: dict[int, list[Leaf]] = {oid: [] for oid in wanted}
    for row in connection.execute(_TABLES, [wanted]).fetchall():
        oid, schema, name, kind, leaf, leaf_schema, leaf_name, filenode, persistence, heap = row[
            :10
        ]
        if leaf is not None:
            place = TableName(leaf_schema, leaf_name)
            layout = tuple(Place(*column) for column in row[12] or [])
            leaves[oid].append(Leaf(leaf, place, filenode or 0, row[10], persistence, heap, layout))
        policies = hashlib.sha256(row[11].encode()).hexdigest()[:16] if row[11] else ""
        tables[oid] = Table(
            oid, TableName(schema, name), kind, tuple(columns[oid]), keys.get(oid, ()),
            tuple(leaves[oid]), policies,
        )  # fmt: skip
    return tables


def same(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    """Whether two fingerprints are equal, one of which may have been through JSON.

    But for the layouts: they come and go with the leaves, which are looked at by themselves.
    """
    plain = [{**(some or {}), "layouts": None} for some in (one, other)]
    return json.dumps(plain[0], sort_keys=True) == json.dumps(plain[1], sort_keys=True)
