"""Rules for what a purpose may say: anything misspelt, empty or ambiguous is refused.

Each of these, if ignored, would publish more than was asked for. What a part's columns are in the
master is not looked at here.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_platform.replica.errors import PurposeWrong

if TYPE_CHECKING:
    from replica_platform.replica.purpose.definition import Part

MASKS = ("null", "redact", "hash")
ALL = "all"

PART_KEYS = ("columns", "left_out", "mask", "where")
PURPOSE_KEYS = ("keep", "max_age_s", "min_age_s", "salt_env", "tables")


def assert_keys_once(path: Path | str) -> None:
    """Refuse a YAML file that writes a key of a mapping twice: a YAML parser keeps the last only.

    Raises:
        PurposeWrong: Names the line and the key.
    """
    import yaml

    with Path(path).open() as file:
        documents = list(yaml.compose_all(file, Loader=yaml.SafeLoader))
    seen: set[int] = set()  # an alias leads to a node a second time
    waiting = [node for node in documents if node is not None]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                waiting.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in keys:
                    raise PurposeWrong(
                        f"{path}, line {key.start_mark.line + 1}: the key {key.value} is written "
                        "twice; write it once, with all that belongs under it."
                    )
                keys.add(key.value)


def schema_and_table(name: str) -> tuple[str, str]:
    """Return the schema and the table that a purpose calls `name`."""
    schema, _, table = name.rpartition(".")
    return schema or "main", table


def assert_keys_known(where: str, given: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    """Refuse keys outside of `known`, by name, with the nearest known one."""
    wrong = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            wrong.append(f"{key!r}" + (f" (do you mean {near[0]!r}?)" if near else ""))
    if wrong:
        raise PurposeWrong(
            f"{where} has no key {', '.join(wrong)}; it has {', '.join(known[:-1])} "
            f"and {known[-1]}."
        )


def assert_tables_named_once(purpose: str, tables: Iterable[str]) -> None:
    """Refuse `*`, and two names for the same table."""
    seen: dict[tuple[str, str], str] = {}
    for name in tables:
        if not isinstance(name, str):
            raise PurposeWrong(f"{purpose}: under tables, {name!r} is no name; put it in quotes.")
        if name == "*":
            raise PurposeWrong(
                f"{purpose}: '*' would publish tables that nobody looked at, later ones too; "
                "name each table, with its columns."
            )
        schema, table = schema_and_table(name)
        # DuckDB does not tell upper from lower case in a name.
        first = seen.setdefault((schema.casefold(), table.casefold()), name)
        if first != name:
            raise PurposeWrong(f"{purpose}: {first} and {name} are the same table; write it once.")


def assert_part(where: str, part: "Part", *, has_salt: bool) -> None:
    """Refuse a part that could let out more than it lists; `where` names it in errors."""
    if part.columns != ALL:
        _assert_names(where, "columns", part.columns)
        if not part.columns:
            raise PurposeWrong(
                f"{where} lists no columns; list those that go out, or write columns: all "
                "for every one, future ones too."
            )
    if part.where is not None and not (isinstance(part.where, str) and part.where.strip()):
        raise PurposeWrong(
            f"{where}: where is {part.where!r}; write a SQL condition, or remove it."
        )
    _assert_left_out(where, part)
    _assert_names(where, "mask", tuple(part.mask))
    for column, way in part.mask.items():
        if way not in MASKS:
            raise PurposeWrong(
                f"{where}.{column} is masked by {way!r}; use one of {', '.join(MASKS)}."
            )
        if way == "hash" and not has_salt:
            raise PurposeWrong(
                f"{where}.{column} is masked by hash, which needs a salt; "
                "name the environment variable that holds it as salt_env."
            )


def _assert_left_out(where: str, part: "Part") -> None:
    if part.columns == ALL:
        if part.left_out:
            raise PurposeWrong(
                f"{where} has columns: all and left_out; list under columns those that go out."
            )
        return
    if part.left_out == ALL:
        return
    _assert_names(where, "left_out", part.left_out)
    listed = {column.casefold() for column in part.columns}
    for column in part.left_out:
        if column.casefold() in listed:
            raise PurposeWrong(
                f"{where}: {column!r} is among the columns and in left_out; remove it from one."
            )


def _assert_names(where: str, key: str, names: Any) -> None:
    """Refuse what is no list of names, each written once."""
    if not isinstance(names, tuple | list):
        raise PurposeWrong(f"{where}: {key} is {names!r}; write a list of names, or {ALL}.")
    seen = set()
    for name in names:
        if not isinstance(name, str):
            raise PurposeWrong(f"{where}: under {key}, {name!r} is no name; put it in quotes.")
        if name.casefold() in seen:
            raise PurposeWrong(f"{where}: {key} names {name!r} twice; write it once.")
        seen.add(name.casefold())
