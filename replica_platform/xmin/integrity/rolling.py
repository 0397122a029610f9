"""The rolling proof: each sync compares the content of a part of a table, and repairs it.

The part is a range of blocks of the source, read at the sync's own snapshot. It is compared after
the sync has written its rows, in the transaction that commits them: at that moment the target is
what the snapshot sees, so that a change in flight is no difference.

By blocks and not by keys: a range of blocks bounds what is read, whatever the key's type and the
two servers' collations. The target's rows are looked up by key. A row that only the target has is
in no block of the source, so at the end of a round the target's rows are counted.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.ranges import (
    BLOCK_BYTES,
    Range,
    Selection,
    copy_format,
    copy_out,
    only,
    rows_in,
)
from replica_platform.xmin.copy.stream import copy_stream
from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.integrity.key_hashes import TARGET_XMIN, row_hash
from replica_platform.xmin.integrity.parts import Part, position_after
from replica_platform.xmin.names import TableName, cast_columns, columns_sql, equal_columns
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.target import write
from replica_platform.xmin.target.proof import Position
from replica_platform.xmin.target.tables import create_staging, drop, sync_columns
from replica_platform.xmin.target.write import Equality, WriteSpec, WrittenRows

_PART = sql.SQL("pg_temp.replica_part")
_CREATE = """
create temp table {part} on commit drop as
select {key}, 0::bigint as version, null::tid as tid, 0 as piece from {target} with no data
"""
_READ = "copy (select {key}, {version}, ctid, {piece} from {leaf} where {range}) to stdout"
# Rows are fetched by tid where few of a range differ.
_DIFFERING = """
select s.piece, count(*), case when count(*) <= {most} then array_agg(s.tid::text) end
from {part} s
left join (select {key}, {version} as version from {target}) t on {joined}
where t.version is distinct from s.version group by s.piece
"""
MOST_TIDS_PER_RANGE = 5_000


@dataclass(frozen=True)
class ProvenPart:
    """What the comparison of a part found.

    Attributes:
        reached: Where the next part begins.
        whole: Whether all ranges were compared, before the time was over.
        rows: How many rows were compared.
        bytes: How many bytes of the source's heap were read.
        differing: How many rows differed from the target's, or were absent there.
        selections: The rows that differ.
    """

    reached: Position
    whole: bool
    rows: int
    bytes: int
    differing: int
    selections: tuple[Selection, ...] = field(default=())


@dataclass(frozen=True)
class ContentOfBothSides:
    """One table on both servers, at the moment when the target is what the snapshot sees.

    Attributes:
        source: The source's session, with the snapshot of the sync.
        table: The table there.
        target: The target's session, in the transaction that commits the sync.
        spec: The target table, and how its rows are written.
        by_xmin: Whether the xmin of a row is compared too.
    """

    source: SourceSnapshot
    table: SourceTable
    target: psycopg.Connection
    spec: WriteSpec
    by_xmin: bool

    @property
    def _columns(self) -> list[str]:
        """The columns that the target does not compute itself."""
        return self.spec.data_columns

    def compare(self, part: Part, most_s: float) -> ProvenPart:
        """Compare a part; nothing more is read after half of `most_s` seconds."""
        until = time.monotonic() + most_s / 2  # to look the rows up takes about as long again
        self.target.execute(
            sql.SQL(_CREATE).format(part=_PART, key=self._numbered, target=self.spec.target.sql)
        )
        done: list[Range] = []
        for one in part.ranges:
            self._read(one, len(done))
            done.append(one)
            if time.monotonic() > until:
                break
        self.target.execute(sql.SQL("analyze {}").format(_PART))
        found = self._differing()
        rows = self.target.execute(sql.SQL("select count(*) from {}").format(_PART)).fetchone()
        self.target.execute(sql.SQL("drop table {}").format(_PART))
        return ProvenPart(
            position_after(done[-1]),
            part.ends_round and len(done) == len(part.ranges),
            rows[0] if rows else 0,
            sum(one.blocks for one in done) * BLOCK_BYTES,
            sum(count for _, count, _ in found),
            tuple(_selection(done[piece], tids) for piece, _, tids in found),
        )

    def repair(self, selections: Sequence[Selection], staging: TableName) -> WrittenRows:
        """Read the rows that differ again and write them."""
        locations = bool(self.spec.location_columns)
        create_staging(self.target, staging, self.table, locations=locations)
        command = sql.SQL("copy {} ({}) from stdin (format {})").format(
            staging.sql,
            columns_sql([*self.table.names, *sync_columns(locations=locations)]),
            copy_format(self.table),
        )
        for one in selections:
            query = copy_out(self.table, self.source.snapshot, one, locations=locations)
            copy_stream(self.source.connection, query, self.target, command, self.table.name)
        written = write.merge(self.target, self.spec, Equality.XMIN_AND_CONTENT)
        drop(self.target, staging)
        return written

    def _read(self, one: Range, piece: int) -> None:
        xmin = [sql.SQL("xmin::text::bigint")] if self.by_xmin else []
        query = sql.SQL(_READ).format(
            key=cast_columns(self.spec.key, self.spec.casts),
            version=row_hash(self._columns, self.spec.casts, *xmin, masks=self.table.masks),
            piece=sql.Literal(piece),
            leaf=only(one.leaf),
            range=one.condition,
        )
        command = sql.SQL("copy {} from stdin").format(_PART)
        with translate_errors("source", self.table.name):
            copy_stream(self.source.connection, query, self.target, command, self.table.name)

    def _differing(self) -> list[tuple[int, int, list[str] | None]]:
        xmin = [TARGET_XMIN] if self.by_xmin else []
        query = sql.SQL(_DIFFERING).format(
            most=sql.Literal(MOST_TIDS_PER_RANGE),
            part=_PART,
            key=self._numbered,
            version=row_hash(self._columns, {}, *xmin),
            target=self.spec.target.sql,
            joined=equal_columns(self._numbers),
        )
        return self.target.execute(query).fetchall()

    @property
    def _numbers(self) -> list[str]:
        """Names of the key columns that no other column of the comparison has."""
        return [f"k{number}" for number in range(len(self.spec.key))]

    @property
    def _numbered(self) -> sql.Composable:
        return sql.SQL(", ").join(
            sql.SQL("{} as {}").format(sql.Identifier(name), sql.Identifier(number))
            for name, number in zip(self.spec.key, self._numbers, strict=True)
        )


def _selection(one: Range, tids: list[str] | None) -> Selection:
    if tids is None:
        return rows_in(one, sql.SQL("true"))
    return rows_in(one, sql.SQL("ctid = any({}::tid[])").format(sql.Literal(tids)))
