"""Foreign keys among target tables: which tables are committed together, and in which order.

A user may have made target tables with the foreign keys of the source. New rows then go to the
parents first, and rows are deleted from the children first, all in one transaction.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.names import TableName

_FOREIGN_KEYS = """
select k.conname, k.conrelid, k.confrelid, k.condeferrable, k.confdeltype in ('c', 'n', 'd')
from pg_constraint k
where k.contype = 'f' and k.conrelid = any(%(oids)s) and k.confrelid = any(%(oids)s)
  and k.conrelid <> k.confrelid
order by k.conname
"""

_CHANGED = """
select coalesce(sum(pg_stat_get_xact_tuples_updated(relid)
                    + pg_stat_get_xact_tuples_deleted(relid)), 0)
from (select %(child)s::regclass union select relid from pg_partition_tree(%(child)s::regclass))
     leaves(relid)
"""


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key between two target tables.

    Attributes:
        name: Its name.
        child: The table that refers.
        parent: The table that is referred to.
        deferrable: Whether it can be checked when the transaction is committed.
        acts: Whether a delete in the parent changes rows of the child.
    """

    name: str
    child: TableName
    parent: TableName
    deferrable: bool
    acts: bool

    @property
    def removal(self) -> str:
        """The statement that removes it."""
        statement = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
        return statement.format(self.child.sql, sql.Identifier(self.name)).as_string()

    def changed_children(self, target: psycopg.Connection) -> int:
        """Return how many rows of the child this transaction has updated or deleted so far."""
        return int(one_value(target.execute(_CHANGED, {"child": self.child.sql.as_string()})))


@dataclass(frozen=True)
class ForeignKeys:
    """The foreign keys between the target tables of one sync."""

    keys: Sequence[ForeignKey] = ()

    def circular(self) -> dict[TableName, CannotSync]:
        """Return an error for each table of a circle that no order of writing satisfies."""
        for order in self._cycle():
            names = [str(name) for name in dict.fromkeys(order)]
            one = next(key for key in self._ordering if {key.child, key.parent} <= set(order))
            advice = sql.SQL("ALTER TABLE {} ALTER CONSTRAINT {} DEFERRABLE").format(
                one.child.sql, sql.Identifier(one.name)
            )
            error = CannotSync(
                f"Foreign keys of the target lead in a circle through {', '.join(names)}, so that "
                "no order of writing satisfies them; let one be checked when all is written. Run "
                f"there: {advice.as_string()};"
            )
            return dict.fromkeys(order, error)
        return {}

    def groups(self, tables: Iterable[TableName]) -> list[list[TableName]]:
        """Return the tables in groups to be committed together, parents before children."""
        names = list(tables)
        group_of = {name: name for name in names}
        for key in self._among(names):
            old, new = group_of[key.child], group_of[key.parent]
            group_of = {name: new if it == old else it for name, it in group_of.items()}
        groups: dict[TableName, list[TableName]] = {}
        order = [name for name in self._sorter(names).static_order() if name in group_of]
        for name in order:
            groups.setdefault(group_of[name], []).append(name)
        return list(groups.values())

    def acting_on(self, parent: TableName) -> list[ForeignKey]:
        """Return those through which a delete in a table changes rows of others."""
        return [key for key in self.keys if key.parent == parent and key.acts]

    @property
    def _ordering(self) -> list[ForeignKey]:
        return [key for key in self.keys if not key.deferrable]

    def _among(self, names: Sequence[TableName]) -> list[ForeignKey]:
        known = set(names)
        return [key for key in self.keys if {key.child, key.parent} <= known]

    def _sorter(self, names: Iterable[TableName]) -> TopologicalSorter[TableName]:
        sorter: TopologicalSorter[TableName] = TopologicalSorter({name: () for name in names})
        for key in self._ordering:
            sorter.add(key.child, key.parent)
        return sorter

    def _cycle(self) -> Iterator[list[TableName]]:
        try:
            self._sorter(()).prepare()
        except CycleError as error:
            yield error.args[1]


def read_foreign_keys(target: psycopg.Connection, oids: Mapping[TableName, int]) -> ForeignKeys:
    """Return the foreign keys between different tables among those given by name and oid."""
    if len(oids) < 2:
        return ForeignKeys()
    names = {oid: name for name, oid in oids.items()}
    found = target.execute(_FOREIGN_KEYS, {"oids": list(names)})
    return ForeignKeys(
        [
            ForeignKey(name, names[child], names[parent], deferrable, acts)
            for name, child, parent, deferrable, acts in found
        ]
    )
