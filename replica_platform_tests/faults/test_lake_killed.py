"""Writers of a lake are killed beside its upkeep: what was acknowledged is there, once."""

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from replica_platform.lake import Lake, LakeWriter, maintain, read_lake, status
from replica_platform_tests.faults.lake_writer import ROWS
from replica_platform_tests.lake.bucket import lake_bucket

WRITERS = 3


@dataclass
class Acknowledged:
    """What writers acknowledged, and how many of them were killed."""

    batches: list[str] = field(default_factory=list)
    kills: int = 0


def start(lake: Lake, name: str, how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "replica_platform_tests.faults.lake_writer"]
    return subprocess.Popen(
        [*command, lake.catalog, lake.schema, lake.data, name, how],
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def writing(lake: Lake, how: str) -> Iterator[Callable[[int], Acknowledged]]:
    """Yield a function that kills and replaces one writer after another, so many times."""
    seen = Acknowledged()
    names = iter(range(10_000))
    writers: list[tuple[subprocess.Popen[str], threading.Thread]] = []

    def add() -> None:
        process = start(lake, f"w{next(names)}", how)
        assert process.stdout is not None
        lines = process.stdout
        reader = threading.Thread(target=lambda: seen.batches.extend(map(str.strip, lines)))
        reader.start()
        writers.append((process, reader))

    def kill() -> None:
        process, reader = writers.pop(0)
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()  # type: ignore[union-attr]
        seen.kills += 1

    def run(kills: int) -> Acknowledged:
        for _ in range(kills):
            enough = len(seen.batches) + random.randint(4, 12)
            deadline = time.monotonic() + 60
            while len(seen.batches) < enough and time.monotonic() < deadline:
                time.sleep(0.01)
            kill()
            add()
        while writers:
            kill()
        return seen

    for _ in range(WRITERS):
        add()
    try:
        yield run
    finally:
        while writers:
            kill()


@contextmanager
def kept_up(lake: Lake, errors: list[str]) -> Iterator[list[int]]:
    """Merge and expire again and again; yield how many files each round merged."""
    merged: list[int] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.2):
            try:
                # Orphans stay: a file may be one of a write that is not committed.
                merged.append(maintain(lake, keep_s=1).merged)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield merged
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Where the data is: a folder, or a bucket where a test asks for one."""
    if getattr(request, "param", "folder") == "folder":
        yield str(tmp_path / "data")
        return
    with lake_bucket() as (_, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield "s3://lakes/data"


@pytest.fixture
def lake(target: str, place: str) -> Lake:
    made = Lake(target, "lake", place)
    with LakeWriter(made) as writer:
        writer.write(
            lambda connection: connection.execute(
                "create table batch (writer text, number int, row_number int);"
                "create table counter as select 0 as n"
            )
        )
    return made


def wrong(lake: Lake, acknowledged: list[str]) -> Counter[str]:
    """Count batches that are lost, torn or doubled."""
    with read_lake(lake) as connection:
        rows = connection.execute(
            "select writer || ' ' || number, count(*), count(distinct row_number) "
            "from batch group by all"
        ).fetchall()
        hidden = connection.execute(
            "select count(*) from (select distinct writer, number from batch) b where not exists "
            "(select 1 from batch f where f.writer = b.writer and f.number = b.number)"
        ).fetchone()
    there = {name for name, _, _ in rows}
    return Counter(
        lost=len(set(acknowledged) - there),
        torn=sum(distinct != ROWS for _, _, distinct in rows),
        doubled=sum(count > distinct for _, count, distinct in rows),
        hidden=hidden[0] if hidden else 0,
    )


@pytest.mark.parametrize("place", ["folder", "bucket"], indirect=True)
def test_what_was_acknowledged_is_there_once(lake: Lake, torture: bool) -> None:
    errors: list[str] = []
    began = time.monotonic()
    with writing(lake, "append") as run, kept_up(lake, errors) as merged:
        seen = run(60 if torture else 6)
    took_s = time.monotonic() - began
    found = wrong(lake, seen.batches)
    print(
        f"\n{seen.kills} writers killed in {took_s:.0f} s, {len(seen.batches)} batches of {ROWS} "
        f"rows acknowledged, {sum(merged)} files merged in {len(merged)} rounds: {dict(found)}"
    )
    assert errors == []
    assert len(seen.batches) > 10
    assert sum(merged) > 0
    assert not +found
    before = status(lake, orphan_age_s=0)
    assert before.ok, before.sentence
    # Nobody writes any more: what killed writers left goes, and nothing else.
    done = maintain(lake, keep_s=0, orphan_age_s=0)
    after = status(lake, orphan_age_s=0)
    print(f"{len(before.orphans)} orphans, {done.orphans} removed; {after.sentence}")
    assert after.ok and after.orphans == ()
    assert not +wrong(lake, seen.batches)


def test_orphans_that_are_removed_too_early_are_noticed(lake: Lake) -> None:
    """The negative control: files of a write under way are removed, and the batch is lost."""
    with LakeWriter(lake) as writer:

        def overtaken(connection) -> None:
            connection.execute(f"insert into batch select 'w', 0, range from range({ROWS})")
            maintain(lake, orphan_age_s=0)

        writer.write(overtaken)
    found = status(lake)
    assert not found.ok and len(found.missing) == 1


def test_no_update_of_a_counter_is_lost(lake: Lake, torture: bool) -> None:
    with writing(lake, "count") as run:
        seen = run(40 if torture else 3)
    with read_lake(lake) as connection:
        (counted,) = connection.execute("select n from counter").fetchone()  # type: ignore[misc]
    print(f"\n{len(seen.batches)} updates acknowledged, {counted} counted; {seen.kills} kills")
    # A killed writer may have committed an update that it could not acknowledge any more.
    assert len(seen.batches) <= counted <= len(seen.batches) + seen.kills
    assert len(seen.batches) > 10


def test_updates_without_the_retry_are_lost(lake: Lake) -> None:
    """The negative control: DuckLake alone, whose conflicts nobody looks at."""
    with writing(lake, "plain") as run:
        seen = run(4)
    with read_lake(lake) as connection:
        (counted,) = connection.execute("select n from counter").fetchone()  # type: ignore[misc]
    print(f"\n{len(seen.batches)} updates said to be done, {counted} counted")
    # An update that was committed and not acknowledged, since its writer was killed, only adds.
    assert counted < len(seen.batches)


def test_a_lost_batch_would_be_noticed(lake: Lake) -> None:
    """The harness itself: a batch that is not there, and one that is there twice."""
    with LakeWriter(lake) as writer:
        for _ in range(2):
            writer.write(
                lambda c: c.execute(f"insert into batch select 'w', 0, range from range({ROWS})")
            )
    assert wrong(lake, ["w 0", "w 1"]) == Counter(lost=1, doubled=1, torn=0, hidden=0)
