"""`append`: what it stores, how durably, and what it refuses."""

import uuid
from pathlib import Path

import pytest

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox, backlog, file
from replica_platform.outbox.errors import (
    NotAnOutbox,
    NotDurable,
    NotStorable,
    OutboxClosed,
    OutboxFull,
    SlotLocked,
)


def stored(path: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("select seq, id, kind, payload from record order by seq").fetchall()
    connection.close()
    return rows


def test_a_record_is_stored_with_its_id(box: Outbox, path: Path) -> None:
    one = box.append("note", {"b": 1, "a": "ä"})
    assert uuid.UUID(one).version == 4
    assert stored(path) == [(1, one, "note", '{"a":"ä","b":1}')]


def test_the_id_of_the_caller_is_kept(box: Outbox, path: Path) -> None:
    mine = uuid.uuid4()
    assert box.append("note", {}, id=mine) == str(mine)
    assert box.append("note", {}, id=str(mine).upper()) == str(mine)
    assert [row[1] for row in stored(path)] == [str(mine)] * 2


def test_append_many_saves_all_or_none(box: Outbox, path: Path) -> None:
    ids = box.append_many("note", [{"n": n} for n in range(3)])
    assert [row[1] for row in stored(path)] == ids
    with pytest.raises(NotStorable):
        box.append_many("note", [{"n": 3}, {"n": float("nan")}])
    assert len(stored(path)) == 3
    assert box.append_many("note", []) == []


def test_durability_is_full_and_read_back(box: Outbox) -> None:
    assert box._connection is not None
    assert box._connection.execute("pragma synchronous").fetchone() == (2,)
    assert box._connection.execute("pragma journal_mode").fetchone() == ("wal",)


def test_normal_durability_only_by_name(path: Path) -> None:
    with Outbox(path, durability="normal") as box:
        assert box._connection is not None
        assert box._connection.execute("pragma synchronous").fetchone() == (1,)
    with pytest.raises(ValueError, match="'off'"):
        Outbox(path, durability="off")  # type: ignore[arg-type]


def test_a_library_that_does_not_support_full_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(file.SYNCHRONOUS, "full", 3)
    with pytest.raises(NotDurable, match="synchronous=2"):
        Outbox(path)


def test_an_append_after_close_is_refused_and_close_may_be_repeated(path: Path) -> None:
    box = Outbox(path)
    box.close()
    box.close()
    with pytest.raises(OutboxClosed, match="not saved"):
        box.append("note", {})


def test_a_second_writer_of_the_slot_is_refused(box: Outbox, path: Path) -> None:
    with pytest.raises(SlotLocked, match="writes"):
        Outbox(path)
    box.close()
    Outbox(path).close()


def test_claim_takes_the_first_free_slot(tmp_path: Path) -> None:
    with Outbox.claim(tmp_path) as one, Outbox.claim(tmp_path) as two:
        assert [one.path.name, two.path.name] == ["worker-1.db", "worker-2.db"]
    with Outbox.claim(tmp_path) as again:
        assert again.path.name == "worker-1.db"


def test_the_cap_reaches_the_caller_and_drops_nothing(path: Path) -> None:
    with Outbox(path, max_bytes=200_000) as box:
        kept = []
        with pytest.raises(OutboxFull, match="not saved"):
            for _ in range(1000):
                kept.append(box.append("note", {"text": "x" * 1000}))
        with pytest.raises(OutboxFull):
            box.append("note", {"text": "x" * 9000})
    assert len(kept) > 50
    assert [row[1] for row in stored(path)] == kept


def test_another_database_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table t (x)")
    connection.close()
    with pytest.raises(NotAnOutbox, match="not an outbox"):
        Outbox(path)


def test_a_file_that_is_not_sqlite_is_refused(path: Path) -> None:
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(NotAnOutbox):
        Outbox(path)


def test_a_newer_version_is_refused(box: Outbox, path: Path) -> None:
    box.close()
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(NotAnOutbox, match="version 99"):
        Outbox(path)


def test_the_backlog_of_a_missing_file_names_it_and_creates_nothing(path: Path) -> None:
    report = backlog([path])
    assert report.unreachable == (str(path),)
    assert not report.ok
    assert not path.exists()


@pytest.mark.parametrize("kind", ["", "a\x00b", "x" * 201, "\ud800", None])
def test_a_kind_is_printable(box: Outbox, kind: str) -> None:
    with pytest.raises(NotStorable, match="kind"):
        box.append(kind, {})


@pytest.mark.parametrize("id", ["", "17", 17])
def test_an_id_is_a_uuid(box: Outbox, id: str) -> None:
    with pytest.raises(NotStorable, match="UUID"):
        box.append("note", {}, id=id)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_an_append_to_a_file_that_is_gone_is_refused(box: Outbox, path: Path, how: str) -> None:
    box.append("note", {"n": 1})
    for one in path.parent.glob("worker-1.db*"):
        one.unlink()
    if how == "replaced":
        path.touch()
    for _ in range(2):
        with pytest.raises(NotAnOutbox, match=how):
            box.append("note", {"n": 2})
        with pytest.raises(NotAnOutbox, match="not saved"):
            box.append_many("note", [{"n": 3}] * 100)
    box.close()
    path.unlink(missing_ok=True)
    with Outbox(path) as fresh:
        fresh.append("note", {"n": 4})
    assert backlog([path]).pending == 1


def test_a_process_may_change_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with Outbox("worker-1.db") as box:
        box.append("note", {"n": 1})
        monkeypatch.chdir(tmp_path / "elsewhere")
        box.append("note", {"n": 2})
    assert backlog([tmp_path / "worker-1.db"]).pending == 2
