"""What the `defs.yaml` files configure, read without Dagster: tables, outboxes, purposes, files.

`replica status` looks at what is listed here, and `replica run` and `replica dev` refuse a wrong
entry before they start anything. The assets are made by `components`, whose attributes and
defaults are the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from replica_platform.core.errors import PlatformError, TerminalError
from replica_platform.replica import Purpose

DEFS = Path(__file__).parents[1] / "defs"
# The folders of Python modules that belong to the sample; entries of a file say it themselves.
SAMPLE = frozenset({"market", "replica"})
NAMESPACE = "replica_platform.components."
# Where Dagster fills in a value, it is checked by Dagster alone.
TEMPLATE = re.compile(r"\{\{.*\}\}")


class WrongEntry(TerminalError):
    """An entry of a `defs.yaml` cannot be used; the text names the file, the line and the cause."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TableEntry(_Entry):
    """A table to sync; see `components.xmin_tables.TableEntry`."""

    table: str
    mode: Literal["auto", "scan", "timestamp", "full"] = "auto"
    timestamp_column: str | None = None
    timestamp_zone: str | None = None
    deletes: Literal["auto", "keys", "never"] = "auto"
    sample: bool = False


class XminTables(_Entry):
    """A group of tables; see `components.XminTables`."""

    tables: Sequence[TableEntry]
    into: str = "raw_data"
    name: str = "fds"
    threshold: float = 0.9
    prove_within_s: int | None = 86_400
    fresh_within_s: int = 1800
    cron_schedule: str = "*/5 * * * *"


class WorkerOutboxes(_Entry):
    """The outboxes of some nodes; see `components.WorkerOutboxes`."""

    name: str = "conversations"
    nodes: Mapping[str, str]
    mappings: Mapping[str, Mapping[str, Any]] = {}
    backlog_within_s: int = 900


class PurposeReplicas(_Entry):
    """Parts of the master for one use each; see `components.PurposeReplicas`."""

    purposes: Mapping[str, Mapping[str, Any]]
    name: str = "purposes"
    after: Sequence[str] = ()
    as_of: str | None = None
    sample: bool = False


class FileEntry(_Entry):
    """A SQLite file; see `components.sqlite_backups.FileEntry`."""

    path: str
    name: str | None = None
    pulled_from: str | None = None
    method: Literal["query", "scp"] = "query"
    known_hosts: str | None = None
    client_key: str | None = None
    keep_days: int = 30
    keep_count: int = 7
    blocks: str | None = None
    encrypted: bool = False
    drill: Sequence[Mapping[str, Any]] = ()
    sample: bool = False


class SqliteBackups(_Entry):
    """SQLite files to back up; see `components.SqliteBackups`."""

    files: Sequence[FileEntry]
    name: str = "backups"
    fresh_within_s: int = 26 * 3600


KINDS: dict[str, type[_Entry]] = {
    kind.__name__: kind for kind in (XminTables, WorkerOutboxes, PurposeReplicas, SqliteBackups)
}
Kind = TypeVar("Kind", bound=_Entry)


@dataclass(frozen=True)
class Configured:
    """The entries of every `defs.yaml`, in the order of their folders.

    Attributes:
        entries: Each entry with the file that it is in.
        folders: The names of the folders of `defs/`.
    """

    entries: Sequence[tuple[Path, _Entry]]
    folders: frozenset[str]

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Return the entries of one kind."""
        return [entry for _, entry in self.entries if isinstance(entry, kind)]

    def purposes(self) -> list[Purpose]:
        """Return every purpose."""
        return [
            Purpose.from_dict(name, given)
            for entry in self.of(PurposeReplicas)
            for name, given in entry.purposes.items()
        ]


def configured(defs: Path = DEFS, *, sample: bool = True) -> Configured:
    """Return what the `defs.yaml` files below a folder configure.

    Args:
        defs: The folder of the definitions.
        sample: Whether entries of the sample count.

    Raises:
        WrongEntry: A file cannot be read as YAML, or an entry has a wrong attribute.
    """
    entries = [
        (file, entry) for file in sorted(defs.rglob("defs.yaml")) for entry in _entries(file)
    ]
    _assert_names_once(entries)
    folders = frozenset(
        path.name
        for path in defs.iterdir()
        if path.is_dir() and (sample or path.name not in SAMPLE)
    )
    return Configured([(file, _chosen(one, sample)) for file, one in entries], folders)


def _chosen(entry: _Entry, sample: bool) -> _Entry:
    """Return the entry without what belongs to the sample, unless that counts."""
    if sample:
        return entry
    if isinstance(entry, XminTables):
        return entry.model_copy(update={"tables": [t for t in entry.tables if not t.sample]})
    if isinstance(entry, SqliteBackups):
        return entry.model_copy(update={"files": [f for f in entry.files if not f.sample]})
    if isinstance(entry, PurposeReplicas) and entry.sample:
        return entry.model_copy(update={"purposes": {}})
    return entry


def _entries(file: Path) -> Iterator[_Entry]:
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


def _entry(file: Path, node: yaml.Node, kind: type[_Entry], attributes: Any) -> _Entry:
    try:
        entry = kind.model_validate(attributes)
    except ValidationError as error:
        problems = [one for one in error.errors() if not TEMPLATE.search(str(one["input"]))]
        if not problems:
            return kind.model_construct(**attributes)
        first = problems[0]
        line = _line_of(node, ("attributes", *first["loc"]))
        name = ".".join(str(part) for part in first["loc"]) or "attributes"
        raise WrongEntry(f"{file}, line {line}: {name}: {_cause(first, kind)}.") from error
    if isinstance(entry, PurposeReplicas):
        _assert_purposes(file, node, entry)
    return entry


def _cause(problem: Any, kind: type[_Entry]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"{kind.__name__} has no such attribute; see its documentation"
    return str(problem["msg"])


def _assert_purposes(file: Path, node: yaml.Node, entry: PurposeReplicas) -> None:
    for name, given in entry.purposes.items():
        try:
            Purpose.from_dict(name, given)
        except PlatformError as error:
            line = _line_of(node, ("attributes", "purposes", name))
            raise WrongEntry(f"{file}, line {line}: {error}") from error


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


def _assert_names_once(entries: Sequence[tuple[Path, _Entry]]) -> None:
    """Refuse two entries of one kind and name, whose assets and schedules would be the same."""
    seen: dict[tuple[str, str], Path] = {}
    for file, entry in entries:
        for name in _names(entry):
            key = (type(entry).__name__, name)
            if key in seen:
                raise WrongEntry(
                    f"{file}: another {key[0]} has the name {name!r}, in {seen[key]}; "
                    "give one of them another `name`."
                )
            seen[key] = file


def _names(entry: _Entry) -> list[str]:
    """Return what no other entry of the kind may be called."""
    if isinstance(entry, SqliteBackups):
        return [f"{entry.name}/{name}" for name in names_of(entry.files)]
    if isinstance(entry, PurposeReplicas):
        return list(entry.purposes)
    return [entry.name] if isinstance(entry, XminTables | WorkerOutboxes) else []


class _File(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str | None: ...


def names_of(files: Sequence[_File]) -> list[str]:
    """Return a name for each file: its stem, or with its folder's name where that is taken.

    The first of several files of one stem keeps the plain name, so that a file which is added
    later does not rename the backups of another one.

    Raises:
        WrongEntry: Two files still have one name.
    """
    names: dict[str, str] = {}
    for file in files:
        path = Path(file.path)
        name = file.name or path.stem
        if name in names and not file.name:
            name = f"{path.parent.name or 'data'}_{path.stem}"
        if name in names:
            raise WrongEntry(
                f"{names[name]} and {file.path} would both be called {name!r}; "
                "give one of them another `name`."
            )
        names[name] = file.path
    return list(names)


def backup_folder(folder: Path, group: str, file: _File, name: str) -> Path:
    """Return the folder of a file's backups; one of the first group and plain name has no other.

    Args:
        folder: The folder of all backups.
        group: The name of the `SqliteBackups` entry.
        file: The file.
        name: Its name from `names_of`.
    """
    own = folder if group == "backups" else folder / group
    return own if name == Path(file.path).stem else own / name
