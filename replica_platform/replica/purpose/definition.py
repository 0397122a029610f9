"""Purpose replicas: for one use, some tables, columns and rows, some columns masked.

What a purpose is, and the SELECT of each of its tables. A part lists what goes out; nothing else
does, and what is written otherwise than it should be is refused. The file is built by `subset`,
in a child process, and published like any other into a store of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from replica_platform.replica.errors import PurposeWrong
from replica_platform.replica.master import Master
from replica_platform.replica.purpose import subset
from replica_platform.replica.purpose.rules import (
    ALL,
    MASKS,
    PART_KEYS,
    PURPOSE_KEYS,
    assert_keys_known,
    assert_keys_once,
    assert_part,
    assert_tables_named_once,
    schema_and_table,
)

REDACTED = "***"


@dataclass(frozen=True)
class Part:
    """What of one table: `columns` ("all": every column, future ones too), rows that fulfil the
    SQL condition `where`, and `mask`, a way for a column: null, redact (text becomes ***) or hash
    (SHA-256 with the purpose's salt: equal values stay equal, none can be guessed without the
    salt). `left_out` names columns that are not published on purpose ("all": every other one);
    it only keeps `unlisted_columns` from naming them."""

    columns: tuple[str, ...] | Literal["all"]
    where: str | None = None
    mask: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] | Literal["all"] = ()


@dataclass(frozen=True)
class Purpose:
    """A replica for `name`: its tables ("schema.table", or "table" in main), each with its part.

    keep, min_age_s: its own retention. max_age_s: when its readers' data counts as stale.
    salt: the secret that `hash` masks with; it is never written down.
    Errors: `PurposeWrong`, for a part that could let out more than it lists.
    """

    name: str
    tables: Mapping[str, Part]
    keep: int = 3
    min_age_s: float = 60.0
    max_age_s: float | None = None
    salt: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.tables:
            raise PurposeWrong(f"The purpose {self.name} names no table; name one under tables.")
        assert_tables_named_once(self.name, self.tables)
        for table, part in self.tables.items():
            assert_part(f"{self.name}: {table}", part, has_salt=bool(self.salt))

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, Any]) -> Self:
        """Return the purpose that a mapping, such as one from YAML, describes.

        Args:
            name: The purpose's name.
            fields: `tables` (each with columns, left_out, mask, where), keep, min_age_s,
                max_age_s and salt_env, the environment variable that holds the salt.

        Raises:
            PurposeWrong: A key is unknown, or a value is empty or of another form.
        """
        given = dict(fields) if isinstance(fields, Mapping) else {}
        assert_keys_known(f"The purpose {name}", given, PURPOSE_KEYS)
        tables = given.pop("tables", None)
        if not isinstance(tables, Mapping) or not tables:
            raise PurposeWrong(
                f"The purpose {name} names no table; write under tables the name of each, "
                "and under it its columns."
            )
        variable = given.pop("salt_env", None)
        return cls(
            name=name,
            tables={table: _part(f"{name}: {table}", part) for table, part in tables.items()},
            salt=os.environ.get(variable) if variable else None,
            **given,
        )

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
    """Return the purposes in a YAML file: names mapped to what `Purpose.from_dict` takes."""
    import yaml

    assert_keys_once(path)
    with Path(path).open() as file:
        written = yaml.safe_load(file) or {}
    if not isinstance(written, dict):
        raise PurposeWrong(f"{path} should map the names of purposes to what they hold.")
    return [Purpose.from_dict(name, fields or {}) for name, fields in written.items()]


@dataclass(frozen=True)
class UnlistedColumns:
    """The columns ("table.column") of a purpose's tables that it neither lists nor leaves out."""

    purpose: str
    columns: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.columns

    @property
    def sentence(self) -> str:
        """What is not published and what to do next, or that all is well."""
        if self.ok:
            return f"The purpose {self.purpose} lists or leaves out every column of its tables."
        return (
            f"The purpose {self.purpose} neither lists nor leaves out {', '.join(self.columns)} of "
            "the master, so it is not published. Add it to the table's columns (with a mask if it "
            "is personal), or to its left_out."
        )


def unlisted_columns(purpose: Purpose, master: Path | str) -> UnlistedColumns:
    """Find the master's columns that the purpose neither lists nor leaves out, new ones say.

    Raises:
        MasterBusy: Another process writes the master.
    """
    with Master(master).read() as connection:
        found = _by_table(connection.execute(_COLUMNS).fetchall())
    unlisted = []
    for name, part in purpose.tables.items():
        if ALL in (part.columns, part.left_out):
            continue
        table = schema_and_table(name)
        known = {column.casefold() for column in (*part.columns, *part.left_out)}
        # A table that the master lacks is the publication's to refuse.
        unlisted += [
            f"{table[1] if table[0] == 'main' else '.'.join(table)}.{column}"
            for column in found.get(table, {})
            if column.casefold() not in known
        ]
    return UnlistedColumns(purpose.name, tuple(sorted(unlisted)))


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


_COLUMNS = (
    "select schema_name, table_name, column_name, data_type from duckdb_columns() "
    "where not internal and database_name = current_database() "
    "and (schema_name, table_name) in (select (schema_name, table_name) from duckdb_tables()) "
    "order by schema_name, table_name, column_index"
)
_LIST_COLUMNS = f"""
import duckdb, json, sys
connection = duckdb.connect(sys.argv[1], read_only=True)
print(json.dumps(connection.execute({_COLUMNS!r}).fetchall()))
"""

# Each table of the master by its schema and name: its columns, and their types.
Columns = dict[tuple[str, str], dict[str, str]]


def _columns(master: Path) -> Columns:
    # In a child as well: DuckDB closing the master here would drop the lock that we hold on it.
    finished = subprocess.run(
        [sys.executable, "-I", "-c", _LIST_COLUMNS, str(master)], capture_output=True, text=True
    )
    if finished.returncode != 0:
        raise PurposeWrong(f"The master {master} cannot be read: {finished.stderr.strip()}")
    return _by_table(json.loads(finished.stdout))


def _by_table(rows: Iterable[Iterable[str]]) -> Columns:
    found: Columns = {}
    for schema, table, column, kind in rows:
        found.setdefault((schema, table), {})[column] = kind
    return found


def _selects(purpose: Purpose, master: Columns) -> dict[tuple[str, str], str]:
    return {
        schema_and_table(name): _select(purpose, schema_and_table(name), part, master)
        for name, part in purpose.tables.items()
    }


def _select(purpose: Purpose, table: tuple[str, str], part: Part, master: Columns) -> str:
    kinds = master.get(table)
    if kinds is None:
        raise PurposeWrong(f"{purpose.name}: the master has no table {'.'.join(table)}.")
    columns = tuple(kinds) if part.columns == ALL else part.columns
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


def _part(where: str, given: Any) -> Part:
    """Return the part that a mapping describes; `where` names purpose and table in errors."""
    if not isinstance(given, Mapping):
        raise PurposeWrong(f"{where} needs columns: write a list of them under it.")
    assert_keys_known(where, given, PART_KEYS)
    for key in PART_KEYS:
        # Written without a value, it would mean what it means left away: all of it, unmasked.
        if key in given and given[key] in (None, "", [], {}):
            raise PurposeWrong(f"{where}: {key} is empty; say what it is, or remove the key.")
    mask = given.get("mask", {})
    if not isinstance(mask, Mapping):
        raise PurposeWrong(f"{where}: mask maps each column to one of {', '.join(MASKS)}.")
    columns, left_out = given.get("columns", ()), given.get("left_out", ())
    return Part(
        columns=tuple(columns) if isinstance(columns, list) else columns,
        where=given.get("where"),
        # YAML reads a bare null as no value.
        mask={column: "null" if way is None else way for column, way in mask.items()},
        left_out=tuple(left_out) if isinstance(left_out, list) else left_out,
    )
