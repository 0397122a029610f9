"""A source table reduced to the columns to copy, with masks in the place of values.

All that reads rows selects its columns by the table (`SourceTable.selected`), so copies, hashes and
comparisons see the masked values and nothing else.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.names import TableName
from replica_platform.xmin.reports import Mask, TableSpec
from replica_platform.xmin.source.catalog import SourceColumn, SourceTable

MASKS = ("null", "hash", "fixed")


def project(table: SourceTable, spec: TableSpec, key: tuple[str, ...]) -> SourceTable:
    """Return the table with only the columns that a spec copies, masked as it says.

    Args:
        table: The table as the catalog describes it.
        spec: What is to be copied.
        key: The columns that rows are matched by; they are always copied as they are.

    Raises:
        CannotSync: The spec names a column that the table lacks, names one twice, leaves out or
            masks a key column, or masks in a way that does not exist.
    """
    if spec.columns is None and not spec.left_out and not spec.masks:
        return table
    _check_names(table, spec)
    _check_key(table, spec, key)
    wanted = [column for column in table.columns if _is_copied(column.name, spec)]
    return replace(
        table,
        columns=tuple(_masked(table, column, spec.masks.get(column.name)) for column in wanted),
        left_out={c.attnum: c.name for c in table.columns if not _is_copied(c.name, spec)},
    )


def _is_copied(name: str, spec: TableSpec) -> bool:
    return name not in spec.left_out and (spec.columns is None or name in spec.columns)


def _check_names(table: SourceTable, spec: TableSpec) -> None:
    named = [*(spec.columns or ())]
    if not spec.lenient:
        named += [*spec.left_out, *spec.masks]
    unknown = [name for name in named if name not in table.names]
    if unknown:
        raise CannotSync(
            f"{table.name} has no column {unknown[0]}; it has {', '.join(table.names)}."
        )
    both = [name for name in spec.left_out if name in (*(spec.columns or ()), *spec.masks)]
    if both:
        raise CannotSync(
            f"Column {both[0]} of {table.name} is left out, and also copied or masked; "
            "remove it from one of them."
        )
    omitted = [n for n in spec.masks if n in table.names and not _is_copied(n, spec)]
    if omitted:
        raise CannotSync(f"Column {omitted[0]} of {table.name} is masked, but not among `columns`.")


def _check_key(table: SourceTable, spec: TableSpec, key: tuple[str, ...]) -> None:
    for name in key:
        if name in spec.masks or not _is_copied(name, spec):
            raise CannotSync(
                f"Column {name} is part of the key of {table.name}, so it can neither be left out "
                "nor masked; name other key columns with `key`, or sync a view without it."
            )


def _masked(table: SourceTable, column: SourceColumn, mask: Mask | None) -> SourceColumn:
    if mask is None:
        return column
    if mask.kind not in MASKS:
        raise CannotSync(
            f"Column {column.name} of {table.name} is masked by {mask.kind!r}; "
            f"use one of {', '.join(MASKS)}."
        )
    expression = _expression(table, column, mask)
    if mask.kind == "hash":
        return replace(
            column, type="text", binary=True, built_in=True, missing=None, mask=expression
        )
    return replace(column, missing=None, mask=expression)


def as_delivered(
    table: SourceTable, fingerprint: Mapping[str, Any], masks: Mapping[str, Mask]
) -> SourceTable:
    """Return the table with the columns and masks of its last sync.

    Args:
        table: The table as the catalog describes it.
        fingerprint: What the watermark knows of it.
        masks: The masks as far as they are known here; a column whose mask is not known, or not
            that of the last sync, is left out.
    """
    left_out = set(fingerprint.get("left_out", ()))
    masked = fingerprint.get("masked", {})
    columns = []
    for column in table.columns:
        digest = masked.get(str(column.attnum))
        if digest is not None:
            column = _masked(table, column, masks.get(column.name))
        if column.attnum not in left_out and column.mask_digest == (digest or ""):
            columns.append(column)
    copied = {column.attnum for column in columns}
    others = {c.attnum: c.name for c in table.columns if c.attnum not in copied}
    return replace(table, columns=tuple(columns), left_out=others)


def refuse_exposure(table: SourceTable, fingerprint: Mapping[str, Any], target: TableName) -> None:
    """Refuse to copy a column as it is that the last sync masked or left out.

    A sync by hand that forgets the masks of the platform would bring what they keep away.

    Raises:
        CannotSync: It names the column, and how it is copied on purpose.
    """
    masked = {int(attnum) for attnum in fingerprint.get("masked", {})}
    hidden = masked | set(fingerprint.get("left_out", ()))
    for column in table.columns:
        if column.mask is None and column.attnum in hidden:
            was = "masked" if column.attnum in masked else "left out"
            raise CannotSync(
                f"Column {column.name} of {table.name} was {was} at the last sync, and would be "
                "copied as it is now. Name the mask or the left out column again, on the command "
                "line with `--mask` or `--leave-out`; or, to copy it on "
                f"purpose, run `replica forget-table {target}` and sync again."
            )


def check_fixed_values(connection: psycopg.Connection, table: SourceTable) -> None:
    """Refuse a fixed value that is none of its column's type, before anything is read.

    Call it in a transaction.

    Raises:
        CannotSync: It names the column.
    """
    for column in table.columns:
        if column.mask is None or column.type == "text":
            continue
        try:
            with connection.transaction():
                connection.execute(sql.SQL("select {}").format(column.mask))
        except psycopg.Error as error:
            raise CannotSync(
                f"Column {column.name} of {table.name} is masked by a fixed value that is no "
                f"{column.type}: {error.diag.message_primary}."
            ) from None


def _expression(table: SourceTable, column: SourceColumn, mask: Mask) -> sql.Composed:
    if mask.kind == "hash":
        if not mask.salt:
            raise CannotSync(
                f"Column {column.name} of {table.name} is masked by hash, which needs a salt; "
                "without one its values can be guessed."
            )
        return sql.SQL("encode(sha256(convert_to({} || {}::text, 'UTF8')), 'hex')").format(
            sql.Literal(mask.salt), sql.Identifier(column.name)
        )
    value = None if mask.kind == "null" else mask.value
    # format_type has quoted the type already: it can be no parameter and no identifier.
    return sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(column.type))
