"""Building a purpose replica's file: the SELECT of each table, run by a child process."""

import json
import subprocess
import sys
from pathlib import Path

from replica_platform.replica.errors import PurposeWrong
from replica_platform.replica.purpose import build_program
from replica_platform.replica.purpose.columns import ColumnTypes, read_column_types
from replica_platform.replica.purpose.definition import Part, Purpose
from replica_platform.replica.purpose.rules import ALL, schema_and_table

REDACTED = "***"


def build(purpose: Purpose, master: Path, target: Path, storage: str) -> None:
    """Write a purpose replica into the new file `target`, from a master at rest.

    Raises:
        PurposeWrong: The master lacks a table or a column, or a condition is wrong.
    """
    types = read_column_types(master)
    tables = []
    for name, part in purpose.tables.items():
        schema, table = schema_and_table(name)
        tables.append(
            {
                "schema": _quoted(schema),
                "table": f"{_quoted(schema)}.{_quoted(table)}",
                "select": _select(purpose, (schema, table), part, types),
            }
        )
    finished = subprocess.run(
        [sys.executable, "-I", build_program.__file__, str(master), str(target), storage],
        input=json.dumps(tables),
        capture_output=True,
        text=True,
    )
    if finished.returncode != 0:
        reason = " ".join(finished.stderr.split())
        reason = reason or f"the process ended with code {finished.returncode}"
        raise PurposeWrong(
            f"The purpose {purpose.name} cannot be built ({reason}); nothing was published and "
            "readers keep their generation. Correct the purpose, and publish again."
        )


def _select(purpose: Purpose, table: tuple[str, str], part: Part, types: ColumnTypes) -> str:
    """Return the SELECT of one table.

    Raises:
        PurposeWrong: The master lacks the table or a column.
    """
    kinds = types.get(table)
    if kinds is None:
        raise PurposeWrong(f"{purpose.name}: the master has no table {'.'.join(table)}.")
    columns = tuple(kinds) if part.columns == ALL else part.columns
    if unknown := sorted({*columns, *part.mask} - set(kinds)):
        raise PurposeWrong(f"{purpose.name}: {'.'.join(table)} has no column {unknown[0]}.")
    if unused := sorted(set(part.mask) - set(columns)):
        raise PurposeWrong(f"{purpose.name}: {unused[0]} is masked but not among the columns.")
    expressions = ", ".join(
        _expression(purpose, column, kinds[column], part.mask.get(column)) for column in columns
    )
    condition = f" where {part.where}" if part.where else ""
    return f"select {expressions} from master.{_quoted(table[0])}.{_quoted(table[1])}{condition}"


def _expression(purpose: Purpose, column: str, kind: str, mask: str | None) -> str:
    name = _quoted(column)
    if mask is None:
        return name
    if mask == "null":
        return f"cast(null as {kind}) as {name}"
    if mask == "redact":
        return f"case when {name} is not null then '{REDACTED}' end as {name}"
    salt = (purpose.salt or "").replace("'", "''")
    return f"sha256('{salt}' || cast({name} as varchar)) as {name}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
