"""`drain`: waiting rows arrive once, in order, with their ledger."""

import hashlib
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replica_platform.outbox import Outbox, backlog, conflicts, dismiss_conflicts, drain, file
from replica_platform.outbox.breaker import Breaker, store
from replica_platform.outbox.queue import batch_digest, next_batch

Ask = Callable[..., list[tuple[Any, ...]]]


def test_waiting_rows_arrive(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    one = box.append("note", {"text": 'it\'s "ä" \\ \u2028 🎈', "n": [1, 2.5, None, True]})
    report = drain([path], target)
    assert (report.delivered, report.absorbed, report.pending, report.ok) == (1, 0, 0, True)
    [(id, seq, kind, payload, seconds)] = ask(
        "select id::text, seq, kind, payload, extract(epoch from now() - created_at) "
        "from outbox.record"
    )
    assert (id, seq, kind) == (one, 1, "note")
    assert payload == {"text": 'it\'s "ä" \\ \u2028 🎈', "n": [1, 2.5, None, True]}
    assert 0 <= seconds < 60


def test_a_second_drain_does_nothing(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    box.append_many("note", [{"n": n} for n in range(5)])
    drain([path], target)
    report = drain([path], target)
    assert (report.delivered, report.absorbed, report.ok) == (0, 0, True)
    assert ask("select count(*) from outbox.record") == [(5,)]


def test_rows_arrive_in_order_of_seq(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    ids = box.append_many("note", [{"n": n} for n in range(50)])
    drain([path], target, batch_rows=7)
    # ctid is the order of insertion in a fresh table.
    assert [id for (id,) in ask("select id::text from outbox.record order by ctid")] == ids


def test_the_ledger_describes_each_batch(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    connection = file.open_existing(path)
    rows = next_batch(connection, 100, 10**6)
    connection.close()
    report = drain([path], target, batch_rows=4)
    assert report.files[0].batches == 3
    one, two, three = (batch_digest(batch) for batch in (rows[:4], rows[4:8], rows[8:]))
    first = hashlib.sha256(one).digest()
    second = hashlib.sha256(first + two).digest()
    third = hashlib.sha256(second + three).digest()
    with closing(file.open_existing(path, read_only=True)) as local:
        assert local.execute(
            "select number, first_seq, last_seq, n, digest from batch order by number"
        ).fetchall() == [(1, 1, 4, 4, first), (2, 5, 8, 4, second), (3, 9, 10, 2, third)]
    assert ask("select number, last_seq, landed, previous, chain from outbox.chain") == [
        (3, 10, 10, second, third)
    ]


def test_a_batch_is_limited_in_bytes(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{"text": "x" * 1000} for _ in range(10)])
    assert drain([path], target, batch_bytes=2500).files[0].batches == 5


def test_a_row_larger_than_a_batch_is_sent_alone(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{"text": "x" * size} for size in (10, 5000, 10)])
    report = drain([path], target, batch_bytes=100)
    assert (report.files[0].batches, report.delivered) == (3, 3)


def test_a_crash_before_the_file_notes_the_batch_is_absorbed(
    box: Outbox, path: Path, target: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.append_many("note", [{"n": n} for n in range(9)])

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("replica_platform.outbox.queue.mark_delivered", crash)
        drain([path], target)
    assert ask("select count(*) from outbox.record") == [(9,)]
    assert backlog([path]).pending == 9
    report = drain([path], target)
    assert (report.delivered, report.absorbed, report.pending, report.ok) == (0, 9, 0, True)
    assert ask("select count(*) from outbox.record") == [(9,)]


def test_the_same_id_and_content_twice_is_one_record(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    one = box.append("note", {"n": 1})
    box.append("note", {"n": 1}, id=one)
    report = drain([path], target)
    assert (report.delivered, report.absorbed, report.conflicts) == (1, 1, 0)


def test_the_same_id_with_other_content_is_kept_and_reported(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    one = box.append("note", {"n": 1})
    box.append("note", {"n": 2}, id=one)
    report = drain([path], target)
    assert (report.delivered, report.conflicts, report.ok) == (1, 1, False)
    assert ask("select payload from outbox.record") == [({"n": 1},)]
    assert ask("select id::text, payload from outbox.conflict") == [(one, {"n": 2})]
    assert backlog([path]).conflicts == 1
    assert [(row.seq, row.id, row.table) for row in conflicts(path)] == [(2, one, "outbox.record")]


def test_a_conflict_is_reported_until_it_is_dismissed(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    one = box.append("note", {"n": 1})
    box.append("note", {"n": 2}, id=one)
    drain([path], target)
    assert not backlog([path]).ok
    assert drain([path], target, keep_delivered_s=0).files[0].pruned == 1
    assert dismiss_conflicts(path) == 1
    assert (backlog([path]).ok, conflicts(path)) == (True, [])
    assert drain([path], target, keep_delivered_s=0).files[0].pruned == 1
    assert ask("select count(*) from outbox.conflict") == [(1,)]


def test_another_unique_index_does_not_drop_rows(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    drain([path], target)
    box.append("note", {})
    drain([path], target)
    ask("create unique index on outbox.record (kind)")
    box.append("note", {"other": 1})
    report = drain([path], target)
    assert (report.delivered, report.dead) == (0, 1)
    assert backlog([path]).dead == 1


def test_only_one_drain_works_on_a_file(box: Outbox, path: Path, target: str) -> None:
    box.append("note", {})
    inner = []

    def progress(done: int, total: int, unit: str) -> None:
        if done == 0:
            inner.append(drain([path], target))

    outer = drain([path], target, progress=progress)
    assert [one.files[0].state for one in inner] == ["busy"]
    assert (outer.delivered, inner[0].delivered) == (1, 0)


def test_stop_ends_the_drain_after_the_batch(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{"n": n} for n in range(10)])
    stop = threading.Event()
    report = drain(
        [path],
        target,
        batch_rows=2,
        stop=stop,
        progress=lambda done, _, unit: done >= 4 and stop.set(),
    )
    assert (report.files[0].state, report.delivered, report.pending) == ("stopped", 4, 6)


def test_a_budget_ends_the_drain_in_time(box: Outbox, path: Path, target: str) -> None:
    box.append("note", {})
    report = drain([path], target, budget_s=0)
    assert (report.files[0].state, report.pending, report.ok) == ("time is up", 1, True)


def test_many_files_are_drained_and_the_unreachable_named(
    tmp_path: Path, target: str, ask: Ask
) -> None:
    for slot in range(3):
        with Outbox.claim(tmp_path / "node") as box:
            box.append("note", {"slot": slot})
            if slot == 0:
                other = Outbox.claim(tmp_path / "node")
                other.append("note", {"other": slot})
                other.close()
    absent = tmp_path / "gone.db"
    report = drain([tmp_path / "node", absent], target)
    assert report.unreachable == (str(absent),)
    assert [Path(one.path).name for one in report.files] == [
        "worker-1.db",
        "worker-2.db",
        "gone.db",
    ]
    assert (report.delivered, report.ok) == (4, False)
    assert "gone.db" in report.sentence
    assert ask("select count(distinct file_uuid) from outbox.record") == [(2,)]


def test_without_a_target_the_rows_stay(box: Outbox, path: Path) -> None:
    box.append("note", {})
    report = drain([path], "postgresql://u:secret@127.0.0.1:1/x")
    assert (report.files[0].state, report.pending, report.ok) == ("failed", 1, False)
    assert "secret" not in report.sentence


def test_reports_are_fit_for_json(box: Outbox, path: Path, target: str) -> None:
    import json

    box.append("note", {})
    assert json.loads(json.dumps(drain([path], target).as_dict()))["delivered"] == 1
    assert json.loads(json.dumps(backlog([path]).as_dict()))["pending"] == 0


def test_the_total_in_the_target_and_trouble_are_reported(
    box: Outbox, path: Path, target: str
) -> None:
    one = box.append("note", {"n": 1})
    drain([path], target)
    box.append("note", {"n": 1}, id=one)
    box.append("note", {"n": 2}, id=one)
    box.append("note", {"n": 3})
    report = drain([path], target)
    assert (report.landed, report.delivered, report.absorbed, report.conflicts) == (2, 1, 1, 1)
    assert (report.trouble, report.ok) == (False, False)
    report = drain([path], "postgresql://u@127.0.0.1:1/x")
    assert (report.landed, report.trouble) == (2, True)
    assert drain([path, path.with_name("gone.db")], target, force=True).trouble


def test_a_busy_worker_does_not_delay_the_others(tmp_path: Path, target: str) -> None:
    with Outbox(tmp_path / "busy.db") as busy, Outbox(tmp_path / "calm.db") as calm:
        busy.append_many("note", [{"n": n} for n in range(10)])
        calm.append("note", {})
        # It writes as fast as it is drained; without a limit this would not end.
        report = drain(
            [tmp_path],
            target,
            batch_rows=2,
            progress=lambda *_: busy.append_many("note", [{}, {}]) and None,
        )
    assert [one.delivered for one in report.files] == [10, 1]
    assert report.pending > 0


def test_a_batch_that_failed_is_halved_and_grows_again(
    box: Outbox, path: Path, target: str
) -> None:
    box.append_many("note", [{"n": n} for n in range(3000)])
    connection = file.open_existing(path)
    store(connection, Breaker("waiting", 8, 0.0, 0.0, None, "it was slow"))
    connection.close()
    done: list[int] = []
    drain([path], target, progress=lambda rows, _, unit: done.append(rows))
    assert done[:4] == [0, 3, 9, 21]
    assert len(done) == 12


def test_an_unreachable_server_is_tried_once(tmp_path: Path) -> None:
    for slot in range(3):
        with Outbox(tmp_path / f"worker-{slot}.db") as box:
            box.append("note", {})
    # This address neither accepts nor refuses connections: each attempt waits for its timeout.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        report = drain([tmp_path], f"postgresql://u@127.0.0.1:{port}/x?connect_timeout=2")
    assert [one.state for one in report.files] == ["failed"] * 3
    assert report.seconds < 5
