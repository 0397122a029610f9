"""Which tables of an entry share a shard: joined ones, whatever is added, and evenly."""

import logging
from collections import Counter
from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from replica_platform.app.entries import TableEntry, XminTablesEntry
from replica_platform.app.shards import Shard, crossings, shards_of
from replica_platform.xmin import ListedColumn, ListedTable, Reference
from replica_platform.xmin.names import TableName


def listed(name: str, *parents: str) -> ListedTable:
    """Return a table of a catalog that refers to others."""
    references = tuple(
        Reference(("parent",), TableName("public", parent), ("id",)) for parent in parents
    )
    columns = (ListedColumn("id", "integer"),)
    return ListedTable(TableName("public", name), "r", None, columns, ("id",), references)


def plain(count: int) -> list[ListedTable]:
    return [listed(f"table_{number}") for number in range(count)]


def split(catalog: Sequence[ListedTable], shards: int, **attributes: object) -> list[Shard]:
    """Return the shards of an entry with every table of a catalog."""
    tables = [TableEntry(table=str(table.name)) for table in catalog]
    entry = XminTablesEntry(tables=tables, shards=shards, **attributes)
    return shards_of(entry, tables, catalog)


def numbers(shards: Sequence[Shard]) -> dict[str, int]:
    """Return the number of the shard of each table."""
    return {
        table.table.removeprefix("public."): shard.number
        for shard in shards
        for table in shard.tables
    }


def moved(before: Sequence[Shard], after: Sequence[Shard]) -> set[str]:
    """Return the tables of both that are in another shard."""
    was, now = numbers(before), numbers(after)
    return {name for name in was.keys() & now.keys() if was[name] != now[name]}


@pytest.mark.parametrize("shards", [1, 2, 7, 256])
@pytest.mark.parametrize("tables", [0, 1, 2, 100])
def test_every_table_is_in_one_shard(shards: int, tables: int) -> None:
    made = split(plain(tables), shards)
    assert sum(len(shard.tables) for shard in made) == tables
    assert len(numbers(made)) == tables
    # A shard without a table is none: more shards than tables are no error.
    assert all(shard.tables for shard in made)
    assert len({shard.number for shard in made}) == len(made)
    assert len(made) <= min(shards, tables)


def test_one_shard_has_no_number() -> None:
    (only,) = split(plain(3), 1)
    assert (only.number, only.named("shop_sync")) == (0, "shop_sync")
    first, second = split(plain(4), 2)
    assert (first.named("shop_sync"), second.named("shop_sync")) == ("shop_sync_1", "shop_sync_2")


@pytest.mark.parametrize(
    ("tables", "shards", "most"),
    [(2, 2, 1), (4, 2, 2), (9, 3, 3), (10, 4, 3), (100, 4, 35), (1000, 2, 545), (5000, 8, 675)],
)
def test_no_shard_has_much_more_than_its_share(tables: int, shards: int, most: int) -> None:
    sizes = Counter(numbers(split(plain(tables), shards)).values())
    assert len(sizes) == shards
    assert max(sizes.values()) <= most


@pytest.mark.parametrize("shards", [0, -1, 257])
def test_a_wrong_number_of_shards_is_refused(shards: int) -> None:
    with pytest.raises(ValidationError, match="should be between 1 and 256"):
        XminTablesEntry(tables=[], shards=shards)


def test_joined_tables_share_a_shard() -> None:
    """Chains, trees, circles and references to itself; by way of a table in between, too."""
    catalog = [
        *plain(30),
        listed("customer"),
        listed("orders", "customer"),
        listed("item", "orders", "product"),
        listed("product", "product"),
        listed("ping", "pong"),
        listed("pong", "ping"),
        listed("child_of_none", "not_synced"),
    ]
    for shards in (2, 3, 8):
        found = numbers(split(catalog, shards))
        assert len({found[name] for name in ("customer", "orders", "item", "product")}) == 1
        assert found["ping"] == found["pong"]
        assert crossings(split(catalog, shards), catalog) == []


def test_tables_that_are_synced_together_share_a_shard() -> None:
    catalog = [*plain(40), listed("parent"), listed("child", "parent")]
    tables = [
        TableEntry(
            table=str(table.name),
            together={"table_1": "a", "table_2": "a", "table_3": "b", "child": "b"}.get(
                table.name.table
            ),
        )
        for table in catalog
    ]
    entry = XminTablesEntry(tables=tables, shards=16)
    found = numbers(shards_of(entry, tables, catalog))
    assert found["table_1"] == found["table_2"]
    assert found["table_3"] == found["child"] == found["parent"]
    assert len(set(found.values())) == 16


def test_a_foreign_key_may_be_split_where_the_entry_says_so() -> None:
    catalog = [listed("hub"), *(listed(f"spoke_{number}", "hub") for number in range(40))]
    assert len(split(catalog, 4)) == 1
    apart = split(catalog, 4, keep_joined=False)
    assert len(apart) == 4
    assert len(crossings(apart, catalog)) > 20


def test_a_large_part_that_cannot_be_split_is_named(caplog: pytest.LogCaptureFixture) -> None:
    catalog = [listed("hub"), *(listed(f"spoke_{number}", "hub") for number in range(40))]
    with caplog.at_level(logging.WARNING):
        split(catalog, 4)
    assert "41 of the 41 tables of warehouse stay in one shard" in caplog.text
    assert "`keep_joined: false` splits" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        split(catalog, 4, keep_joined=False)
        split([*plain(60), listed("child", "table_1")], 4)
        split(plain(1), 4)
    assert caplog.text == ""


@pytest.mark.parametrize(("tables", "shards"), [(1000, 2), (1000, 8), (5000, 4)])
def test_a_table_that_is_added_to_many_moves_no_other(tables: int, shards: int) -> None:
    before = split(plain(tables), shards)
    for added in (1, 3, 30):
        more = [listed(f"a_new_table_{number}") for number in range(added)]
        assert moved(before, split([*more, *plain(tables)], shards)) == set()


def test_a_table_that_is_added_to_few_moves_few() -> None:
    """Small shards are kept even, so that some moves are needed: far fewer than tables."""
    catalog = plain(12)
    moves = 0
    for number in range(36):
        more = [*catalog, listed(f"added_{number}")]
        moves += len(moved(split(catalog, 3), split(more, 3)))
        catalog = more
    assert moves <= 36 / 2
    # The control: by the position in the list, each one before the others moves two thirds.
    names = [str(table.name) for table in catalog]
    was = {name: number % 3 for number, name in enumerate(sorted(names))}
    now = {name: number % 3 for number, name in enumerate(sorted([*names, "public.a"]))}
    assert sum(was[name] != now[name] for name in names) > 36 / 2


def test_a_child_that_is_added_follows_its_parent() -> None:
    catalog = [*plain(200), *(listed(f"child_{number}", f"table_{number}") for number in range(50))]
    before = split(catalog, 4)
    for number in range(50, 60):
        # By name before its parent, and of a parent with and without other children.
        more = [*catalog, listed(f"a_{number}", f"table_{number}"), listed("a_1", "table_1")]
        after = split(more, 4)
        assert moved(before, after) == set()
        assert numbers(after)[f"a_{number}"] == numbers(after)[f"table_{number}"]


def test_a_foreign_key_that_is_added_moves_the_tables_that_it_joins() -> None:
    catalog = plain(400)
    before = split(catalog, 4)
    found = numbers(before)
    other = next(name for name in found if found[name] != found["table_0"])
    joined = [listed("table_0", other) if one.name.table == "table_0" else one for one in catalog]
    after = split(joined, 4)
    assert moved(before, after) <= {"table_0", other}
    assert numbers(after)["table_0"] == numbers(after)[other]


def test_another_number_of_shards_moves_the_least() -> None:
    four, five = split(plain(1000), 4), split(plain(1000), 5)
    # A fifth goes to the new shard, and few move between the others to keep them even.
    assert len(moved(four, five)) < 300
    assert sum(numbers(five)[name] != 5 for name in moved(four, five)) < 60


def test_the_order_of_the_file_stays_within_a_shard() -> None:
    catalog = sorted(plain(50), key=lambda table: hash(table.name.table))
    place = {table.name.table: number for number, table in enumerate(catalog)}
    for shard in split(catalog, 3):
        order = [place[table.table.removeprefix("public.")] for table in shard.tables]
        assert order == sorted(order)


def test_a_foreign_key_over_two_shards_is_noticed() -> None:
    """The control: shards that are made by hand, and a key that came after they were made."""
    catalog = [listed("orders"), listed("item", "orders"), listed("other")]
    by_hand = [
        Shard(1, [TableEntry(table="public.orders"), TableEntry(table="other")]),
        Shard(2, [TableEntry(table="public.item")]),
    ]
    (found,) = crossings(by_hand, catalog)
    assert (str(found.child), str(found.parent)) == ("public.item", "public.orders")
    assert found.shards == (2, 1)
    assert crossings(split(catalog, 2), catalog) == []
    later = [*catalog[:2], listed("other", "orders")]
    assert (
        crossings(split(catalog, 2), later)
        or numbers(split(catalog, 2))["other"] == (numbers(split(catalog, 2))["orders"])
    )


def test_names_with_capitals_and_dots_are_told_apart() -> None:
    names = [TableName("public", "Orders"), TableName("public", "orders"), TableName("a.b", "c")]
    catalog = [ListedTable(name, "r", None, ()) for name in names]
    shards = split(catalog, 3)
    assert sorted(len(shard.tables) for shard in shards) == [1, 1, 1]
