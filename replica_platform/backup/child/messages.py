"""The messages from the child to its caller: dataclasses, each one line of JSON on the pipe."""

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from replica_platform.core.reports import Unit


@dataclass(frozen=True)
class FileCheck:
    """What one reading of a quiet database file found.

    Attributes:
        bytes: Size of the file.
        sha256: Hexadecimal digest of its bytes.
        md5: The same by MD5, for tools that know no other; empty where it was not asked for.
        integrity: `ok`, or SQLite's first complaints in one line.
        unchecked: Why a sound file could not be checked in full; None if it was, or is damaged.
        tables: Rows of each table; None where SQLite lacks a virtual table's module.
        newest: The newest value of each column that holds a time: `{"table.column": value}`.
        pending: Rows that an outbox holds as undelivered; None for any other file.
        pages: Pages of the database.
        page_size: Bytes of a page.
        sqlite_version: The SQLite that read it.
        check_s: How long the reading took, in seconds.
    """

    bytes: int
    sha256: str
    md5: str
    integrity: str
    unchecked: str | None
    tables: dict[str, int | None]
    newest: dict[str, str | int | float]
    pending: int | None
    pages: int
    page_size: int
    sqlite_version: str
    check_s: float

    @property
    def is_sound(self) -> bool:
        """Whether nothing that SQLite could check is damaged."""
        return self.integrity == "ok" or self.unchecked is not None


@dataclass(frozen=True)
class Snapshot:
    """A copy of a live file.

    Attributes:
        check: What is in the copy.
        checkpoint: (busy, WAL frames, moved frames) of the checkpoint before it; None when it was
            skipped or failed.
        journal_mode: The source's journal mode.
        copy_s: How long the copying took, in seconds.
    """

    check: FileCheck
    checkpoint: list[int] | None
    journal_mode: str
    copy_s: float


@dataclass(frozen=True)
class RestoredCopy:
    """A copy of a backup that may be put in place.

    Attributes:
        check: What is in the copy.
        file_uuid: The new identity of an outbox; None for any other file.
        delivered_again: Undelivered rows of an outbox that the replaced file has as delivered;
            None where that is not known.
        only_in_previous: Undelivered rows that only the replaced file has; None likewise.
    """

    check: FileCheck
    file_uuid: str | None
    delivered_again: int | None
    only_in_previous: int | None


@dataclass(frozen=True)
class Answers:
    """The answers to queries, in their order.

    Attributes:
        values: The first value of each query's first row; None if there is none.
        errors: SQLite's error; None where the query ran.
    """

    values: list[str | int | float | None]
    errors: list[str | None]


@dataclass(frozen=True)
class BlockDigests:
    """The digest of each block of a file, in their order."""

    digests: list[str]


@dataclass(frozen=True)
class Advance:
    """How far the task is: `done` of `total` units."""

    done: int
    total: int
    unit: Unit


@dataclass(frozen=True)
class Copied:
    """The copy is complete and will not be written to again; its check begins."""


@dataclass(frozen=True)
class Failure:
    """An error of the child, by the name of its class, with its sentence."""

    error: str
    sentence: str


Answer = FileCheck | Snapshot | RestoredCopy | Answers | BlockDigests
Message = Answer | Advance | Copied | Failure
KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        *(FileCheck, Snapshot, RestoredCopy, Answers, BlockDigests),
        *(Advance, Copied, Failure),
    )
}


def encode(message: Message) -> str:
    """Return a message as a line of JSON, without the line's end."""
    return json.dumps({"kind": type(message).__name__, "fields": asdict(message)})


def decode(line: str) -> Message:
    """Return the message that a line holds."""
    content = json.loads(line)
    message: Message = _build(KINDS[content["kind"]], content["fields"])
    return message


def _build(kind: Any, values: dict[str, Any]) -> Any:
    nested = {
        field.name: _build(field.type, values[field.name])
        for field in fields(kind)
        if is_dataclass(field.type)
    }
    return kind(**{**values, **nested})
