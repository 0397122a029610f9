"""A table as the source's catalog describes it: columns, key, leaves and their fingerprint.

Nothing here reads a table's rows or decides anything. The session's search_path is empty, so
that `format_type` spells every type that is not built in with its schema.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.xmin.names import TableName

FIRST_USER_OID = 16384


@dataclass(frozen=True)
class SourceColumn:
    """A column of a source table.

    Attributes:
        attnum: Its number, which no later column gets again.
        name: Its name.
        type: Its type with modifier, as `format_type` spells it.
        binary: Whether its binary form means the same on another server.
        built_in: Whether every server has the type.
        missing: The constant that rows older than the column have (`attmissingval`).
        generated: How a generated column is computed; empty for others.
        definition: What else changes values in place: enum labels, parts of a composite.
        mask: What is read instead of the column; None reads the column itself.
    """

    attnum: int
    name: str
    type: str
    binary: bool
    built_in: bool
    missing: str | None
    generated: str
    definition: str
    mask: sql.Composable | None = None

    @property
    def selected(self) -> sql.Composable:
        """The column in the list of a SELECT, under its name."""
        name = sql.Identifier(self.name)
        return name if self.mask is None else sql.SQL("{} as {}").format(self.mask, name)

    @property
    def mask_digest(self) -> str:
        """A digest of the mask, its salt included; empty without one."""
        if self.mask is None:
            return ""
        return hashlib.sha256(self.mask.as_string().encode()).hexdigest()[:32]


@dataclass(frozen=True)
class LeafColumn:
    """A column of a partition, whose metadata may differ from the parent's.

    Attributes:
        name: Its name, which is the parent's too.
        attnum: Its number in the partition.
        generated: How it is computed in the partition.
        missing: The constant that the partition's older rows have. The parent has no rows, and so
            no such constant.
    """

    name: str
    attnum: int
    generated: str
    missing: str | None


@dataclass(frozen=True)
class Leaf:
    """A physical heap table; a plain table is its only leaf, a partitioned one may have many.

    Attributes:
        oid: Its oid.
        name: Its name.
        filenode: Its file, which a rewrite replaces.
        blocks: Its size in blocks.
        persistence: `p` permanent, `u` unlogged, `t` temporary.
        heap: Whether it is stored as a heap.
        columns: Of a partition: its columns, which may be older or newer than the parent's.
    """

    oid: int
    name: TableName
    filenode: int
    blocks: int
    persistence: str
    heap: bool
    columns: tuple[LeafColumn, ...] = ()


@dataclass(frozen=True)
class SourceTable:
    """A table of the source as the snapshot sees it.

    Attributes:
        oid: Its oid.
        name: Its name.
        kind: `relkind`: `r` table, `p` partitioned, `v` view, `m` materialized view, `f` foreign.
        columns: Its columns in order.
        key: The columns of its key; empty where it has none.
        leaves: Its heap tables.
        policies: A hash of its row security policies; empty where none is in force.
        left_out: Names of the columns that are not copied, by attnum.
    """

    oid: int
    name: TableName
    kind: str
    columns: tuple[SourceColumn, ...]
    key: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    policies: str
    left_out: Mapping[int, str] = field(default_factory=dict, hash=False)

    @property
    def has_xmin(self) -> bool:
        """Whether every row lies in a heap: views, foreign and other tables have no xmin."""
        return self.kind in "rpm" and all(leaf.heap for leaf in self.leaves)

    def rows(self, columns: Sequence[str], *, system: bool = False) -> sql.Composable:
        """Return all rows as a FROM item, with `system` also xmin, leaf and tid, so named.

        The leaves are read one by one, never through the parent, which shows a leaf that is
        attached during the read whatever the snapshot. Tables that inherit are other tables.
        """
        listed = self.selected(columns) if columns else sql.SQL("null as nothing")
        if not self.has_xmin:
            return sql.SQL("(select {} from {}) s").format(listed, self.name.sql)
        if system:
            listed += sql.SQL(", xmin as {}, tableoid as {}, ctid as {}").format(
                self.xmin_column, self.leaf_column, self.tid_column
            )
        leaves = [
            sql.SQL("select {} from only {}").format(listed, leaf.name.sql) for leaf in self.leaves
        ]
        if not leaves:
            leaves = [sql.SQL("select {} from {} where false").format(listed, self.name.sql)]
        return sql.SQL("({}) s").format(sql.SQL(" union all ").join(leaves))

    def selected(self, names: Sequence[str]) -> sql.Composable:
        """Return columns for the list of a SELECT, masked ones as what is read instead."""
        columns = {column.name: column for column in self.columns}
        return sql.SQL(", ").join(columns[name].selected for name in names)

    @property
    def xmin_column(self) -> sql.Identifier:
        """The name under which `rows` returns the xmin; no column of the table has it."""
        return self._free_name("version")

    @property
    def leaf_column(self) -> sql.Identifier:
        """The name under which `rows` returns the leaf's oid."""
        return self._free_name("leaf")

    @property
    def tid_column(self) -> sql.Identifier:
        """The name under which `rows` returns the tid."""
        return self._free_name("tid")

    def _free_name(self, name: str) -> sql.Identifier:
        while name in self.names or name in self.left_out.values():
            name += "_"
        return sql.Identifier(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names in order."""
        return tuple(column.name for column in self.columns)

    @property
    def masks(self) -> dict[str, sql.Composable]:
        """What is read instead of the masked columns, by name."""
        return {column.name: column.mask for column in self.columns if column.mask is not None}

    @property
    def types(self) -> dict[str, str]:
        """The columns' types by name."""
        return {column.name: column.type for column in self.columns}

    @property
    def built_in(self) -> bool:
        """Whether every server has the types of all columns."""
        return all(column.built_in for column in self.columns)

    @property
    def binary(self) -> bool:
        """Whether the table can be sent as binary COPY."""
        return all(column.binary for column in self.columns)

    @property
    def blocks(self) -> int:
        """The heap blocks of all leaves."""
        return sum(leaf.blocks for leaf in self.leaves)

    @property
    def filenodes(self) -> dict[str, int]:
        """The leaves' filenodes by oid (as text, for JSON)."""
        return {str(leaf.oid): leaf.filenode for leaf in self.leaves}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that changes content without changing xmin; kept in the watermark and compared."""
        masked = {str(c.attnum): c.mask_digest for c in self.columns if c.mask is not None}
        return {
            "oid": self.oid,
            "columns": [
                [c.attnum, c.name, c.type, c.generated, c.definition] for c in self.columns
            ],
            "key": list(self.key),
            "policies": self.policies,
            "layouts": {
                str(leaf.oid): {
                    column.name: [column.attnum, column.generated] for column in leaf.columns
                }
                for leaf in self.leaves
            },
            **({"left_out": sorted(self.left_out)} if self.left_out else {}),
            **({"masked": masked} if masked else {}),
        }


_TABLES = """
-- The relations asked for, each with its leaves.
select c.oid, n.nspname, c.relname, c.relkind::text, leaf.oid, leaf.nspname, leaf.relname,
       coalesce(pg_relation_filenode(leaf.oid), 0),
       case when leaf.amname is not null then pg_relation_size(leaf.oid) else 0 end
       / current_setting('block_size')::bigint,
       leaf.relpersistence::text, coalesce(leaf.amname = 'heap', false),
       (select json_agg(json_build_array(a.attname, a.attnum,
               case when a.attgenerated <> '' then pg_get_expr(d.adbin, d.adrelid) else '' end,
               case when a.atthasmissing then (a.attmissingval::text::text[])[1] end)
               order by a.attnum)
        from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where c.relkind = 'p' and a.attrelid = leaf.oid and a.attnum > 0 and not a.attisdropped),
       (select coalesce(json_agg(json_build_array(p.polname, p.polcmd, p.polroles::text,
               pg_get_expr(p.polqual, p.polrelid)) order by p.polname)::text, '')
        from pg_policy p where p.polrelid = c.oid and c.relrowsecurity)
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
-- Their columns. A domain is followed to its base type; the definition spells out all that an
-- ALTER TYPE can change under the rows.
with recursive base as (
    select t.oid, t.oid as base, t.typtype, t.typbasetype from pg_type t
    where t.oid in (select atttypid from pg_attribute where attrelid = any(%(oids)s))
    union all
    select b.oid, t.oid, t.typtype, t.typbasetype
    from base b join pg_type t on t.oid = b.typbasetype where b.typtype = 'd'
)
select a.attrelid, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
       -- regclass and the like send an oid, which is another relation on another server.
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
             with ordinality k(attnum, position)
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
             order by k.position)
from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indrelid = any(%s) and i.indisunique and i.indisvalid
  and i.indpred is null and i.indexprs is null
  and not exists (select from unnest(i.indkey[0:i.indnkeyatts - 1]) k(attnum)
                  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                  where not a.attnotnull)
order by i.indrelid, i.indisprimary desc, i.indnkeyatts, c.relname
"""


def describe(connection: psycopg.Connection, oids: Iterable[int]) -> dict[int, SourceTable]:
    """Return the tables of some oids, all in three statements."""
    wanted = list(oids)
    columns: dict[int, list[SourceColumn]] = {oid: [] for oid in wanted}
    for oid, *column in connection.execute(_COLUMNS, {"oids": wanted, "user": FIRST_USER_OID}):
        columns[oid].append(SourceColumn(*column))
    keys = {oid: tuple(key) for oid, key in connection.execute(_KEYS, [wanted])}
    leaves: dict[int, list[Leaf]] = {oid: [] for oid in wanted}
    relations: dict[int, tuple[TableName, str, str]] = {}
    for oid, schema, name, kind, *leaf, policies in connection.execute(_TABLES, [wanted]):
        relations[oid] = TableName(schema, name), kind, _digest(policies)
        if leaf[0] is not None:
            leaves[oid].append(_leaf(*leaf))
    return {
        oid: SourceTable(
            oid, name, kind, tuple(columns[oid]), keys.get(oid, ()), tuple(leaves[oid]), policies
        )
        for oid, (name, kind, policies) in relations.items()
    }


def _leaf(
    oid: int,
    schema: str,
    name: str,
    filenode: int,
    blocks: int,
    persistence: str,
    heap: bool,
    columns: list[list[Any]] | None,
) -> Leaf:
    listed = tuple(LeafColumn(*column) for column in columns or [])
    return Leaf(oid, TableName(schema, name), filenode, blocks, persistence, heap, listed)


def _digest(policies: str | None) -> str:
    return hashlib.sha256(policies.encode()).hexdigest()[:16] if policies else ""


def same_fingerprint(known: dict[str, Any], table: SourceTable) -> bool:
    """Return whether a watermark's fingerprint is the table's.

    The layouts do not count: they come and go with the leaves, which are compared separately.
    """
    one, other = ({**some, "layouts": None} for some in (known, table.fingerprint))
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
