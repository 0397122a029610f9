"""Target tables that a user has made with the foreign keys of the source."""

import pytest

from replica_platform.xmin import CannotSync, GroupReport, TableSpec, sync, sync_group, validate
from replica_platform_tests.xmin.helpers import execute, rows

# Children first, so that the order of the list is never the right one.
SPECS = [TableSpec("c"), TableSpec("b"), TableSpec("a")]
QUERIES = [f"select id, ref, mail from {table} order by id" for table in "abc"]


def tables(target: str, rule: str = "", *, in_source: bool = False) -> list[str]:
    """Return the statements that make a, b that refers to a, and c that refers to b."""
    unique = "" if in_source else "unique"
    return [
        f"create table a (id int primary key, ref int, mail text {unique})",
        f"create table b (id int primary key, ref int references a {rule}, mail text {unique})",
        f"create table c (id int primary key, ref int references b {rule}, mail text)",
    ]


@pytest.fixture(params=["", "deferrable", "on delete cascade", "on delete restrict"])
def family(request: pytest.FixtureRequest, source: str, target: str) -> str:
    """Three tables on both sides and ten rows of each; the rule of the target's foreign keys."""
    execute(source, *tables(source, in_source=True))
    execute(target, *tables(target, request.param))
    for table in "abc":
        insert = f"insert into {table} select i, i, 'm' || i from generate_series(1, 10) i"
        execute(source, insert)
    assert sync_group(source, target, SPECS).ok
    return str(request.param)


def equal(source: str, target: str) -> bool:
    return [rows(source, query) for query in QUERIES] == [rows(target, query) for query in QUERIES]


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("mode", ["auto", "full"])
def test_inserts_deletes_and_moves_of_a_family(
    atomic: bool, mode: str, family: str, source: str, target: str
) -> None:
    execute(
        source,
        "insert into a values (11, 0, 'm11')",
        "insert into b values (11, 11, 'm11')",
        "insert into c values (11, 11, 'm11')",
        # b's row moves from a parent that goes to one that came.
        "update b set ref = 11 where id = 1",
        "delete from a where id = 1",
        "delete from c where id in (2, 3)",
        "delete from b where id = 2",
        "delete from a where id = 2",
        "update c set id = 30 where id = 4",
    )
    group = sync_family(source, target, mode, atomic=atomic)
    assert group.ok, group.failures
    assert equal(source, target)
    assert all(validate(source, target, table, content=True).in_sync for table in "abc")
    assert group.reports["public.a"].rows_deleted == 2
    assert sync_family(source, target, mode, atomic=atomic).ok
    # Rows deleted in the parents alone are found, too, and in the children by a delete of all.
    execute(source, "delete from c", "delete from b", "delete from a")
    group = sync_family(source, target, mode, atomic=atomic)
    assert group.ok, group.failures
    assert rows(target, "select count(*) from a") == [(0,)]


def sync_family(source: str, target: str, mode: str, *, atomic: bool) -> GroupReport:
    specs = [TableSpec(one.table, mode=mode) for one in SPECS]
    return sync_group(source, target, specs, atomic=atomic)


def test_unique_values_are_swapped_where_rows_refer_to_them(
    family: str, source: str, target: str
) -> None:
    execute(
        source,
        "update a set mail = case id when 1 then 'm2' else 'm1' end where id in (1, 2)",
        "update b set mail = case id when 1 then 'm2' else 'm1' end, ref = 3 where id in (1, 2)",
    )
    group = sync_group(source, target, SPECS)
    if family.startswith("on delete"):
        # A row cannot be deleted and inserted there: refused, and nothing is changed.
        assert "unique constraint" in group.failures["public.a"]
        assert rows(target, "select mail from a where id = 1") == [("m1",)]
        return
    assert group.ok, group.failures
    assert equal(source, target)


def test_a_single_child_names_the_group_as_the_remedy(
    family: str, source: str, target: str
) -> None:
    execute(source, "insert into a values (11)", "insert into b values (11, 11, 'm11')")
    with pytest.raises(CannotSync, match="in one group"):
        sync(source, target, "b")
    assert sync_group(source, target, SPECS).ok
    assert equal(source, target)


def test_one_that_fails_keeps_its_family_uncommitted(family: str, source: str, target: str) -> None:
    execute(source, "create table other (id int primary key)")
    execute(target, "alter table b add check (id < 11)")
    execute(source, "insert into a values (11)", "insert into b values (11, 11, 'm11')")
    group = sync_group(source, target, [*SPECS, TableSpec("other")])
    assert group.failures.keys() == {"public.a", "public.b", "public.c"} - group.reports.keys()
    assert "violates check constraint" in group.failures["public.b"]
    assert rows(target, "select count(*) from a") == [(10,)]
    assert "public.other" in group.reports


CIRCLE = [
    "create table p (id int primary key, q int)",
    "create table q (id int primary key, p int constraint back references p)",
    "alter table p add constraint forth foreign key (q) references q",
]


def test_a_circle_is_refused_before_anything_is_read_and_the_remedy_helps(
    source: str, target: str
) -> None:
    execute(source, "create table p (id int primary key, q int)")
    execute(source, "create table q (id int primary key, p int)")
    execute(source, "insert into p values (1, 1)", "insert into q values (1, 1)")
    execute(target, *CIRCLE)
    specs = [TableSpec("p"), TableSpec("q")]
    refused = sync_group(source, target, specs)
    assert refused.failures.keys() == {"public.p", "public.q"}
    sentence = refused.failures["public.p"]
    assert "in a circle through public." in sentence
    remedy = sentence.split("Run there: ")[1]
    assert remedy.startswith("ALTER TABLE")
    execute(target, remedy)
    assert sync_group(source, target, specs).ok
    assert rows(target, "select id, q from p") == [(1, 1)]
    execute(source, "update p set id = 2", "update q set id = 3, p = 2", "update p set q = 3")
    assert sync_group(source, target, specs).ok
    assert rows(target, "select id, q from p") == [(2, 3)]
    assert rows(target, "select id, p from q") == [(3, 2)]


def test_a_cascade_that_the_source_has_not_done_is_refused(source: str, target: str) -> None:
    """The control: without the check the child loses rows that the source has, unnoticed."""
    execute(
        source,
        "create table p (id int primary key)",
        "create table q (id int primary key, p int)",
        "insert into p values (1), (2)",
        "insert into q values (1, 1), (2, 2)",
    )
    execute(
        target,
        "create table p (id int primary key)",
        "create table q (id int primary key, p int constraint up references p on delete set null)",
    )
    specs = [TableSpec("q"), TableSpec("p")]
    assert sync_group(source, target, specs).ok
    execute(source, "delete from p where id = 1")
    group = sync_group(source, target, specs)
    assert "also changed rows of public.q" in group.failures["public.p"]
    assert rows(target, "select id, p from q order by 1") == [(1, 1), (2, 2)]
    execute(target, group.failures["public.p"].split("run in the target: ")[1])
    assert sync_group(source, target, specs).ok
    assert rows(target, "select id, p from q order by 1") == [(1, 1), (2, 2)]


def test_a_table_that_refers_to_itself(source: str, target: str) -> None:
    for dsn in (source, target):
        execute(dsn, "create table t (id int primary key, up int references t)")
    execute(source, "insert into t values (1, null), (2, 1), (3, 2)")
    sync(source, target, "t")
    execute(
        source,
        "insert into t values (4, 3)",
        "update t set up = 4 where id = 2",
        "update t set up = null where id = 4",
        "delete from t where id = 3",
        "delete from t where id = 1",
    )
    sync(source, target, "t")
    assert rows(target, "select id, up from t order by 1") == [(2, 4), (4, None)]
