"""A purpose replica's definition: its tables, columns, rows and masks, from Python or YAML.

Only what is listed is published. A definition that could publish more than was meant is refused,
see `rules`. Building the file is in `build`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from replica_platform.replica.errors import PurposeWrong
from replica_platform.replica.purpose.rules import (
    MASKS,
    PART_KEYS,
    PURPOSE_KEYS,
    assert_keys_known,
    assert_keys_once,
    assert_part,
    assert_tables_named_once,
)


@dataclass(frozen=True)
class Part:
    """What is published of one table.

    Attributes:
        columns: The columns; "all" for every one, including those that are added later.
        where: A SQL condition on the rows.
        mask: A mask by column: null, redact (text becomes ***) or hash (SHA-256 with the
            purpose's salt: equal values stay equal, and cannot be guessed without the salt).
        left_out: Columns that are omitted on purpose; "all" for every other one. Only
            `unlisted_columns` uses this.
    """

    columns: tuple[str, ...] | Literal["all"]
    where: str | None = None
    mask: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] | Literal["all"] = ()


@dataclass(frozen=True)
class Purpose:
    """A replica for one use.

    Attributes:
        name: The use.
        tables: The part of each table, by "schema.table", or "table" in main.
        keep: How many generations stay.
        min_age_s: How long, in seconds, each stays at least.
        max_age_s: The age in seconds beyond which the data counts as stale.
        salt: The secret for the hash mask; it is never stored.

    Raises:
        PurposeWrong: The definition could publish more than it lists.
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
                max_age_s, and salt_env, the environment variable that holds the salt.

        Returns:
            The purpose.

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
        """A digest of the definition: when it changes, the purpose is published again."""
        tables = {
            table: [part.columns, part.where, sorted(part.mask.items())]
            for table, part in sorted(self.tables.items())
        }
        salt = hashlib.sha256((self.salt or "").encode()).hexdigest()
        definition = json.dumps([self.name, tables, salt])
        return hashlib.sha256(definition.encode()).hexdigest()[:32]


def load_purposes(path: Path | str) -> list[Purpose]:
    """Return the purposes in a YAML file.

    Args:
        path: A file that maps names of purposes to what `Purpose.from_dict` takes.

    Returns:
        The purposes, in the file's order.

    Raises:
        PurposeWrong: A key is unknown or written twice, or a value is empty or of another form.
    """
    import yaml

    assert_keys_once(path)
    with Path(path).open() as file:
        given = yaml.safe_load(file) or {}
    if not isinstance(given, dict):
        raise PurposeWrong(f"{path} must map the name of each purpose to its definition.")
    return [Purpose.from_dict(name, fields or {}) for name, fields in given.items()]


def _part(table: str, given: Any) -> Part:
    """Return the part that a mapping describes; `table` names purpose and table in errors.

    Raises:
        PurposeWrong: A key is unknown, or a value is empty or of another form.
    """
    if not isinstance(given, Mapping):
        raise PurposeWrong(f"{table} needs columns: write a list of them under it.")
    assert_keys_known(table, given, PART_KEYS)
    for key in PART_KEYS:
        # An empty value would mean the same as no key: every row, no mask.
        if key in given and given[key] in (None, "", [], {}):
            raise PurposeWrong(f"{table}: {key} is empty; give it a value, or remove the key.")
    mask = given.get("mask", {})
    if not isinstance(mask, Mapping):
        raise PurposeWrong(f"{table}: mask maps each column to one of {', '.join(MASKS)}.")
    columns, left_out = given.get("columns", ()), given.get("left_out", ())
    return Part(
        columns=tuple(columns) if isinstance(columns, list) else columns,
        where=given.get("where"),
        # YAML reads a bare null as no value.
        mask={column: "null" if name is None else name for column, name in mask.items()},
        left_out=tuple(left_out) if isinstance(left_out, list) else left_out,
    )
