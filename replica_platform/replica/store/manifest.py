"""The manifest of a generation: what it is, where it came from, how to know its bytes.

Plain JSON with its own checksum, written whole. Only the standard library is used here, so
that a reader needs nothing else.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

FORMAT = 1
DIGEST_CHARACTERS = 32

# `Manifest` has a field of the type's name.
Raw = bytes


class NotAManifest(ValueError):
    """The bytes are no manifest, or one that was torn or edited."""


@dataclass(frozen=True)
class Seal:
    """A file as the system knew it once it was verified or copied; any later write changes it."""

    inode: int
    bytes: int
    changed_ns: int

    @classmethod
    def of(cls, file: Path | int) -> Self:
        """The seal of a file by its path or handle. Errors: `OSError`."""
        seen = os.fstat(file) if isinstance(file, int) else file.stat()
        return cls(seen.st_ino, seen.st_size, seen.st_ctime_ns)


@dataclass(frozen=True)
class Lineage:
    """The master's state that a generation shows: database, checkpoint count, header's digest.

    Two are equal when those are; `seal` is the master's file as it was, see `lineage`.
    """

    db_id: str
    iteration: int
    header: str
    seal: Seal = field(compare=False)


@dataclass(frozen=True)
class Table:
    """Rows, and a digest of the columns' names and types."""

    rows: int
    schema: str


@dataclass(frozen=True)
class Manifest:
    """One generation. `digests` holds a 128-bit digest, 32 hex characters, a block; the first is
    that of the 12288 bytes of header, each other of 256 KiB. `digest` is the digest of those.
    `confirmed_at` is when a publisher last found that the master had nothing newer; `recipe` is
    the digest of the purpose's definition; older than `max_age_s` the data counts as stale.
    """

    generation: int
    file: str
    bytes: int
    digest: str
    digests: str = field(repr=False)
    lineage: Lineage
    storage: int
    duckdb: str
    tables: dict[str, Table]
    published_at: datetime
    confirmed_at: datetime
    parent: int | None = None
    data_as_of: datetime | None = None
    run_id: str | None = None
    purpose: str | None = None
    recipe: str | None = None
    max_age_s: float | None = None
    withheld: Lineage | None = None
    seal: Seal | None = None

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or not self.file.endswith(".duckdb"):
            raise NotAManifest(f"{self.file!r} is no name of a generation")

    @property
    def blocks(self) -> list[str]:
        """The digests of the blocks, in the file's order."""
        width = DIGEST_CHARACTERS
        return [self.digests[at : at + width] for at in range(0, len(self.digests), width)]

    def as_dict(self, *, with_blocks: bool = False) -> dict[str, Any]:
        """Plain JSON-able fields; the blocks' digests only where asked for."""
        fields = asdict(self)
        if not with_blocks:
            del fields["digests"]
        for name in ("published_at", "confirmed_at", "data_as_of"):
            moment = fields[name]
            fields[name] = None if moment is None else moment.isoformat()
        return fields

    def to_json(self) -> Raw:
        """The manifest as it is kept on disk."""
        fields = {"format": FORMAT, **self.as_dict(with_blocks=True)}
        body = json.dumps(fields, sort_keys=True)
        checksum = hashlib.sha256(body.encode()).hexdigest()
        return json.dumps({**fields, "checksum": checksum}, sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, raw: Raw) -> "Manifest":
        """Read what `to_json` wrote. Errors: `NotAManifest`."""
        try:
            fields = json.loads(raw)
            checksum = fields.pop("checksum")
            body = json.dumps(fields, sort_keys=True)
            if checksum != hashlib.sha256(body.encode()).hexdigest():
                raise NotAManifest("it does not match its own checksum")
            if fields.pop("format") != FORMAT:
                raise NotAManifest("it is of another format")
            return cls._from_fields(fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise NotAManifest(str(error)) from error

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "Manifest":
        for name in ("published_at", "confirmed_at", "data_as_of"):
            fields[name] = datetime.fromisoformat(fields[name]) if fields[name] else None
        for name in ("lineage", "withheld"):
            fields[name] = _lineage(fields[name]) if fields[name] else None
        fields["seal"] = Seal(**fields["seal"]) if fields["seal"] else None
        fields["tables"] = {name: Table(**table) for name, table in fields["tables"].items()}
        return cls(**fields)


def _lineage(fields: dict[str, Any]) -> Lineage:
    return Lineage(**{**fields, "seal": Seal(**fields["seal"])})


def read_manifest(path: Path) -> Manifest:
    """Read the manifest at `path`. Errors: `NotAManifest`, `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return Manifest.from_json(file.read())


def now() -> datetime:
    """This moment, with its zone."""
    return datetime.now(UTC)
