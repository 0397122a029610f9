"""Any order of appends, drains, crashes, bugs, fixes, rollbacks and prunes: nothing is lost.

Hypothesis generates the sequences; a dict is the model.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from replica_platform.outbox import Outbox, backlog, dead, drain, queue, reconcile, replay


class Crash(BaseException):
    """The death of the process."""


class Story(RuleBasedStateMachine):
    """One outbox and its target; `acknowledged` must be in the target at the end."""

    dsn = ""
    count = 0
    acknowledged_in_all = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "worker-1.db"
        self.box = Outbox(self.path)
        self.acknowledged: dict[str, dict[str, Any]] = {}
        self.target = psycopg.connect(self.dsn, autocommit=True)
        self.target.execute("drop schema if exists outbox cascade")
        self.backup: list[tuple[Any, ...]] | None = None
        self.saved = False
        self.drain()

    def drain(self, **options: Any) -> None:
        drain([self.path], self.dsn, force=True, batch_rows=7, **options)

    @rule(n=st.integers(5, 30), many=st.booleans(), bad=st.booleans())
    def append(self, n: int, many: bool, bad: bool) -> None:
        records = [
            {"n": len(self.acknowledged) + i, **({"bad": i} if bad else {})} for i in range(n)
        ]
        if many:
            ids = self.box.append_many("note", records)
        else:
            ids = [self.box.append("note", record) for record in records]
        self.acknowledged |= zip(ids, records, strict=True)

    @rule()
    def append_the_same_again(self) -> None:
        for id, record in list(self.acknowledged.items())[-2:]:
            self.box.append("note", record, id=id)

    @rule()
    def restart_the_worker(self) -> None:
        self.box.close()
        self.box = Outbox(self.path)

    @rule(keep_s=st.sampled_from([0.0, 1000.0]), code=st.sampled_from(["1", "2"]))
    def deliver(self, keep_s: float, code: str) -> None:
        # Rows must not be pruned while the target may be rolled back to a state without them.
        keep_s = 1000.0 if self.saved else keep_s
        self.drain(keep_delivered_s=keep_s, code_version=code)

    @rule()
    def crash_before_the_file_notes_the_batch(self) -> None:
        def crash(*_: Any) -> None:
            raise Crash

        real, queue.mark_delivered = queue.mark_delivered, crash  # type: ignore[assignment]
        try:
            self.drain()
        except Crash:
            pass
        finally:
            queue.mark_delivered = real

    @rule()
    def break_the_table(self) -> None:
        self.target.execute(
            "alter table outbox.record drop constraint if exists no_bad, "
            "add constraint no_bad check (not payload ? 'bad') not valid"
        )

    @rule()
    def fix_the_table(self) -> None:
        self.target.execute("alter table outbox.record drop constraint if exists no_bad")

    @rule()
    def replay_the_dead(self) -> None:
        replay(self.path)

    @rule()
    def save_the_target(self) -> None:
        for table in ("record", "chain", "conflict"):
            self.target.execute(f"drop table if exists outbox.saved_{table}")
            self.target.execute(f"create table outbox.saved_{table} as table outbox.{table}")
        self.saved = True

    @rule()
    def roll_the_target_back(self) -> None:
        if not self.saved:
            return
        self.fix_the_table()
        for table in ("record", "chain", "conflict"):
            self.target.execute(f"truncate outbox.{table}")
            self.target.execute(f"insert into outbox.{table} table outbox.saved_{table}")

    @rule(n=st.integers(1, 10))
    def deliver_rows_that_the_target_will_lose(self, n: int) -> None:
        self.save_the_target()
        self.append(n, many=True, bad=False)
        self.drain()
        self.roll_the_target_back()

    def teardown(self) -> None:
        try:
            self.fix_the_table()
            replay(self.path)
            self.drain()
            assert backlog([self.path]).pending == 0
            assert dead(self.path) == []
            rows = self.target.execute("select id::text, payload from outbox.record").fetchall()
            assert dict(rows) == self.acknowledged
            assert len(rows) == len(self.acknowledged)
            answer = reconcile([self.path], self.dsn)
            assert answer.ok, answer.sentence
            assert backlog([self.path]).conflicts == 0
            Story.count += 1
            Story.acknowledged_in_all += len(rows)
        finally:
            self.box.close()
            self.target.close()
            shutil.rmtree(self.folder)


def test_no_sequence_loses_a_record(database: Callable[[str], str], torture: bool) -> None:
    Story.dsn = database("story")
    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=400 if torture else 35,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=not torture,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"\n{Story.count} stories, {Story.acknowledged_in_all} acknowledged, lost 0, doubled 0")
    assert Story.acknowledged_in_all > 300
