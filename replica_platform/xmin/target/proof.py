"""Proofs: when the content of each target table was last proven equal, and how many rows it had.

They stand beside the watermarks; the comparison itself is `integrity`'s.
"""

from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.names import TableName
from replica_platform.xmin.target.schemas import SCHEMA

_PROOF = sql.Identifier(SCHEMA, "proof")
_SETUP = """
create table if not exists {} (
    target_table text primary key,
    target_oid oid not null,
    rows bigint not null,
    proven_at timestamptz not null default clock_timestamp()
)
"""
_WRITE = """
insert into {} (target_table, target_oid, rows) values (%s, %s, %s)
on conflict (target_table) do update set
    (target_oid, rows, proven_at) = (excluded.target_oid, excluded.rows, clock_timestamp())
"""
_READ = """
select extract(epoch from clock_timestamp() - proven_at)::float8, rows
from {} where target_table = %s and target_oid = %s
"""


@dataclass(frozen=True)
class Proof:
    """The last proof of a table's content.

    Attributes:
        age_s: Seconds since, by the target's clock.
        rows: How many rows were proven equal.
    """

    age_s: float
    rows: int


def read_proof(target: psycopg.Connection, table: TableName, oid: int) -> Proof | None:
    """Return the last proof of a table; None without one, or where the table was made again."""
    if one_value(target.execute("select to_regclass(%s) is null", [f"{SCHEMA}.proof"])):
        return None
    row = target.execute(sql.SQL(_READ).format(_PROOF), [str(table), oid]).fetchone()
    return Proof(*row) if row else None


def write_proof(target: psycopg.Connection, table: TableName, oid: int, rows: int) -> None:
    """Store a proof, as of now."""
    if one_value(target.execute("select to_regclass(%s) is null", [f"{SCHEMA}.proof"])):
        target.execute(sql.SQL(_SETUP).format(_PROOF))
    target.execute(sql.SQL(_WRITE).format(_PROOF), [str(table), oid, rows])
