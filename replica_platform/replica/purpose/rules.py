"""What a purpose's definition may say: nothing misspelt, empty or ambiguous.

Each mistake that is refused here would, if ignored, publish more than was meant. Whether the
master has the columns is checked when the file is built.
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
    """Refuse a YAML file in which a mapping has a key twice; a parser would keep only the last.

    Raises:
        PurposeWrong: Names the line and the key.
    """
    import yaml

    with Path(path).open() as file:
        documents = list(yaml.compose_all(file, Loader=yaml.SafeLoader))
    seen: set[int] = set()  # an alias leads to the same node again
    waiting = [node for node in documents if node is not None]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [value for _, value in node.value]
            _assert_node_keys_once(path, [key for key, _ in node.value])


def _assert_node_keys_once(path: Path | str, nodes: list[Any]) -> None:
    import yaml

    keys: set[str] = set()
    for key in nodes:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in keys:
            raise PurposeWrong(
                f"{path}, line {key.start_mark.line + 1}: the key {key.value} is written "
                "twice; write it once, with everything that belongs under it."
            )
        keys.add(key.value)


def schema_and_table(name: str) -> tuple[str, str]:
    """Return the schema and the table of a name in a purpose."""
    schema, _, table = name.rpartition(".")
    return schema or "main", table


def assert_keys_known(owner: str, given: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    """Refuse keys that are not in `known`; `owner` names what has them.

    Raises:
        PurposeWrong: Names each key and the nearest known one.
    """
    wrong = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            wrong.append(f"{key!r}" + (f" (do you mean {near[0]!r}?)" if near else ""))
    if wrong:
        raise PurposeWrong(
            f"{owner} has no key {', '.join(wrong)}; its keys are {', '.join(known[:-1])} "
            f"and {known[-1]}."
        )


def assert_tables_named_once(purpose: str, tables: Iterable[str]) -> None:
    """Refuse `*`, and two names for the same table.

    Raises:
        PurposeWrong: Names them.
    """
    seen: dict[tuple[str, str], str] = {}
    for name in tables:
        if not isinstance(name, str):
            raise PurposeWrong(
                f"{purpose}: under tables, {name!r} is not a name; put it in quotes."
            )
        if name == "*":
            raise PurposeWrong(
                f"{purpose}: '*' would publish every table, including those that are added later; "
                "name each table, with its columns."
            )
        schema, table = schema_and_table(name)
        # DuckDB ignores case in names.
        first = seen.setdefault((schema.casefold(), table.casefold()), name)
        if first != name:
            raise PurposeWrong(f"{purpose}: {first} and {name} are the same table; write it once.")


def assert_part(table: str, part: "Part", *, has_salt: bool) -> None:
    """Refuse a part that could publish more than it lists; `table` names it in errors.

    Raises:
        PurposeWrong: Says what is wrong.
    """
    if part.columns != ALL:
        _assert_names(table, "columns", part.columns)
        if not part.columns:
            raise PurposeWrong(
                f"{table} lists no columns; list those to publish, or write columns: all "
                "for every one, including those that are added later."
            )
    if part.where is not None and not (isinstance(part.where, str) and part.where.strip()):
        raise PurposeWrong(
            f"{table}: where is {part.where!r}; write a SQL condition, or remove it."
        )
    _assert_left_out(table, part)
    _assert_masks(table, part.mask, has_salt)


def _assert_masks(table: str, masks: Mapping[str, str], has_salt: bool) -> None:
    _assert_names(table, "mask", tuple(masks))
    for column, mask in masks.items():
        if mask not in MASKS:
            raise PurposeWrong(
                f"{table}.{column} is masked by {mask!r}; use one of {', '.join(MASKS)}."
            )
        if mask == "hash" and not has_salt:
            raise PurposeWrong(
                f"{table}.{column} is masked by hash, which needs a salt; "
                "name the environment variable that holds it as salt_env."
            )


def _assert_left_out(table: str, part: "Part") -> None:
    if part.columns == ALL:
        if part.left_out:
            raise PurposeWrong(
                f"{table} has both columns: all and left_out; list under columns those to publish."
            )
        return
    if part.left_out == ALL:
        return
    _assert_names(table, "left_out", part.left_out)
    listed = {column.casefold() for column in part.columns}
    for column in part.left_out:
        if column.casefold() in listed:
            raise PurposeWrong(
                f"{table}: {column!r} is among the columns and in left_out; remove it from one."
            )


def _assert_names(table: str, key: str, names: Any) -> None:
    """Refuse anything but a list of names, each written once."""
    if not isinstance(names, tuple | list):
        raise PurposeWrong(f"{table}: {key} is {names!r}; write a list of names, or {ALL}.")
    seen = set()
    for name in names:
        if not isinstance(name, str):
            raise PurposeWrong(f"{table}: under {key}, {name!r} is not a name; put it in quotes.")
        if name.casefold() in seen:
            raise PurposeWrong(f"{table}: {key} names {name!r} twice; write it once.")
        seen.add(name.casefold())
