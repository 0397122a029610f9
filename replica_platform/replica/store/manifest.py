"""The manifest of a generation: its digests, its lineage and its tables.

Plain JSON with its own checksum, replaced as a whole. Uses the standard library only, so that a
reader needs nothing else.
"""

import hashlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from replica_platform.replica.copy.file_format import base_name, catalog_name

FORMAT = 1
DIGEST_CHARACTERS = 32
# The catalog of a generation whose manifest does not name its master.
NO_MASTER = "replica"
LONGEST_BASE_NAME = 200
# The longest step of the clock by which Linux dates changes of files, twice.
CLOCK_STEP_NS = 20_000_000
# A megabyte each for eight gigabytes of data.
MOST_PARSED = 8
MOMENTS = ("published_at", "confirmed_at", "data_as_of", "read_at")

# `Manifest` has a field named `bytes`, which hides the type inside the class.
Raw = bytes


class NotAManifest(ValueError):
    """The bytes are not a manifest, or a torn or edited one."""


@dataclass(frozen=True)
class Seal:
    """Figures of a file that any later write through the file system changes.

    Attributes:
        inode: The file's inode.
        bytes: The file's size.
        changed_ns: When the inode was last changed, in nanoseconds.
    """

    inode: int
    bytes: int
    changed_ns: int

    @classmethod
    def of(cls, file: Path | int) -> Self:
        """Return the seal of a file, given by its path or descriptor.

        Raises:
            OSError: The file is missing or may not be read.
        """
        stat = os.fstat(file) if isinstance(file, int) else file.stat()
        return cls(stat.st_ino, stat.st_size, stat.st_ctime_ns)


@dataclass(frozen=True)
class Lineage:
    """The state of the master that a generation was made from.

    Attributes:
        db_id: The database's identity.
        iteration: Its number of checkpoints.
        header: The digest of its header.
        seal: The master's file at that time. Not compared by `==`; see `lineage`.
    """

    db_id: str
    iteration: int
    header: str
    seal: Seal = field(compare=False)


@dataclass(frozen=True)
class TableContent:
    """What a table of a generation holds.

    Attributes:
        rows: Its number of rows.
        schema: A digest of the names and types of its columns.
    """

    rows: int
    schema: str


@dataclass(frozen=True)
class Manifest:
    """One generation.

    Attributes:
        generation: Its number, one more than the highest before it.
        file: The name of its file.
        bytes: The size of its file.
        digest: The digest of all block digests.
        digests: A 128-bit digest, 32 hex characters, for each block: first the 12288 bytes of
            header, then each 256 KiB.
        lineage: The state of the master that it was made from.
        storage: DuckDB's storage version number.
        duckdb: The DuckDB version that wrote the master.
        tables: Rows and schema of each table, by name.
        published_at: When it was released.
        confirmed_at: When a publisher last found that the master has nothing newer.
        parent: The generation that was current before it.
        data_as_of: The time that the data describes; None when the publisher did not say.
        run_id: The run that published it.
        purpose: The purpose it was built for; None for the whole master.
        recipe: A digest of the purpose's definition.
        max_age_s: The age in seconds beyond which the data counts as stale.
        withheld: The state of the master that readers were rolled back from.
        master: The name of the master's file; None in manifests of former versions.
        link: The name of the link to its file while it is current; None for the default one.
        broken_views: Why each view that cannot be opened fails, by name.
        read_at: When all bytes of its file had last been read; None in manifests of former
            versions, which read them when they published.
        seal: Its file as it was after what was written had been verified.
    """

    generation: int
    file: str
    bytes: int
    digest: str
    digests: str = field(repr=False)
    lineage: Lineage
    storage: int
    duckdb: str
    tables: dict[str, TableContent]
    published_at: datetime
    confirmed_at: datetime
    parent: int | None = None
    data_as_of: datetime | None = None
    run_id: str | None = None
    purpose: str | None = None
    recipe: str | None = None
    max_age_s: float | None = None
    withheld: Lineage | None = None
    master: str | None = None
    link: str | None = None
    broken_views: dict[str, str] = field(default_factory=dict)
    read_at: datetime | None = None
    seal: Seal | None = None

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or not self.file.endswith(".duckdb"):
            raise NotAManifest(f"{self.file!r} is not the name of a generation's file")
        if self.master is not None and Path(self.master).name != self.master:
            raise NotAManifest(f"{self.master!r} is not the name of a master's file")
        if self.link is not None and Path(self.link).name != self.link:
            raise NotAManifest(f"{self.link!r} is not the name of a link")

    @property
    def block_digests(self) -> list[str]:
        """The digests of the blocks, in the file's order."""
        width = DIGEST_CHARACTERS
        return [self.digests[at : at + width] for at in range(0, len(self.digests), width)]

    @property
    def bytes_read_at(self) -> datetime:
        """When all bytes of its file had last been read, by the publication or before it."""
        return self.read_at or self.published_at

    @property
    def catalog(self) -> str:
        """The name under which readers attach it: the master's, which its views may contain."""
        return readers_catalog(self.master)

    def as_dict(self, *, with_digests: bool = False) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold.

        Args:
            with_digests: Whether to include the digest of each block.
        """
        fields = asdict(self)
        if not with_digests:
            del fields["digests"]
        for name in MOMENTS:
            moment = fields[name]
            fields[name] = None if moment is None else moment.isoformat()
        return fields

    def to_json(self) -> Raw:
        """Return the manifest in the form that is stored."""
        fields = {"format": FORMAT, **self.as_dict(with_digests=True)}
        body = json.dumps(fields, sort_keys=True)
        checksum = hashlib.sha256(body.encode()).hexdigest()
        return json.dumps({**fields, "checksum": checksum}, sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, raw: Raw | str) -> "Manifest":
        """Return the manifest that `to_json` wrote.

        Raises:
            NotAManifest: It is torn, edited, or of another format.
        """
        try:
            fields = json.loads(raw)
            checksum = fields.pop("checksum")
            body = json.dumps(fields, sort_keys=True)
            if checksum != hashlib.sha256(body.encode()).hexdigest():
                raise NotAManifest("it does not match its own checksum")
            if fields.pop("format") != FORMAT:
                raise NotAManifest("it has another format")
            return cls._from_fields(fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise NotAManifest(str(error)) from error

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "Manifest":
        for name in MOMENTS:
            moment = fields.get(name)  # former versions did not write all
            fields[name] = datetime.fromisoformat(moment) if moment else None
        for name in ("lineage", "withheld"):
            fields[name] = _lineage(fields[name]) if fields[name] else None
        fields["seal"] = Seal(**fields["seal"]) if fields["seal"] else None
        known = cls.__dataclass_fields__
        fields = {name: value for name, value in fields.items() if name in known}
        fields["tables"] = {name: TableContent(**table) for name, table in fields["tables"].items()}
        return cls(**fields)


_parsed: dict[tuple[int, ...], Manifest] = {}


def _lineage(fields: dict[str, Any]) -> Lineage:
    return Lineage(**{**fields, "seal": Seal(**fields["seal"])})


def readers_catalog(master: str | None) -> str:
    """Return the name under which readers attach what came from a master of that name."""
    name = catalog_name(master) if master else NO_MASTER
    # The instance that attaches it has a catalog `memory`.
    return NO_MASTER if name.lower() == "memory" else name


def file_name(generation: int, digest: str, master: str) -> str:
    """Return the name of a generation's file.

    DuckDB names a catalog after the file that a link leads to, up to the first dot.
    """
    base = base_name(master)
    prefix = f"{base}." if len(base.encode()) <= LONGEST_BASE_NAME else ""
    return f"{prefix}{generation:06d}-{digest[:8]}.duckdb"


def damage_mark(file: Path) -> Path:
    """Return the path of the mark beside a generation's file in which a scrub found damage."""
    return file.with_suffix(".damaged")


def generation_in(name: str) -> int | None:
    """Return the generation that a file in a store is named after; None if there is none."""
    found = re.search(r"(?:^|\.)(\d{6,})-[0-9a-f]{8}\.", name)
    return int(found[1]) if found else None


def read_manifest(path: Path) -> Manifest:
    """Read the manifest at `path`; one that was parsed before is not parsed again.

    Raises:
        NotAManifest: It is torn, edited, or of another format.
        OSError: The file is missing or may not be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        stat = os.fstat(fd)
        key = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        if found := _parsed.get(key):
            return found
        found = Manifest.from_json(file.read())
    if time.time_ns() - stat.st_ctime_ns > CLOCK_STEP_NS:  # another write would change the key
        _parsed[key] = found
        for oldest in list(_parsed)[:-MOST_PARSED]:
            _parsed.pop(oldest, None)
    return found


def now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)


def age_s(moment: datetime | None) -> float | None:
    """Return the seconds since `moment`; None for None.

    Never negative: after a clock that jumped back, the age is unknown but not high.
    """
    return None if moment is None else max(0.0, (now() - moment).total_seconds())
