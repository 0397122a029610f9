"""Power cuts: FULL keeps every acknowledged record; NORMAL and OFF must lose some.

The same for the target: with `synchronous_commit=off`, a crash loses acknowledged commits, and
the ledger brings them back.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.embedded import Server, running
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox, drain, file
from replica_platform.outbox.delivery import target as target_module
from replica_platform_tests.faults.outbox_power import PowerDisk, after_cut


def appended_on(
    disk: PowerDisk, path: Path, durability: str, chance: random.Random, patch: pytest.MonkeyPatch
) -> dict[str, int]:
    """Append through the real `Outbox` on that disk; return id → how many changes the disk had
    recorded when the id was acknowledged."""

    def connect(path: Path, mode: str, durability: file.Durability) -> object:
        connection = disk.connect(path)
        file._make_durable(connection, path, durability)  # type: ignore[arg-type]
        connection.execute(f"pragma wal_autocheckpoint = {chance.choice([20, 100, 1000])}")
        return connection

    acknowledged = {}
    with patch.context() as patched:
        patched.setattr(file, "_connect", connect)
        patched.setitem(file.SYNCHRONOUS, "off", 0)
        Outbox(path).close()  # created safely, so that only the appends are at risk
        with Outbox(path, durability=durability) as box:  # type: ignore[arg-type]
            for n in range(chance.randint(30, 150)):
                record = {"n": n, "text": "x" * chance.randint(10, 3000)}
                if n % 10:
                    ids = [box.append("note", record)]
                else:
                    ids = box.append_many("note", [record] * 3)
                acknowledged |= dict.fromkeys(ids, len(disk.journal))
            ending = len(disk.journal)
    del disk.journal[ending:]  # the power is cut while it is open
    return acknowledged


def found_in(folder: Path, name: str) -> tuple[list[str], str]:
    """Return the ids in order that are readable after the cut, and the result of the check."""
    try:
        with closing(sqlite3.connect(folder / name)) as connection:
            ids = [id for (id,) in connection.execute("select id from record order by seq")]
            (check,) = connection.execute("pragma integrity_check").fetchone()
    except sqlite3.Error as error:
        return [], str(error)
    return ids, check


def cuts(
    durability: str, runs: int, cuts_a_run: int, folder: Path, patch: pytest.MonkeyPatch
) -> Counter[str]:
    done: Counter[str] = Counter()
    for run in range(runs):
        chance = random.Random(run)
        disk = PowerDisk()
        path = folder / f"{durability}-{run}.db"
        acknowledged = appended_on(disk, path, durability, chance, patch)
        order = list(acknowledged)
        started = min(acknowledged.values())
        for cut in range(cuts_a_run):
            # The first cut follows the last acknowledgement, others come anywhere, even in commits.
            moment = len(disk.journal) if cut == 0 else chance.randint(started, len(disk.journal))
            with tempfile.TemporaryDirectory(dir=folder) as after:
                after_cut(disk.journal, moment, Path(after), torn=cut % 2 == 1, chance=chance)
                found, check = found_in(Path(after), path.name)
            safe = [id for id in order if acknowledged[id] <= moment]
            lost = len(set(safe) - set(found))
            done["cuts"] += 1
            done["acknowledged"] += len(safe)
            done["lost"] += lost
            done["cuts that lost"] += lost > 0
            done["damaged"] += check != "ok"
            done["out of order"] += check == "ok" and found != order[: len(found)]
        disk.unregister()
    return done


@pytest.mark.timeout(900)
@pytest.mark.parametrize("durability", ["full", "normal", "off"])
def test_only_full_durability_survives_power_cuts(
    durability: str, tmp_path: Path, torture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cuts(durability, 60 if torture else 8, 10, tmp_path, monkeypatch)
    print(f"\nsynchronous={durability}: {dict(done)}")
    assert done["acknowledged"] > 1000
    if durability == "full":
        assert (done["lost"], done["damaged"], done["out of order"]) == (0, 0, 0)
    else:
        assert done["cuts that lost"] > done["cuts"] // 4


@pytest.fixture
def forgetful_server(tmp_path: Path) -> Iterator[Server]:
    """A Postgres that may be killed, and that flushes its log late."""
    with tempfile.TemporaryDirectory(prefix="rp-") as folder, running(Path(folder) / "pg") as one:
        with psycopg.connect(one.dsn(), autocommit=True) as admin:
            admin.execute("alter system set wal_writer_delay = '10s'")
            admin.execute("alter system set wal_writer_flush_after = '1GB'")
            admin.execute("alter database postgres set synchronous_commit = off")
        one.stop()
        one.start()
        yield one


def crash(server: Server) -> int:
    """Kill Postgres; return how many records it has after the restart."""
    server.stop("immediate")
    server.start()
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("select count(*) from outbox.record").fetchone()
    return -1 if row is None else int(row[0])


def test_commits_that_the_target_loses_are_resent(
    forgetful_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "worker-1.db"
    set_local = target_module.set_local

    def without_synchronous_commit(connection: psycopg.Connection, deadline_s: float) -> None:
        set_local(connection, deadline_s)
        connection.execute("set local synchronous_commit = off")

    with Outbox(path) as box:
        box.append_many("note", [{"n": n} for n in range(1000)])
        assert drain([path], forgetful_server.dsn()).delivered == 1000
        kept = crash(forgetful_server)
        box.append_many("note", [{"n": n} for n in range(1000, 2000)])
        with monkeypatch.context() as patch:
            patch.setattr(target_module, "set_local", without_synchronous_commit)
            assert drain([path], forgetful_server.dsn()).delivered == 1000
        lost = 2000 - crash(forgetful_server)
    report = drain([path], forgetful_server.dsn())
    print(
        f"\nsynchronous_commit=on: lost {1000 - kept} of 1000; off: lost {lost} of 1000; "
        f"after the next drain: {report.files[0].reopened} were resent"
    )
    assert kept == 1000
    assert lost > 0
    assert (report.files[0].reopened, report.delivered) == (lost, lost)
    assert crash(forgetful_server) == 2000
