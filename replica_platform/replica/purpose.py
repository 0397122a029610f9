"""Purpose replicas: for one use, some tables, columns and rows, some columns masked.

What a purpose is, and the SELECT of each of its tables. The file is built by `subset`, in a child
process, and published like any other into a store of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from replica_platform.replica import subset
from replica_platform.replica.errors import PurposeWrong

MASKS = ("null", "redact", "hash")
REDACTED = "***"


@dataclass(frozen=True)
class Part:
    """What of one table: `columns` (all when None), rows that fulfil the SQL condition `where`,
    and `mask`, a way for a column: null, redact (text becomes ***) or hash (SHA-256 with the
    purpose's salt: equal values stay equal, none can be guessed without the salt)."""

    columns: tuple[str, ...] | None = None
    where: str | None = None
    mask: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Purpose:
    """A replica for `name`: its tables ("schema.table", or "table" in main; "*" for every one).

    keep, min_age_s: its own retention. max_age_s: when its readers' data counts as stale.
    salt: the secret that `hash` masks with; it is never written down.
    """

    name: str
    tables: Mapping[str, Part]
    keep: int = 3
    min_age_s: float = 60.0
    max_age_s: float | None = None
    salt: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.tables:
            raise PurposeWrong(f"The purpose {self.name} names no table; name one, or '*'.")
        for table, part in self.tables.items():
            for column, way in part.mask.items():
                if way not in MASKS:
                    raise PurposeWrong(
                        f"{self.name}: {table}.{column} is masked by {way!r}; "
                        f"use one of {', '.join(MASKS)}."
                    )
                if way == "hash" and not self.salt:
                    raise PurposeWrong(
                        f"{self.name}: {table}.{column} is masked by hash, which needs a salt; "
                        "name the environment variable that holds it as salt_env."
                    )

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, Any]) -> Self:
        """A purpose from what YAML gives. Errors: `PurposeWrong`."""
        given = dict(fields)
        variable = given.pop("salt_env", None)
        try:
            tables = {
                table: Part(
                    columns=tuple(part["columns"]) if part.get("columns") else None,
                    where=part.get("where"),
                    mask=dict(part.get("mask") or {}),
                )
                for table, part in ((t, p or {}) for t, p in given.pop("tables").items())
            }
            salt = os.environ.get(variable) if variable else None
            return cls(name=name, tables=tables, salt=salt, **given)
        except (KeyError, TypeError, AttributeError) as error:
            raise PurposeWrong(
                f"The purpose {name} is not written as it should be ({error}); it has tables "
                "(each with columns, where, mask), keep, min_age_s, max_age_s and salt_env."
            ) from error

    @property
    def recipe(self) -> str:
        """A digest of what it is, so that a changed purpose is published though the data is not."""
        tables = {
            table: [part.columns, part.where, sorted(part.mask.items())]
            for table, part in sorted(self.tables.items())
        }
        salt = hashlib.sha256((self.salt or "").encode()).hexdigest()
        written = json.dumps([self.name, tables, salt])
        return hashlib.sha256(written.encode()).hexdigest()[:32]


def load_purposes(path: Path | str) -> list[Purpose]:
    """The purposes in a YAML file: a mapping of names to what `Purpose.from_dict` takes."""
    import yaml

    with Path(path).open() as file:
        written = yaml.safe_load(file) or {}
    if not isinstance(written, dict):
        raise PurposeWrong(f"{path} should map the names of purposes to what they hold.")
    return [Purpose.from_dict(name, fields or {}) for name, fields in written.items()]


def build(purpose: Purpose, master: Path, target: Path, storage: str) -> None:
    """Write the replica's file to `target`, from a master at rest. Errors: `PurposeWrong`."""
    tables = [
        {"schema": _quoted(schema), "table": f"{_quoted(schema)}.{_quoted(table)}", "select": sql}
        for (schema, table), sql in _selects(purpose, _columns(master)).items()
    ]
    finished = subprocess.run(
        [sys.executable, "-I", subset.__file__, str(master), str(target), storage],
        input=json.dumps(tables),
        capture_output=True,
        text=True,
    )
    if finished.returncode != 0:
        said = " ".join(finished.stderr.split()) or f"it died with code {finished.returncode}"
        raise PurposeWrong(
            f"The purpose {purpose.name} cannot be built ({said}); nothing was published and "
            "readers keep their generation. Correct the purpose, and publish again."
        )


_COLUMNS = """
import duckdb, json, sys
connection = duckdb.connect(sys.argv[1], read_only=True)
print(json.dumps(connection.execute(
    "select schema_name, table_name, column_name, data_type from duckdb_columns() "
    "where not internal and database_name = current_database() "
    "and (schema_name, table_name) in (select (schema_name, table_name) from duckdb_tables()) "
    "order by schema_name, table_name, column_index"
).fetchall()))
"""


def _columns(master: Path) -> dict[tuple[str, str], dict[str, str]]:
    # In a child as well: DuckDB closing the master here would drop the lock that we hold on it.
    finished = subprocess.run(
        [sys.executable, "-I", "-c", _COLUMNS, str(master)], capture_output=True, text=True
    )
    if finished.returncode != 0:
        raise PurposeWrong(f"The master {master} cannot be read: {finished.stderr.strip()}")
    found: dict[tuple[str, str], dict[str, str]] = {}
    for schema, table, column, kind in json.loads(finished.stdout):
        found.setdefault((schema, table), {})[column] = kind
    return found


def _selects(
    purpose: Purpose, master: dict[tuple[str, str], dict[str, str]]
) -> dict[tuple[str, str], str]:
    selects = {}
    if "*" in purpose.tables:
        selects = {table: _select(purpose, table, Part(), master) for table in master}
    for name, part in purpose.tables.items():
        if name != "*":
            schema, _, table = name.rpartition(".")
            selects[schema or "main", table] = _select(
                purpose, (schema or "main", table), part, master
            )
    return selects


def _select(
    purpose: Purpose,
    table: tuple[str, str],
    part: Part,
    master: dict[tuple[str, str], dict[str, str]],
) -> str:
    kinds = master.get(table)
    if kinds is None:
        raise PurposeWrong(f"{purpose.name}: the master has no table {'.'.join(table)}.")
    columns = part.columns or tuple(kinds)
    if unknown := sorted({*columns, *part.mask} - set(kinds)):
        raise PurposeWrong(f"{purpose.name}: {'.'.join(table)} has no column {unknown[0]}.")
    if idle := sorted(set(part.mask) - set(columns)):
        raise PurposeWrong(f"{purpose.name}: {idle[0]} is masked but not among the columns.")
    shown = ", ".join(
        _expression(purpose, column, kinds[column], part.mask.get(column)) for column in columns
    )
    condition = f" where {part.where}" if part.where else ""
    return f"select {shown} from master.{_quoted(table[0])}.{_quoted(table[1])}{condition}"


def _expression(purpose: Purpose, column: str, kind: str, way: str | None) -> str:
    name = _quoted(column)
    if way is None:
        return name
    if way == "null":
        return f"cast(null as {kind}) as {name}"
    if way == "redact":
        return f"case when {name} is not null then '{REDACTED}' end as {name}"
    salt = (purpose.salt or "").replace("'", "''")
    return f"sha256('{salt}' || cast({name} as varchar)) as {name}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
