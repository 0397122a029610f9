"""The tables of a database with what a reader wants to know of them, from its catalog alone."""

import psycopg
import pytest

from replica_platform.xmin import CannotConnect, ListedColumn, Reference, list_tables
from replica_platform.xmin.names import TableName
from replica_platform_tests.xmin.helpers import execute


def test_columns_comments_keys_and_references(source: str) -> None:
    execute(
        source,
        'create schema "Odd shop"',
        'create table "Odd shop".customer (id int primary key, name varchar(20) not null)',
        "create table orders (a int not null, b int not null, c int references "
        '"Odd shop".customer, primary key (b, a))',
        "create table item (y int, x int, foreign key (x, y) references orders (b, a))",
        "create table part (id int primary key) partition by range (id)",
        "create table part_1 partition of part for values from (0) to (10)",
        "create view v as select 1 as one",
        "comment on table orders is 'What was bought'",
        "comment on column orders.c is 'Who bought it'",
        "insert into orders select i, i from generate_series(1, 50) i",
        "analyze orders",
    )
    found = {str(table.name): table for table in list_tables(source)}
    assert list(found) == [
        '"Odd shop".customer', "public.item", "public.orders", "public.part", "public.v",
    ]  # fmt: skip
    orders = found["public.orders"]
    assert orders.comment == "What was bought"
    assert orders.key == ("b", "a")
    assert orders.columns[2] == ListedColumn("c", "integer", "Who bought it", nullable=True)
    assert orders.references == (Reference(("c",), TableName("Odd shop", "customer"), ("id",)),)
    assert orders.rows == 50
    assert orders.bytes > 0
    assert found["public.item"].references == (
        Reference(("x", "y"), TableName("public", "orders"), ("b", "a")),
    )
    assert found["public.item"].rows is None
    assert [name for name, table in found.items() if not table.is_table] == ["public.v"]


def test_a_source_that_is_away_is_waited_for_no_longer_than_asked(source: str) -> None:
    away = psycopg.conninfo.make_conninfo("", host="127.0.0.1", port="1", dbname="x")
    with pytest.raises(CannotConnect):
        list_tables(away, connect_timeout_s=1)
