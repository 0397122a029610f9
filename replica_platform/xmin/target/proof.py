"""Proofs: when the content of each target table was proven equal, and how far the next proof is.

They stand beside the watermarks; the comparison itself is `integrity`'s.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.names import TableName
from replica_platform.xmin.target.schemas import SCHEMA
from replica_platform.xmin.target.watermark import LOCK_SPACE

_TABLES = {"proof": sql.Identifier(SCHEMA, "proof"), "round": sql.Identifier(SCHEMA, "proof_round")}
_SETUP = """
create table if not exists {proof} (
    target_table text primary key,
    target_oid oid not null,
    rows bigint not null,
    proven_at timestamptz not null default clock_timestamp()
);
create table if not exists {round} (
    target_table text primary key,
    target_oid oid not null,
    leaf bigint not null default 0,
    filenode bigint not null default 0,
    block bigint not null default 0,
    rows bigint not null default 0,
    began_at timestamptz not null default clock_timestamp(),
    part_at timestamptz not null default clock_timestamp(),
    repaired bigint not null default 0,
    repaired_at timestamptz
)
"""
_WRITE = """
insert into {proof} (target_table, target_oid, rows) values (%s, %s, %s)
on conflict (target_table) do update set
    (target_oid, rows, proven_at) = (excluded.target_oid, excluded.rows, clock_timestamp())
"""
_READ = """
select extract(epoch from clock_timestamp() - proven_at)::float8, rows
from {proof} where target_table = %s and target_oid = %s
"""
_READ_ROUNDS = """
select target_table, target_oid, leaf, filenode, block, rows,
       extract(epoch from clock_timestamp() - part_at)::float8, repaired,
       extract(epoch from clock_timestamp() - repaired_at)::float8
from {round} where target_table = any(%s)
"""
_BEGIN_ROUND = """
insert into {round} (target_table, target_oid) values (%(table)s, %(oid)s)
on conflict (target_table) do update set
    (target_oid, leaf, filenode, block, rows, began_at, part_at)
    = (excluded.target_oid, 0, 0, 0, 0, excluded.began_at, excluded.part_at)
"""
_MOVE_ROUND = """
update {round} set (leaf, filenode, block, rows, part_at)
    = (%(leaf)s, %(filenode)s, %(block)s, rows + %(rows)s, clock_timestamp())
where target_table = %(table)s
"""
# A row may have been proven as early as the round began.
_END_ROUND = """
insert into {proof} (target_table, target_oid, rows, proven_at)
select target_table, target_oid, rows, began_at from {round} where target_table = %(table)s
on conflict (target_table) do update set
    (target_oid, rows, proven_at) = (excluded.target_oid, excluded.rows, excluded.proven_at)
"""
_REPAIRED = """
update {round} set (repaired, repaired_at) = (%(rows)s, clock_timestamp())
where target_table = %(table)s
"""


@dataclass(frozen=True)
class Proof:
    """The last proof of a table's whole content.

    Attributes:
        age_s: Seconds since, by the target's clock; of a proof by parts, since the first part.
        rows: How many rows were proven equal.
    """

    age_s: float
    rows: int


@dataclass(frozen=True)
class Position:
    """Where a proof by parts continues in the source table.

    Attributes:
        leaf: The oid of the leaf; 0 for the start.
        filenode: The file of the leaf.
        block: The first block that has not been proven.
    """

    leaf: int = 0
    filenode: int = 0
    block: int = 0


@dataclass(frozen=True)
class ProofRound:
    """How far the proof by parts of one table has come.

    Attributes:
        target_oid: The oid of the target table.
        position: Where it continues.
        rows: How many rows were proven in this round.
        part_age_s: Seconds since the last part.
        repaired: How many rows the last part that found differences has repaired.
        repaired_age_s: Seconds since then; None where nothing has ever differed.
    """

    target_oid: int
    position: Position
    rows: int
    part_age_s: float
    repaired: int
    repaired_age_s: float | None


def read_proof(target: psycopg.Connection, table: TableName, oid: int) -> Proof | None:
    """Return the last proof of a table; None without one, or where the table was made again."""
    if not _is_set_up(target, "proof"):
        return None
    row = target.execute(_sql(_READ), [str(table), oid]).fetchone()
    return Proof(*row) if row else None


def write_proof(target: psycopg.Connection, table: TableName, oid: int, rows: int) -> None:
    """Store a proof of the whole table, as of now."""
    _set_up(target)
    target.execute(_sql(_WRITE), [str(table), oid, rows])


def read_rounds(
    target: psycopg.Connection, tables: Iterable[TableName]
) -> dict[TableName, ProofRound]:
    """Return how far the proofs by parts have come, in one statement."""
    if not _is_set_up(target, "proof_round"):
        return {}
    names = {str(table): table for table in tables}
    return {
        names[name]: ProofRound(oid, Position(leaf, filenode, block), *rest)
        for name, oid, leaf, filenode, block, *rest in target.execute(
            _sql(_READ_ROUNDS), [list(names)]
        )
    }


def begin_round(target: psycopg.Connection, table: TableName, oid: int) -> None:
    """Begin a new round at the start of the table."""
    _set_up(target)
    target.execute(_sql(_BEGIN_ROUND), {"table": str(table), "oid": oid})


def write_part(
    target: psycopg.Connection, table: TableName, reached: Position, rows: int, repaired: int
) -> None:
    """Store that a part was proven.

    Args:
        target: A session on the target.
        table: The target table.
        reached: Where the next part begins.
        rows: How many rows the part had.
        repaired: How many of them were repaired.
    """
    values = {**reached.__dict__, "table": str(table), "rows": rows}
    target.execute(_sql(_MOVE_ROUND), values)
    if repaired:
        target.execute(_sql(_REPAIRED), {"table": str(table), "rows": repaired})


def end_round(target: psycopg.Connection, table: TableName, oid: int) -> None:
    """Make a round that has reached the end of the table a proof of it, and begin the next one."""
    target.execute(_sql(_END_ROUND), {"table": str(table)})
    begin_round(target, table, oid)


def forget_proofs(target: psycopg.Connection, table: TableName) -> None:
    """Remove what is stored of a table."""
    for name, quoted in _TABLES.items():
        if _is_set_up(target, "proof_round" if name == "round" else name):
            query = sql.SQL("delete from {} where target_table = %s").format(quoted)
            target.execute(query, [str(table)])


def _is_set_up(target: psycopg.Connection, table: str) -> bool:
    return bool(
        one_value(target.execute("select to_regclass(%s) is not null", [f"{SCHEMA}.{table}"]))
    )


def _set_up(target: psycopg.Connection) -> None:
    if _is_set_up(target, "proof_round") and _is_set_up(target, "proof"):
        return
    with target.transaction():
        # CREATE … IF NOT EXISTS fails beside another session that does the same.
        target.execute("select pg_advisory_xact_lock(%s, 0)", [LOCK_SPACE])
        target.execute(_sql(_SETUP))


def _sql(statement: str) -> sql.Composed:
    return sql.SQL(statement).format(**_TABLES)
