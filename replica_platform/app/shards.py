"""Which tables of an entry are synced together: its shards.

Tables that foreign keys of the source join stay in one shard, and so do those with one `together`.
A shard is found by names alone, without any memory, so that each host finds the same ones.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt

from replica_platform.app.entries import TableEntry, XminTablesEntry
from replica_platform.xmin import ListedTable
from replica_platform.xmin.names import TableName

log = logging.getLogger(__name__)

# Shards of so few tables are kept even; what is found by chance would leave some empty.
FEW = 4
# A shard that cannot be split is worth a warning from more tables than these on.
SMALL = 10


@dataclass(frozen=True)
class Shard:
    """Tables that are synced in one step, from one snapshot.

    Attributes:
        number: From 1; 0 for the only shard of an entry that is not split.
        tables: Its tables, in the order of the entry.
    """

    number: int
    tables: Sequence[TableEntry]

    def named(self, name: str) -> str:
        """Return a name with the number of the shard."""
        return f"{name}_{self.number}" if self.number else name


@dataclass(frozen=True)
class Joined:
    """Tables that stay in one shard.

    Attributes:
        anchor: What the shard is found by; it stays the same when a table joins that refers to
            the others.
        tables: The tables.
    """

    anchor: str
    tables: frozenset[TableName]


@dataclass(frozen=True)
class Crossing:
    """A foreign key between tables of two shards.

    Attributes:
        child: The table that refers.
        parent: The table that it refers to.
        shards: The numbers of their shards.
    """

    child: TableName
    parent: TableName
    shards: tuple[int, int] = field(compare=False)


def shards_of(
    entry: XminTablesEntry, tables: Sequence[TableEntry], catalog: Iterable[ListedTable]
) -> list[Shard]:
    """Return the shards of an entry that have a table.

    A table that is added moves others only where it joins two shards, or where a shard has no room
    for it.

    Args:
        entry: The entry.
        tables: Its tables, patterns resolved.
        catalog: The tables of the source with their foreign keys, as far as they are known.
    """
    if not tables:
        return []
    if entry.shards == 1:
        return [Shard(0, tables)]
    units = joined(entry, tables, catalog)
    _warn_of_large(entry, units, len(tables))
    numbers = _placed(units, entry.shards)
    split: dict[int, list[TableEntry]] = {}
    for table in tables:
        split.setdefault(numbers[TableName.parse(table.table)], []).append(table)
    return [Shard(number, split[number]) for number in sorted(split)]


def joined(
    entry: XminTablesEntry, tables: Sequence[TableEntry], catalog: Iterable[ListedTable]
) -> list[Joined]:
    """Return the tables by what keeps them together; most are by themselves."""
    names = {TableName.parse(table.table): table.together for table in tables}
    parents = _parents(names, catalog) if entry.keep_joined else {}
    groups = {name: {name} for name in names}
    first: dict[str, TableName] = {}
    pairs = [(name, one) for name, some in parents.items() for one in some]
    pairs += [
        (name, first.setdefault(together, name)) for name, together in names.items() if together
    ]
    for one, other in pairs:
        smaller, larger = sorted((groups[one], groups[other]), key=len)
        if smaller is not larger:
            larger |= smaller
            groups.update(dict.fromkeys(smaller, larger))
    return [
        Joined(_anchor(group, names, parents), frozenset(group))
        for group in {id(group): group for group in groups.values()}.values()
    ]


def crossings(shards: Iterable[Shard], catalog: Iterable[ListedTable]) -> list[Crossing]:
    """Return the foreign keys between tables of two shards, by the names of the tables."""
    numbers = {
        TableName.parse(table.table): shard.number for shard in shards for table in shard.tables
    }
    found = {
        Crossing(child, parent, (numbers[child], numbers[parent]))
        for child, some in _parents(numbers, catalog).items()
        for parent in some
        if numbers[child] != numbers[parent]
    }
    return sorted(found, key=lambda one: (one.child, one.parent))


def _parents(
    names: Mapping[TableName, object], catalog: Iterable[ListedTable]
) -> dict[TableName, set[TableName]]:
    """Return the other tables of some that each of them refers to."""
    return {
        table.name: {one.table for one in table.references if one.table in names} - {table.name}
        for table in catalog
        if table.name in names
    }


def _anchor(
    group: Iterable[TableName],
    together: Mapping[TableName, str | None],
    parents: Mapping[TableName, set[TableName]],
) -> str:
    """Return the first `together`, else the first table that refers to no other, else the first."""
    given = sorted(name for one in group if (name := together[one]))
    if given:
        return f"together {given[0]}"
    return min((bool(parents.get(one)), str(one)) for one in group)[1]


def _placed(units: Sequence[Joined], count: int) -> dict[TableName, int]:
    """Return the number of the shard of each table.

    Each unit has its own order of the shards, and goes to the first one with room for it: a shard
    that is added or left out takes or gives its own tables only.
    """
    room = dict.fromkeys(range(1, count + 1), _room(sum(len(unit.tables) for unit in units), count))
    numbers: dict[TableName, int] = {}
    for unit in sorted(units, key=lambda unit: (-len(unit.tables), _digest(unit.anchor))):
        order = sorted(room, key=lambda number: _digest(f"{number} {unit.anchor}"))
        fitting = (number for number in order if room[number] >= len(unit.tables))
        number = next(fitting, None) or max(order, key=lambda number: room[number])
        room[number] -= len(unit.tables)
        numbers |= dict.fromkeys(unit.tables, number)
    return numbers


def _room(tables: int, count: int) -> int:
    """Return how many tables a shard takes: its share and, of many, twice the usual deviation."""
    share = tables / count
    return ceil(share) if share < FEW else ceil(share + 2 * sqrt(share))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _warn_of_large(entry: XminTablesEntry, units: Sequence[Joined], tables: int) -> None:
    largest = max(units, key=lambda unit: len(unit.tables))
    size = len(largest.tables)
    if size > max(_room(tables, entry.shards), SMALL):
        log.warning(
            "%s of the %s tables of %s stay in one shard, since foreign keys or `together` join "
            "them; `keep_joined: false` splits tables that only foreign keys join.",
            size,
            tables,
            entry.name,
        )
