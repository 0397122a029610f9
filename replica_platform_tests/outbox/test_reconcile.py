"""Rows that the target lost are found and resent."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replica_platform.outbox import Outbox, backlog, dead, drain, reconcile, verify
from replica_platform.outbox.delivery import statements
from replica_platform.outbox.file import open_existing, renew

Ask = Callable[..., list[tuple[Any, ...]]]


def test_a_rolled_back_target_gets_its_rows_back(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target, batch_rows=5)
    ask("create table earlier as table outbox.chain")
    box.append_many("note", [{"n": n} for n in range(10, 20)])
    drain([path], target, batch_rows=5)
    # The state after a restore to the moment after the first drain.
    ask("delete from outbox.record where seq > 10")
    ask("truncate outbox.chain")
    ask("insert into outbox.chain table earlier")
    report = drain([path], target)
    assert (report.files[0].reopened, report.delivered, report.pending) == (10, 10, 0)
    assert ask("select count(*) from outbox.record") == [(20,)]
    assert drain([path], target).files[0].reopened == 0


def test_a_dead_row_stays_dead_when_its_batch_is_resent(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    drain([path], target)
    ask("alter table outbox.record add constraint no_bad check (kind <> 'bad')")
    for kind in ("note", "bad", "note"):
        box.append(kind, {})
    assert drain([path], target).dead == 1
    ask("truncate outbox.record, outbox.chain")
    report = drain([path], target)
    assert (report.files[0].reopened, report.delivered, report.dead) == (2, 2, 0)
    assert [row.seq for row in dead(path)] == [2]


def test_another_target_gets_everything(
    box: Outbox, path: Path, database: Callable[[str], str]
) -> None:
    box.append_many("note", [{"n": n} for n in range(7)])
    drain([path], database("one"))
    assert drain([path], database("two")).delivered == 7


def test_a_restored_older_file_gets_a_new_identity(
    path: Path, tmp_path: Path, target: str, ask: Ask
) -> None:
    with Outbox(path) as box:
        box.append("note", {"n": 0})
    older = tmp_path / "older.db"
    subprocess.run(["cp", str(path), str(older)], check=True)
    with Outbox(path) as box:
        box.append_many("note", [{"n": 1}, {"n": 2}])
    drain([path], target)
    older.replace(path)
    with Outbox(path) as box:
        late = box.append("note", {"n": 3})
        report = drain([path], target)
    assert (report.delivered, report.absorbed, report.pending) == (1, 1, 0)
    assert ask("select count(*) from outbox.record") == [(4,)]
    assert ask("select seq from outbox.record where id = %s", late) == [(2,)]
    assert ask("select count(distinct file_uuid) from outbox.chain") == [(2,)]


def test_a_lost_row_is_found_and_resent(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    ids = box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target)
    assert reconcile([path], target).ok
    ask("delete from outbox.record where id = %s", ids[3])
    answer = reconcile([path], target)
    assert (answer.rows_checked, answer.rows_missing, answer.batches_missing) == (10, 1, 0)
    assert not answer.ok
    assert backlog([path]).pending == 0
    assert reconcile([path], target, reopen=True).reopened == 1
    assert drain([path], target).delivered == 1
    assert reconcile([path], target).ok


def test_changed_content_is_found(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    box.append("note", {"n": 1})
    drain([path], target)
    ask("update outbox.record set payload_sha = '\\x00'")
    assert reconcile([path], target).rows_missing == 1


def test_a_file_that_cannot_be_read_is_named(path: Path, target: str) -> None:
    answer = reconcile([path], target)
    assert not answer.ok
    assert str(path) in answer.sentence


def test_a_removed_outbox_is_reported(tmp_path: Path, target: str, ask: Ask) -> None:
    folder = tmp_path / "outbox"
    for _ in range(2):
        with Outbox.claim(folder) as box, Outbox.claim(folder) as other:
            box.append("note", {})
            other.append("note", {})
    drain([folder], target)
    assert reconcile([folder], target).ok
    (folder / "worker-2.db").unlink()
    answer = reconcile([folder], target)
    assert not answer.ok
    assert "worker-2.db" in answer.sentence and "delivered 2 rows" in answer.sentence
    with Outbox(folder / "worker-2.db"):
        assert "replaced" in reconcile([folder], target).sentence
        ask("delete from outbox.file where path like '%%worker-2.db'")
        assert reconcile([folder], target).ok


def test_a_restored_file_is_not_reported_as_removed(path: Path, target: str) -> None:
    with Outbox(path) as box:
        box.append("note", {})
        drain([path], target)
        connection = open_existing(path)
        renew(connection)
        connection.close()
        assert drain([path], target).files[0].landed == 1
        assert reconcile([path], target).ok


def test_a_drain_resends_lost_rows_on_request(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    ids = box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target)
    ask("delete from outbox.record where id = any(%s::uuid[])", [ids[2], ids[5]])
    ask("update outbox.record set payload_sha = '\\x00' where id = %s", ids[7])
    assert drain([path], target).delivered == 0  # the ledgers agree
    report = drain([path], target, repair=True)
    # The changed row is a conflict, which is kept whole.
    assert (report.files[0].reopened, report.delivered, report.conflicts) == (3, 2, 1)
    assert verify([path], target).ok
    report = drain([path], target, repair=True)
    assert (report.files[0].reopened, report.delivered) == (0, 0)


def test_a_stop_ends_the_search_for_lost_rows(
    box: Outbox, path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replica_platform.outbox.delivery.reconcile.ROWS_PER_QUERY", 2)
    box.append_many("note", [{"n": n} for n in range(10)])
    drain([path], target)
    queries = []
    present = statements.present
    monkeypatch.setattr(
        statements, "present", lambda *values: queries.append(1) or present(*values)
    )
    assert drain([path], target, repair=True, budget_s=0).ok
    assert len(queries) == 1


def test_a_damaged_file_is_named(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{"text": "x" * 2000, "n": n} for n in range(300)])
    drain([path], target)
    box.close()
    content = bytearray(path.read_bytes())
    content[100_000:400_000] = b"\xff" * 300_000
    path.write_bytes(content)
    report = verify([path], target)
    assert not report.ok
    assert "worker-1.db" in report.sentence
