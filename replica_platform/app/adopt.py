"""The `defs.yaml` that is proposed for a database: its tables by pattern, with what to look at."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from replica_platform.app.configured import DEFS
from replica_platform.app.project import find_project
from replica_platform.core.errors import TerminalError
from replica_platform.core.reports import format_age, format_bytes
from replica_platform.xmin import Survey, SurveyedTable

# Tables whose size is said beside the pattern that takes them.
LARGEST = 5
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")


class AlreadyThere(TerminalError):
    """The file exists, and is not overwritten."""


def plain_name(text: str) -> str:
    """Return a text as a name of lower-case letters, digits and underscores."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "source"
    return name if _PLAIN_NAME.fullmatch(name) else f"db_{name}"


def proposal(found: Survey, name: str, source_env: str | None) -> str:
    """Return the text of a `defs.yaml` that syncs every table that can be synced.

    Args:
        found: What the database holds.
        name: The name of the group, and of the schema in the target. Schemas that hold tables of
            one name get a group each.
        source_env: The environment variable with the DSN; None for `REPLICA_SOURCE_DSN`.
    """
    tables = found.proposed
    head = [
        f"# Proposed by `replica adopt` for the database {found.database}; look it over.",
        f"# {len(tables)} tables, {format_bytes(found.bytes)}; the first copy takes about "
        f"{format_age(found.first_copy_s)}.",
    ]
    if source_env:
        head.append(f"# {source_env} holds the DSN, in the environment of the platform.")
    if found.views:
        head.append("# Views are synced by name, each with its `key`.")
    schemas = list(dict.fromkeys(table.name.schema for table in found.tables))
    twice = any(count > 1 for count in Counter(table.name.table for table in tables).values())
    groups = [[schema] for schema in schemas] if twice else [schemas]
    documents = []
    for group in groups:
        listed = [table for table in found.tables if table.name.schema in group]
        own = f"{name}_{plain_name(group[0])}" if twice else name
        if any(table.refusal is None for table in listed):
            documents.append("\n".join(_document(listed, own, source_env)))
    return "\n".join(head) + "\n" + "\n---\n".join(documents) + "\n"


def write_proposal(text: str, name: str, defs: Path | None = None) -> Path:
    """Write a proposal to `<name>/defs.yaml` below the folder of definitions.

    Args:
        text: The proposal.
        name: The name of its folder.
        defs: The folder of definitions; that of the project in the working folder, or of this
            package, if none is given.

    Raises:
        AlreadyThere: The file exists.
    """
    project = find_project()
    file = (defs or (project.defs if project else DEFS)) / name / "defs.yaml"
    file.parent.mkdir(exist_ok=True)
    try:
        with file.open("x") as to:
            to.write(text)
    except FileExistsError:
        raise AlreadyThere(
            f"{file} exists and is not overwritten; give another --name, or compare it with what "
            "is printed without --write."
        ) from None
    return file


def _document(tables: Sequence[SurveyedTable], name: str, source_env: str | None) -> Iterator[str]:
    yield "type: replica_platform.components.XminTables"
    yield "attributes:"
    yield f"  name: {name}"
    if source_env:
        yield f"  source: {source_env}"
    yield f"  into: {name}"
    yield "  tables:"
    for schema in dict.fromkeys(table.name.schema for table in tables):
        own = [table for table in tables if table.name.schema == schema]
        if all(table.refusal for table in own):
            yield from (f"    # Not {table.name}: {table.refusal}." for table in own)
        elif _PLAIN_NAME.fullmatch(schema):
            yield from _pattern(schema, own)
        else:
            yield from _each(own)


def _pattern(schema: str, tables: Sequence[SurveyedTable]) -> Iterator[str]:
    """Yield one entry for all tables of a schema, tables that are made later included."""
    proposed = [table for table in tables if table.refusal is None]
    largest = sorted(proposed, key=lambda table: -table.listed.bytes)[:LARGEST]
    sizes = ", ".join(f"{one.name} {format_bytes(one.listed.bytes)}" for one in largest)
    yield f"    # {len(proposed)} tables now; the largest: {sizes}."
    unkeyed = [str(table.name) for table in proposed if not table.listed.key]
    if unkeyed:
        yield f"    # Without a key, so each change means reading them whole: {', '.join(unkeyed)}."
    yield f"    - table: {_scalar(f'{schema}.*')}"
    refused = [table for table in tables if table.refusal]
    if refused:
        yield "      exclude:"
        yield from (f"        - {_scalar(str(one.name))} # {one.refusal}" for one in refused)
    yield from _mask(proposed)


def _each(tables: Sequence[SurveyedTable]) -> Iterator[str]:
    """Yield an entry for each table of a schema whose name is no part of a pattern."""
    for table in tables:
        if table.refusal:
            yield f"    # Not {table.name}: {table.refusal}."
            continue
        key = "" if table.listed.key else ", without a key"
        yield f"    - table: {_scalar(str(table.name))} # {format_bytes(table.listed.bytes)}{key}"
        yield from _mask([table])


def _mask(tables: Sequence[SurveyedTable]) -> Iterator[str]:
    where: dict[str, list[str]] = {}
    for table in tables:
        for column in table.secrets:
            where.setdefault(column, []).append(str(table.name))
    if where:
        yield "      mask: # these look like secrets; null, hash or {fixed: VALUE}"
    for column, names in where.items():
        yield f'        {_scalar(column)}: "null" # in {", ".join(names)}'


def _scalar(text: str) -> str:
    """Return a text as a YAML scalar in one line, quoted where it must be."""
    dumped: str = yaml.safe_dump(text, width=float("inf"), allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")
