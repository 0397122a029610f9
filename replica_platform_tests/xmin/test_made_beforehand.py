"""Target tables that a user has created before the first sync, with constraints of the user's."""

import pytest

from replica_platform.xmin import CannotSync, sync, validate
from replica_platform_tests.xmin.helpers import execute, rows

QUERY = "select id, mail from t order by id"


@pytest.fixture(params=["unique (mail)", "exclude (mail with =)", "partial"])
def table(request: pytest.FixtureRequest, source: str, target: str) -> None:
    """A table whose second column is unique in the target, and 20 rows of it."""
    execute(
        source,
        "create table t (id int primary key, mail text)",
        "insert into t select i, 'm' || i from generate_series(1, 20) i",
    )
    if request.param == "partial":
        execute(
            target,
            "create table t (id int primary key, mail text)",
            "create unique index on t (mail) where id > 0",
        )
    else:
        execute(target, f"create table t (id int primary key, mail text, {request.param})")
    sync(source, target, "t")


@pytest.mark.parametrize("mode", ["auto", "full"])
@pytest.mark.parametrize("deletes", ["auto", "keys"])
def test_a_unique_value_that_moves_to_another_row_arrives(
    mode: str, deletes: str, source: str, target: str, table: None
) -> None:
    execute(
        source,
        "delete from t where id = 1",
        "insert into t values (21, 'm1')",
        "update t set mail = case id when 2 then 'm3' else 'm2' end where id in (2, 3)",
        "update t set mail = 'new' where id = 4",
        "insert into t values (22, 'm4')",
        "update t set id = 23 where id = 5",
    )
    report = sync(source, target, "t", mode=mode, deletes=deletes)
    assert rows(source, QUERY) == rows(target, QUERY)
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (3, 3, 2)
    assert validate(source, target, "t", content=True).in_sync
    execute(source, "delete from t where id > 20")
    assert sync(source, target, "t", mode=mode, deletes=deletes).rows_deleted == 3
    assert rows(source, QUERY) == rows(target, QUERY)


def test_rows_that_refer_to_a_changed_row_are_not_deleted_with_it(source: str, target: str) -> None:
    """A changed row is deleted and inserted only where no foreign key refers to it."""
    execute(
        source,
        "create table t (id int primary key, mail text)",
        "insert into t values (1, 'a'), (2, 'b')",
    )
    execute(
        target,
        "create table t (id int primary key, mail text unique)",
        "create table u (t int references t on delete cascade)",
    )
    sync(source, target, "t")
    execute(target, "insert into u values (1), (2)")
    execute(source, "update t set mail = 'c' where id = 1")
    assert sync(source, target, "t").rows_updated == 1
    assert rows(target, "select count(*) from u") == [(2,)]


def test_columns_that_only_the_target_has_are_kept(source: str, target: str, table: None) -> None:
    execute(target, "alter table t add column own text", "update t set own = 'o' || id")
    execute(source, "update t set mail = 'new' where id = 4")
    assert sync(source, target, "t").rows_updated == 1
    assert rows(target, "select mail, own from t where id = 4") == [("new", "o4")]


TRIGGER = """
create function act() returns trigger language plpgsql as $$ begin
    {body}
end $$
"""
KEEP = "if new.id % 10 = 0 then return null; end if; return new;"
STAMP = "new.own := 'seen'; return new;"
SPARE = "if old.id % 10 = 0 then return null; end if; return old;"


@pytest.fixture
def plain(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, mail text)",
        "insert into t select i, 'm' || i from generate_series(1, 20) i",
    )
    execute(target, "create table t (id int primary key, mail text, own text)")


@pytest.mark.parametrize(("body", "events"), [(KEEP, "insert or update"), (SPARE, "delete")])
@pytest.mark.parametrize("mode", ["auto", "full"])
def test_a_trigger_that_suppresses_rows_is_named_and_the_remedy_helps(
    body: str, events: str, mode: str, source: str, target: str, plain: None
) -> None:
    """The control is the same sync without the trigger: it works, see the last lines."""
    execute(source, "create table bag (a int)", "insert into bag values (1), (1)")
    sync(source, target, "t")
    execute(
        target,
        TRIGGER.format(body=body),
        f'create trigger "No tens" before {events} on t for each row execute function act()',
    )
    execute(
        source,
        "update t set mail = 'new' where id <= 10",
        "insert into t values (30, 'x'), (31, 'y')",
        "delete from t where id in (20, 19)",
    )
    before = rows(target, QUERY)
    with pytest.raises(CannotSync, match="suppress or change rows") as refused:
        sync(source, target, "t", mode=mode)
    assert rows(target, QUERY) == before
    execute(target, str(refused.value).split("Run in the target: ")[1])
    report = sync(source, target, "t", mode=mode)
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (2, 10, 2)
    assert rows(source, QUERY) == rows(target, QUERY)


def test_triggers_that_leave_the_rows_as_they_are_work(
    source: str, target: str, plain: None
) -> None:
    execute(
        target,
        TRIGGER.format(body=STAMP),
        "create trigger stamp before insert or update on t for each row execute function act()",
        "create table audit (op text, id int)",
        """create function note() returns trigger language plpgsql as $$ begin
           insert into audit values (tg_op, coalesce(new.id, old.id)); return null; end $$""",
        """create trigger note after insert or update or delete on t
           for each row execute function note()""",
    )
    sync(source, target, "t")
    execute(source, "update t set mail = 'new' where id = 4", "delete from t where id = 5")
    report = sync(source, target, "t")
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (0, 1, 1)
    assert rows(target, "select own from t where id = 4") == [("seen",)]
    assert rows(target, "select op, id from audit where op <> 'INSERT' order by 1") == [
        ("DELETE", 5),
        ("UPDATE", 4),
    ]
    assert rows(target, "select count(*) from audit where op = 'INSERT'") == [(20,)]


def test_a_suppressing_trigger_of_a_table_without_a_key(source: str, target: str) -> None:
    execute(source, "create table t (id int)", "insert into t values (9), (10)")
    execute(
        target,
        "create table t (id int)",
        TRIGGER.format(body=KEEP),
        "create trigger tens before insert on t for each row execute function act()",
    )
    with pytest.raises(CannotSync, match="DISABLE TRIGGER"):
        sync(source, target, "t")
    assert rows(target, "select count(*) from t") == [(0,)]
