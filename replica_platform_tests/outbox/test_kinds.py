"""A kind's own table, filled in the transaction of its records."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replica_platform.outbox import Outbox, dead, drain, refill
from replica_platform.outbox.delivery.kinds import read_mappings
from replica_platform.outbox.errors import BadMapping, TargetRefused

Ask = Callable[..., list[tuple[Any, ...]]]

CONVERSATION = {
    "conversation": {
        "table": "public.conversations",
        "key": "id",
        "columns": {
            "id": "id",
            "user_id": "user_id",
            "message": "message",
            "response": "response",
            "created_at": "created_at",
        },
    }
}
TABLE = (
    "create table conversations (id uuid primary key, user_id bigint not null, message text, "
    "response text, created_at timestamptz)"
)


def conversation(**other: Any) -> dict[str, Any]:
    record = {
        "id": str(uuid.uuid4()),
        "user_id": 7,
        "message": "hello",
        "response": "hi",
        "created_at": "2026-01-02T03:04:05+00:00",
    }
    return record | other


def test_a_record_arrives_in_both_tables(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    ask(TABLE)
    record = conversation(mood="good")
    box.append("conversation", record, id=record["id"])
    box.append("note", {"n": 1})
    report = drain([path], target, mappings=CONVERSATION)
    assert (report.delivered, report.ok) == (2, True)
    assert ask("select count(*), count(*) filter (where payload ? 'mood') from outbox.record") == [
        (2, 1)
    ]
    assert ask(
        "select id::text, user_id, message, response, "
        "created_at = '2026-01-02 03:04:05+00' from conversations"
    ) == [(record["id"], 7, "hello", "hi", True)]


def test_columns_are_filled_from_the_records_own_values(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ask('create table "No Te" ("I""d" uuid unique, at timestamptz, seq int, kind text, n jsonb)')
    columns = {'I"d': "$id", "at": "$created_at", "seq": "$seq", "kind": "$kind", "n": "n"}
    mapping = {"note": {"table": "No Te", "key": 'I"d', "columns": columns}}
    one = box.append("note", {"n": {"deep": [1]}})
    assert drain([path], target, mappings=mapping).ok
    assert ask(
        'select "I""d"::text, at > now() - interval \'1 minute\', seq, kind, n from "No Te"'
    ) == [(one, True, 1, "note", {"deep": [1]})]


def test_a_missing_table_loses_nothing(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    box.append_many("conversation", [conversation() for _ in range(200)])
    report = drain([path], target, mappings=CONVERSATION)
    assert (report.files[0].sqlstate, report.pending, report.dead) == ("42P01", 200, 0)
    assert ask("select count(*) from outbox.record") == [(0,)]
    ask(TABLE)
    assert drain([path], target, mappings=CONVERSATION, force=True).delivered == 200
    assert ask("select count(*) from conversations") == [(200,)]


def test_a_corrected_mapping_tries_the_rows_again(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ask(TABLE)
    box.append_many("conversation", [conversation() for _ in range(3)])
    columns = {"id": "id", "user_id": "message", "message": "message"}
    wrong = {"conversation": {"table": "conversations", "key": "id", "columns": columns}}
    assert drain([path], target, mappings=wrong).dead == 3
    report = drain([path], target, mappings=CONVERSATION)
    assert (report.files[0].revived, report.delivered, report.dead_rows) == (3, 3, 0)


@pytest.mark.parametrize(
    ("other", "sqlstate"),
    [
        ({"user_id": "seven"}, "22P02"),
        ({"user_id": None}, "23502"),
        ({"user_id": 10**30}, "22003"),
        ({"created_at": "yesterday or so"}, "22007"),
        ({"id": "17"}, "22P02"),
    ],
)
def test_a_record_that_does_not_fit_is_dead_alone(
    box: Outbox, path: Path, target: str, ask: Ask, other: dict[str, Any], sqlstate: str
) -> None:
    ask(TABLE)
    records = [conversation(), conversation(**other), conversation()]
    ids = box.append_many("conversation", records)
    report = drain([path], target, mappings=CONVERSATION)
    assert (report.delivered, report.dead) == (2, 1)
    assert [(row.id, row.sqlstate) for row in dead(path)] == [(ids[1], sqlstate)]
    assert ask("select count(*) from conversations") == [(2,)]


def test_a_row_that_the_worker_inserted_is_absorbed(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ask(TABLE)
    record = conversation()
    ask("insert into conversations values (%s, %s, %s, %s, %s)", *record.values())
    box.append("conversation", record, id=record["id"])
    report = drain([path], target, mappings=CONVERSATION)
    assert (report.delivered, report.conflicts, report.ok) == (1, 0, True)
    assert ask("select count(*) from conversations") == [(1,)]


def test_the_same_key_with_other_content_is_kept_and_reported(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ask(TABLE)
    record = conversation()
    box.append("conversation", record)
    box.append("conversation", record | {"message": "something else"})
    report = drain([path], target, mappings=CONVERSATION)
    assert (report.delivered, report.conflicts, report.ok) == (2, 1, False)
    assert ask("select message from conversations") == [("hello",)]
    assert ask("select place, payload ->> 'message' from outbox.conflict") == [
        ("public.conversations", "something else")
    ]


def test_a_later_mapping_fills_the_table_from_resent_records(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ask(TABLE)
    box.append("conversation", conversation())
    drain([path], target)
    ask("delete from outbox.chain")
    report = drain([path], target, mappings=CONVERSATION)
    assert (report.absorbed, ask("select count(*) from conversations")) == (1, [(1,)])


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        {},
        {"table": "t", "columns": []},
        {"table": "a.b.c", "columns": ["id"]},
        {"table": "t", "columns": {"id": "$nonsense"}},
        {"table": "t", "columns": ["name"]},
        {"table": "t", "columns": ["id"], "colums": 1},
    ],
)
def test_an_incomplete_mapping_is_refused(wrong: Any) -> None:
    with pytest.raises(BadMapping, match="'note'"):
        read_mappings({"note": wrong})


def test_a_list_of_columns_names_columns_and_keys() -> None:
    [mapping] = read_mappings({"note": {"table": "t", "columns": ["id", "n"]}}).values()
    assert (mapping.table, mapping.columns) == (("public", "t"), (("id", "id"), ("n", "n")))


def test_a_table_is_rebuilt_from_the_records(
    box: Outbox, path: Path, target: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replica_platform.outbox.delivery.refill.RECORDS_PER_PAGE", 7)
    box.append_many("conversation", [conversation(n=n) for n in range(20)])
    box.append("note", {"n": 1})
    drain([path], target)  # before the kind had a table
    ask(TABLE)
    report = refill(target, "conversation", CONVERSATION)
    assert (report.records, report.filled, report.refused, report.ok) == (20, 20, 0, True)
    before = ask("select * from conversations order by id")
    ask("delete from conversations where id in (select id from conversations limit 3)")
    ask("update conversations set message = 'edited' where id = (select min(id::text)::uuid from "
        "conversations)")  # fmt: skip
    again = refill(target, "conversation", CONVERSATION)
    assert (again.records, again.filled) == (20, 3)  # rows that exist stay as they are
    assert len(ask("select * from conversations where message = 'edited'")) == 1
    ask("truncate conversations")
    assert refill(target, "conversation", CONVERSATION).filled == 20
    assert ask("select * from conversations order by id") == before


def test_records_that_do_not_fit_are_left_out_and_named(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ids = box.append_many(
        "conversation",
        [conversation(user_id="x" if n in (3, 11) else n) for n in range(20)],
    )
    drain([path], target)
    ask(TABLE)
    report = refill(target, "conversation", CONVERSATION)
    assert (report.records, report.filled, report.refused, report.ok) == (20, 18, 2, False)
    assert ids[3] in report.sentence or ids[11] in report.sentence
    assert "bigint" in report.sentence
    assert ask("select count(*) from conversations") == [(18,)]


def test_a_missing_table_refills_nothing(box: Outbox, path: Path, target: str) -> None:
    box.append("conversation", conversation())
    drain([path], target)
    with pytest.raises(TargetRefused, match="conversations"):
        refill(target, "conversation", CONVERSATION)


def test_a_kind_without_a_table_cannot_be_refilled(target: str) -> None:
    with pytest.raises(BadMapping, match=r"'note'.*conversation"):
        refill(target, "note", CONVERSATION)
