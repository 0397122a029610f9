"""`aappend`: durable when awaited, without holding up the event loop."""

import asyncio
import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.outbox import NotStorable, Outbox, OutboxClosed, backlog, file


def ids_in(path: Path) -> set[str]:
    with closing(file.open_existing(path, read_only=True)) as local:
        return {id for (id,) in local.execute("select id from record")}


def test_a_record_is_saved_when_awaited(box: Outbox, path: Path) -> None:
    async def story() -> None:
        one = await box.aappend("note", {"n": 1})
        assert ids_in(path) == {one}

    asyncio.run(story())


def test_the_event_loop_goes_on_while_another_process_holds_the_lock(
    box: Outbox, path: Path
) -> None:
    async def story(other: file.sqlite3.Connection) -> str:
        waiting = asyncio.create_task(box.aappend("note", {"n": 1}))
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        other.execute("rollback")  # never reached if the loop waited for the lock
        return await waiting

    with closing(file.open_existing(path)) as other:
        other.execute("begin immediate")
        assert ids_in(path) == set()
        one = asyncio.run(story(other))
    assert ids_in(path) == {one}


def test_many_tasks_share_one_thread_and_commits(box: Outbox, path: Path) -> None:
    before = threading.active_count()

    async def story() -> list[str]:
        ids = await asyncio.gather(*(box.aappend("note", {"n": n}) for n in range(2000)))
        assert threading.active_count() == before + 1
        return ids

    ids = asyncio.run(story())
    assert len(set(ids)) == 2000
    assert ids_in(path) == set(ids)


def test_a_bad_record_is_its_own_callers_error(box: Outbox, path: Path) -> None:
    async def story() -> list[str | BaseException]:
        records = [{"n": float("nan")} if n == 3 else {"n": n} for n in range(6)]
        calls = (box.aappend("note", record) for record in records)
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(story())
    assert [type(one) for one in outcomes] == [str] * 3 + [NotStorable] + [str] * 2
    assert ids_in(path) == {one for one in outcomes if isinstance(one, str)}


def test_the_id_of_the_caller_is_kept(box: Outbox, path: Path) -> None:
    one = "6f1c1c4e-1f0a-4b5e-9c63-0d1c5d1c5d1c"
    assert asyncio.run(box.aappend("note", {}, id=one)) == one
    assert ids_in(path) == {one}


def test_an_append_after_close_is_refused(path: Path) -> None:
    async def story() -> None:
        with Outbox(path) as box:
            await box.aappend("note", {})
        with pytest.raises(OutboxClosed):
            await box.aappend("note", {})

    asyncio.run(story())
    assert backlog([path]).pending == 1


def test_a_cancelled_task_leaves_the_others_alone(box: Outbox, path: Path) -> None:
    async def story() -> str:
        with closing(file.open_existing(path)) as other:
            other.execute("begin immediate")
            first = asyncio.create_task(box.aappend("note", {"n": 1}))
            second = asyncio.create_task(box.aappend("note", {"n": 2}))
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.sleep(0)
            other.execute("rollback")
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert asyncio.run(story()) in ids_in(path)


def test_a_forked_child_has_its_own_thread(box: Outbox, path: Path) -> None:
    asyncio.run(box.aappend("note", {"of": "parent"}))
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(asyncio.wait_for(box.aappend("note", {"of": "child"}), 20))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    asyncio.run(box.aappend("note", {"of": "parent"}))
    assert backlog([path]).pending == 3
