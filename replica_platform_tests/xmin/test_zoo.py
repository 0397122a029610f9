"""Types and names that copiers often break: each value arrives byte by byte."""

import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import sync, validate
from replica_platform_tests.xmin.helpers import execute, rows

VALUES = {
    "bool": ["true", "false"],
    "int2": ["-32768", "32767"],
    "int4": ["-2147483648"],
    "int8": ["9223372036854775807"],
    "numeric": [
        "'NaN'",
        "'Infinity'",
        "'-Infinity'",
        "1.500",
        "1e-300",
        "repeat('9', 500)::numeric",
    ],
    "numeric(10,3)": ["1.5"],
    "float4": ["'NaN'", "'-0'", "1.17549435e-38"],
    "float8": ["'Infinity'", "'-Infinity'", "0.1", "5e-324"],
    "money": ["'-1234.56'"],
    "text": ["''", "E'a\\tb\\nc\\\\.'", "'\\N'", "'żółć 🐘'", "repeat('x', 100000)"],
    "varchar(5)": ["'abc'"],
    "char(5)": ["'ab'"],
    '"char"': ["'x'"],
    "name": ["'a name'"],
    "bytea": ["'\\x00ff5c0a'", "''"],
    "date": ["'0044-03-15 BC'", "'infinity'", "'-infinity'", "'5874897-12-31'"],
    "time": ["'24:00:00'"],
    "timetz": ["'12:34:56.789+05:30'"],
    "timestamp": ["'4713-01-01 00:00:00 BC'", "'infinity'", "'2000-01-01 00:00:00.000001'"],
    "timestamptz": ["'-infinity'", "'1900-01-01 00:00:00+01'"],
    "interval": ["'1 year -2 mons 3 days -04:05:06.000007'"],
    "uuid": ["'00000000-0000-0000-0000-000000000000'"],
    "json": ['\'{"a" : 1,  "a":2}\'', "'\"\\u00e9\"'"],
    "jsonb": ["'{\"a\": [1, null, {}]}'", "'null'"],
    "jsonpath": ["'$.a[*] ? (@ > 1)'"],
    "inet": ["'::1/64'", "'10.0.0.1'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "bit(3)": ["b'101'"],
    "varbit": ["b''", "b'10101'"],
    "tsvector": ["'a:1A fat:2 cat:3'"],
    "tsquery": ["'fat & (rat | !cat)'"],
    "point": ["'(1,2)'"],
    "line": ["'{1,2,3}'"],
    "lseg": ["'[(1,2),(3,4)]'"],
    "box": ["'(1,2),(3,4)'"],
    "path": ["'[(1,2),(3,4)]'", "'((1,2),(3,4))'"],
    "polygon": ["'((1,2),(3,4),(5,6))'"],
    "circle": ["'<(1,2),3>'"],
    "pg_lsn": ["'16/B374D848'"],
    "pg_snapshot": ["'10:20:10,14'"],
    "xid": ["'4294967295'"],
    "xid8": ["'18446744073709551615'"],
    "tid": ["'(1,2)'"],
    "oid": ["4294967295"],
    "regclass": ["'pg_class'"],
    "int4range": ["'[1,10)'", "'empty'", "'(,)'"],
    "numrange": ["'(1.5,)'"],
    "tstzrange": ["'[2000-01-01,infinity)'"],
    "daterange": ["'[2000-01-01,2000-01-02)'"],
    "int8multirange": ["'{[1,2),[5,7)}'", "'{}'"],
    "int4[]": ["'{}'", "'{1,null,3}'", "'[0:1]={5,6}'", "'{{1,2},{3,4}}'"],
    "text[]": ['\'{"a,b",NULL,"NULL",""}\''],
    "numeric(5,2)[]": ["'{1.50}'"],
    "timestamptz[]": ["'{2000-01-01,infinity}'"],
    "jsonb[]": ["array['{\"a\": 1}'::jsonb]"],
}


def zoo(source: str) -> None:
    """Create a table with a column for each type and a row for each value."""
    columns = ", ".join(f"c{i} {kind}" for i, kind in enumerate(VALUES))
    execute(source, f"create table zoo (id int primary key, {columns})")
    for row in range(max(map(len, VALUES.values()))):
        some = [(i, values[row]) for i, values in enumerate(VALUES.values()) if row < len(values)]
        listed = ", ".join(f"c{i}" for i, _ in some)
        execute(
            source,
            f"insert into zoo (id, {listed}) values ({row}, {', '.join(v for _, v in some)})",
        )
    execute(source, "insert into zoo (id) values (100)")


# As text, so that 1.0 is not 1.00 and -0 is not 0.
IMAGE = (
    "select id, " + ", ".join(f"c{i}::text" for i in range(len(VALUES))) + " from zoo order by 1"
)


def check_zoo(source: str, target: str) -> None:
    """Copy, change and copy in full: equal each time, and no equal row is written."""
    zoo(source)
    sync(source, target, "zoo")
    assert rows(source, IMAGE) == rows(target, IMAGE)
    execute(source, "update zoo set c0 = c0", "update zoo set c4 = 1.50 where id = 3")
    assert sync(source, target, "zoo").rows_updated == 7
    assert rows(source, IMAGE) == rows(target, IMAGE)
    assert not sync(source, target, "zoo", mode="full").changed
    assert validate(source, target, "zoo").score > 0.99


def test_every_built_in_type(source: str, target: str) -> None:
    check_zoo(source, target)


def test_every_type_arrives_as_text_too(source: str, target: str) -> None:
    """A column that binary cannot carry sends the whole table as text."""
    execute(source, "create type pair as (a int, b text)")
    zoo(source)
    execute(source, "alter table zoo add column p pair[]", "update zoo set p = '{\"(1,x)\"}'")
    sync(source, target, "zoo")
    query = IMAGE.replace(" from zoo", ", p::text from zoo")
    assert rows(source, query) == rows(target, query)


@pytest.mark.parametrize("name", ['Ord"er; drop table x', "select", "üñí", "a.b", "%s {} $1", " "])
def test_odd_names(source: str, target: str, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    execute(source, f"create schema {quoted}", "create table x (id int primary key)")
    execute(source, f"create table {quoted}.{quoted} ({quoted} int primary key, other text)")
    execute(source, f"insert into {quoted}.{quoted} values (1, 'a')")
    assert sync(source, target, f"{quoted}.{quoted}", into=quoted).rows == 1
    execute(
        source,
        f"update {quoted}.{quoted} set other = 'b'",
        f"insert into {quoted}.{quoted} values (2)",
    )
    assert sync(source, target, f"{quoted}.{quoted}", into=quoted).rows_updated == 1
    execute(source, f"delete from {quoted}.{quoted} where {quoted} = 1")
    assert sync(source, target, f"{quoted}.{quoted}", into=quoted).rows_deleted == 1
    assert validate(source, target, f"{quoted}.{quoted}", into=quoted).in_sync
    assert rows(source, "select to_regclass('x') is not null") == [(True,)]


def test_generated_and_identity_columns(source: str, target: str) -> None:
    execute(
        source,
        """create table t (id int generated always as identity primary key, a int,
           s int generated always as (a * 2) stored, v int generated always as (a * 3) virtual)""",
        "insert into t (a) values (1), (2)",
    )
    sync(source, target, "t")
    execute(source, "update t set a = 5 where a = 1")
    sync(source, target, "t")
    query = "select id, a, s, v from t order by id"
    assert rows(source, query) == rows(target, query)
    # The expression of a virtual column changes every row, and no xmin.
    execute(source, "alter table t alter v set expression as (a * 100)")
    report = sync(source, target, "t")
    assert report.mode == "full"
    assert rows(source, query) == rows(target, query)


def test_five_hundred_columns_and_a_large_field(source: str, target: str) -> None:
    columns = ", ".join(f'"Column {i}" int' for i in range(500))
    execute(
        source,
        f"create table wide (id int primary key, big text, {columns})",
        "insert into wide (id, big, \"Column 499\") values (1, repeat('0123456789', 5000000), 7)",
    )
    report = sync(source, target, "wide")
    assert report.bytes > 50_000_000
    query = 'select md5(big), "Column 499" from wide'
    assert rows(source, query) == rows(target, query)


def test_only_a_key_only_nothing_and_a_unique_index(source: str, target: str) -> None:
    execute(
        source,
        "create table only_key (a text, b int, primary key (a, b))",
        "insert into only_key values ('x', 1)",
        "create table uni (a int not null, b int)",
        "create unique index on uni (a)",
        "create unique index on uni (b)",
        "insert into uni values (1, null), (2, null)",
        "create table nothing ()",
        "insert into nothing default values",
    )
    for table in ("only_key", "uni", "nothing"):
        sync(source, target, table)
    execute(source, "insert into only_key values ('x', 2)", "update uni set b = 5 where a = 2")
    assert sync(source, target, "only_key").rows_inserted == 1
    report = sync(source, target, "uni")  # the nullable one never serves as key
    assert (report.mode, report.rows_updated) == ("scan", 1)
    assert sync(source, target, "nothing").rows == 1


def test_sixteen_to_eighteen_and_back(source: str, target: str, sixteen: Server) -> None:
    """Another major version on either side, whose MERGE has no RETURNING."""
    check_zoo(source, sixteen.dsn("target"))
    zoo(sixteen.dsn("source"))
    sync(sixteen.dsn("source"), target, "zoo", into="from_16")
    query = IMAGE.replace(" from zoo", " from from_16.zoo")
    assert rows(sixteen.dsn("source"), IMAGE) == rows(target, query)
