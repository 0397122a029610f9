"""The lakes that are configured, with the DSNs in force; their state in one sentence each."""

from collections.abc import Callable, Sequence
from pathlib import Path

from replica_platform.app.configured import Configured
from replica_platform.app.entries import LakeMasterEntry
from replica_platform.app.entries.base import WrongEntry, environment_dsn
from replica_platform.lake import Lake


def lake_of(entry: LakeMasterEntry, target: str, path: Callable[[str], Path]) -> Lake:
    """Return the lake of an entry.

    Args:
        entry: The entry.
        target: The DSN of the target, for an entry that names no catalog.
        path: What gives a path below the data folder.

    Raises:
        WrongEntry: The variable of the catalog is not set.
        WrongLake: The DSN or the place of the data cannot be used.
    """
    place = entry.data_place
    return Lake(
        environment_dsn(entry.catalog) if entry.catalog else target,
        entry.schema_name,
        place if "://" in place else str(path(place)),
    )


def named_entries(found: Configured, names: Sequence[str]) -> list[LakeMasterEntry]:
    """Return the entries of lakes with these names; all for no name.

    Raises:
        WrongEntry: There is none of a name.
    """
    entries = {entry.name: entry for entry in found.of(LakeMasterEntry)}
    for name in names:
        if name not in entries:
            there = f"there are {', '.join(entries)}" if entries else "none is configured"
            raise WrongEntry(f"There is no lake {name}; {there}.")
    return [entry for name, entry in entries.items() if not names or name in names]
