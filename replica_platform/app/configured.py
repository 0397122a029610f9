"""What the `defs.yaml` files configure, read without Dagster.

`replica status` looks at what is listed here, and `replica run` and `replica dev` refuse a wrong
entry, by its file and line, before they start anything. The attributes are those of `entries`,
which the components inherit.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from replica_platform.app.entries import (
    DuckDBReplicaEntry,
    Entry,
    LakeMasterEntry,
    PurposeReplicasEntry,
    SqliteBackupsEntry,
    WorkerOutboxesEntry,
    WrongEntry,
    XminTablesEntry,
)
from replica_platform.app.entries.base import CENTRAL
from replica_platform.app.entries.sqlite_files import names_of
from replica_platform.app.project import find_project

DEFS = Path(__file__).parents[1] / "defs"
# The folder of the sample, which a setting leaves out.
SAMPLE = "sample"
NAMESPACE = "replica_platform.components."
# Where Dagster fills in a value, it is checked by Dagster alone.
TEMPLATE = re.compile(r"\{\{.*\}\}")

KINDS: dict[str, type[Entry]] = {
    kind.__name__.removesuffix("Entry"): kind
    for kind in (
        *(XminTablesEntry, WorkerOutboxesEntry, SqliteBackupsEntry),
        *(DuckDBReplicaEntry, PurposeReplicasEntry, LakeMasterEntry),
    )
}
Kind = TypeVar("Kind", bound=Entry)


@dataclass(frozen=True)
class Configured:
    """The entries of every `defs.yaml`, in the order of their folders.

    Attributes:
        entries: Each entry with the file that it is in.
        host: The host that is looked at; None for the machine of what names no host.
    """

    entries: Sequence[tuple[Path, Entry]]
    host: str | None = None

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Return the entries of one kind; the purposes of a replica are an entry of their own."""
        found = [entry for _, entry in self.entries if isinstance(entry, kind)]
        if issubclass(kind, PurposeReplicasEntry):
            replicas = self.of(DuckDBReplicaEntry)
            found += [one.parts() for one in replicas if one.purposes]  # type: ignore[misc]
        return found

    @property
    def hosts(self) -> list[str]:
        """The hosts that entries name, by name."""
        return sorted({entry.host for _, entry in self.entries if entry.host})

    def here(self, kind: type[Kind]) -> list[Kind]:
        """Return the entries of one kind whose files are on the host that is looked at."""
        here = self.host or CENTRAL
        return [entry for entry in self.of(kind) if (entry.host or CENTRAL) == here]


def configured(
    defs: Path | None = None, *, sample: bool = True, host: str | None = None
) -> Configured:
    """Return what `defs.yaml` files configure.

    Args:
        defs: The folder of the definitions; those of this package, and of the project in the
            working folder, if none is given.
        sample: Whether the folder of the sample counts.
        host: The host that is looked at.

    Raises:
        WrongEntry: A file cannot be read as YAML, or an entry has a wrong attribute.
        WrongProject: The project in the working folder cannot be read.
    """
    own = defs or DEFS
    files = [
        file
        for file in sorted(own.rglob("defs.yaml"))
        if sample or file.relative_to(own).parts[0] != SAMPLE
    ]
    project = find_project() if defs is None else None
    if project is not None:
        files += sorted(project.defs.rglob("defs.yaml"))
    found = Configured([(file, entry) for file in files for entry in _entries(file)], host)
    _assert_names_once(found.entries)
    _assert_lakes_apart(found.entries)
    return found


def _entries(file: Path) -> Iterator[Entry]:
    try:
        nodes = list(yaml.compose_all(file.read_text(), yaml.SafeLoader))
        documents = list(yaml.safe_load_all(file.read_text()))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise WrongEntry(f"{file}, line {line}: this is not YAML: {error.problem}.") from error
    for node, document in zip(nodes, documents, strict=True):
        if not isinstance(document, dict):
            continue
        named = str(document.get("type", ""))
        kind = KINDS.get(named.removeprefix(NAMESPACE))
        if kind is None and named.startswith(NAMESPACE):
            raise WrongEntry(
                f"{file}, line {_line_of(node, ('type',))}: there is no component {named}; "
                f"there are {', '.join(KINDS)}."
            )
        if kind is not None:
            yield _entry(file, node, kind, document.get("attributes") or {})


def _entry(file: Path, node: yaml.Node, kind: type[Entry], attributes: Any) -> Entry:
    try:
        return kind.model_validate(attributes)
    except ValidationError as error:
        problems = [one for one in error.errors() if not TEMPLATE.search(str(one["input"]))]
        if not problems:
            return kind.model_construct(**attributes)
        first = problems[0]
        line = _line_of(node, ("attributes", *first["loc"]))
        name = ".".join(str(part) for part in first["loc"]) or "attributes"
        raise WrongEntry(f"{file}, line {line}: {name}: {_cause(first, kind)}.") from error


def _cause(problem: Any, kind: type[Entry]) -> str:
    if problem["type"] == "extra_forbidden":
        name = kind.__name__.removesuffix("Entry")
        return f"{name} has no such attribute; see its documentation"
    return str(problem["msg"]).removeprefix("Value error, ").rstrip(".")


def _line_of(node: yaml.Node, path: Sequence[str | int]) -> int:
    """Return the line of the value at a path, or of the nearest one that is written."""
    line: int = node.start_mark.line
    for part in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, found = key.start_mark.line, value
        elif isinstance(node, yaml.SequenceNode) and part in range(len(node.value)):
            found = node.value[int(part)]
            line = found.start_mark.line
        if found is None:
            break
        node = found
    return line + 1


def _assert_names_once(entries: Sequence[tuple[Path, Entry]]) -> None:
    """Refuse two entries whose assets, schedules or folders would be the same."""
    seen: dict[tuple[str, str], Path] = {}
    for file, entry in entries:
        for kind, name, attribute in _names(entry):
            if (kind, name) in seen:
                raise WrongEntry(
                    f"{file}: another {kind} has the name {name!r}, in {seen[kind, name]}; "
                    f"give one of them another `{attribute}`."
                )
            seen[kind, name] = file


def _assert_lakes_apart(entries: Sequence[tuple[Path, Entry]]) -> None:
    """Refuse a lake whose data is in another one's: maintenance would remove its files."""
    seen: dict[str, Path] = {}
    for file, entry in entries:
        if isinstance(entry, LakeMasterEntry):
            place = f"{entry.data_place.rstrip('/')}/"
            for other, where in seen.items():
                if place.startswith(other) or other.startswith(place):
                    raise WrongEntry(
                        f"{file}: the lake {entry.name} has its data where another one has it, in "
                        f"{where}; give one of them another `data`."
                    )
            seen[place] = file


def _names(entry: Entry) -> Iterator[tuple[str, str, str]]:
    """Yield what no other entry may have: its kind, its name, and the attribute that tells it."""
    yield type(entry).__name__.removesuffix("Entry"), str(getattr(entry, "name", "")), "name"
    if isinstance(entry, DuckDBReplicaEntry | WorkerOutboxesEntry):
        yield "asset", entry.name, "name"
    if isinstance(entry, DuckDBReplicaEntry):
        yield "folder of generations", entry.store_folder.rstrip("/"), "store"
        if entry.purposes:
            yield "PurposeReplicas", entry.name, "name"
    if isinstance(entry, LakeMasterEntry):
        yield "asset", entry.master_asset, "name"
        yield f"lake in {entry.catalog or 'the target'}", entry.schema_name, "catalog_schema"
        yield "file of an exported lake", entry.master, "master"
    if isinstance(entry, XminTablesEntry):
        for table in entry.tables:
            if not table.is_pattern:
                yield (
                    f"table of {entry.target or 'the target'}",
                    str(entry.target_of(table)),
                    "into",
                )
    if isinstance(entry, SqliteBackupsEntry):
        for file, name in zip(entry.files, names_of(entry.files), strict=True):
            folder = entry.backups_of(Path(), file, name)
            yield "folder of backups", f"{folder}/{Path(file.path).stem}", "name"
