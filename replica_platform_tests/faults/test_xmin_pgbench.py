"""A workload that nobody here wrote: pgbench beside a loop of atomic syncs.

Its built-in scripts tpcb-like and simple-update, and one with savepoints, rollbacks and deletes.
tpcb-like adds the same amount to a branch and a teller in one transaction: their sums agree in
every consistent state, so they must in the target after every sync.

The control copies the tables one after the other, each at a snapshot of its own, as many tools do:
in its copies the sums must differ.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import psycopg
import pytest

from replica_platform.app.embedded import Server, binaries, running
from replica_platform.xmin import Proving, TableSpec, sync_group, validate
from replica_platform_tests.xmin.helpers import execute, rows
from replica_platform_tests.xmin.servers import BINARIES, fifteen_running

TABLES = ("pgbench_branches", "pgbench_tellers", "pgbench_accounts", "pgbench_history")
CLIENTS = 3
SCALE = 1
SCRIPT = """
\\set aid random(1, 100000 * :scale)
\\set gone random(1, 100000 * :scale)
\\set back random(1, 100000 * :scale)
\\set delta random(-5000, 5000)
begin;
update pgbench_accounts set abalance = abalance + :delta where aid = :aid;
savepoint undone;
delete from pgbench_accounts where aid between :aid - 5 and :aid + 5;
insert into pgbench_history (tid, bid, aid, delta, mtime) values (1, 1, :aid, :delta, now());
rollback to undone;
savepoint done;
delete from pgbench_accounts where aid = :gone;
insert into pgbench_accounts values (:back, 1, 0, 'back') on conflict (aid) do nothing;
release done;
end;
"""
# With foreign keys an account with a history cannot be deleted; its history can.
SCRIPT_JOINED = """
\\set aid random(1, 100000 * :scale)
\\set delta random(-5000, 5000)
begin;
insert into pgbench_accounts values (100000 * :scale + :client_id + 1, 1, 0, 'new')
on conflict (aid) do update set abalance = :delta;
savepoint undone;
delete from pgbench_history where aid = :aid;
rollback to undone;
delete from pgbench_history where aid between :aid - 500 and :aid;
delete from pgbench_accounts where aid = 100000 * :scale + :client_id + 1;
end;
"""
PARTED = ["--partitions=8", "--partition-method={}"]
CASES = [
    (15, 18, [], "scan"),
    (18, 15, [PARTED[0], PARTED[1].format("range")], "scan"),
    (16, 18, [PARTED[0], PARTED[1].format("hash")], "scan"),
    (18, 16, ["--unlogged-tables"], "scan"),
    (18, 18, ["--foreign-keys"], "scan"),
    (15, 16, [], "scan"),
    (18, 18, [], "blocks"),
    (18, 18, [PARTED[0], PARTED[1].format("hash")], "blocks"),
]
SUMS = """select (select sum(bbalance) from pgbench_branches),
                 (select sum(tbalance) from pgbench_tellers)"""


def pgbench() -> str:
    """Return Debian's pgbench, or else that of the wheel."""
    found = [BINARIES / "pgbench", binaries(18) / "pgbench"]
    for path in found:
        if path.exists():
            return str(path)
    on_path = shutil.which("pgbench")
    if on_path is None:
        pytest.skip("pgbench is not installed (apt-get install postgresql-15)")
    return on_path


def call(dsn: str, *options: str) -> str:
    """Run pgbench to its end; return what it prints."""
    done = subprocess.run(
        [pgbench(), *options, dsn], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class Load(NamedTuple):
    """A running workload."""

    process: "subprocess.Popen[str]"
    output: IO[str]

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def transactions(self) -> str:
        """Wait for its end; return how many transactions it did."""
        returned = self.process.wait()
        self.output.seek(0)
        printed = self.output.read()
        assert returned == 0, printed
        lines = printed.splitlines()
        return (
            next(x for x in lines if "transactions actually processed" in x).split(":")[1].strip()
        )


@contextmanager
def load(dsn: str, seconds: float, text: str = SCRIPT) -> Iterator["Load"]:
    """Run the workload for so long, beside the block."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".sql") as script,
        tempfile.TemporaryFile("w+") as output,
    ):
        script.write(text)
        script.flush()
        command = [
            pgbench(), "-n", "-c", str(CLIENTS), "-j", "1", "-T", str(round(seconds)),
            "--max-tries=100", "-b", "tpcb-like@1", "-b", "simple-update@1",
            "-f", f"{script.name}@1", "-s", str(SCALE), dsn,
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, cwd="/"
        )
        try:
            yield Load(process, output)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def servers(server: Server, *versions: int) -> Iterator[list[str]]:
    """Return a database `source` or `target` of each version, in this order."""
    with ExitStack() as stack:
        started: dict[int, Server] = {}
        for version in set(versions):
            if version == 15:
                started[15] = stack.enter_context(fifteen_running())
                continue
            if version == 18:
                started[18] = server
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rp-"))
                started[version] = stack.enter_context(running(Path(folder) / "pg", version))
            for name in ("source", "target"):
                execute(started[version].dsn(), f"drop database if exists {name} with (force)")
                execute(started[version].dsn(), f"create database {name}")
        yield [
            started[version].dsn(name)
            for version, name in zip(versions, ("source", "target"), strict=True)
        ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("old", "new", "options", "mode"), CASES)
def test_pgbench(
    old: int, new: int, options: list[str], mode: str, server: Server, torture: bool
) -> None:
    seconds = 100.0 if torture else 5.0
    # The tables are small: by itself each would be scanned.
    specs = [TableSpec(table, mode="blocks" if mode == "blocks" else "auto") for table in TABLES]
    # A proof of a part at each sync: nothing may differ.
    proving = Proving(within_s=0, most_bytes=2 << 20)
    syncs = moved = proven = 0
    modes: set[str] = set()
    with servers(server, old, new) as (source, target):
        call(source, "-i", "-q", "-s", str(SCALE), *options)
        joined = "--foreign-keys" in options
        if joined:  # the same tables and foreign keys in the target, without rows
            call(target, "-i", "-q", "-I", "tpf")
        with load(source, seconds, SCRIPT_JOINED if joined else SCRIPT) as workload:
            while workload.runs:
                group = sync_group(source, target, specs, atomic=True, prove=proving)
                assert group.ok, group.failures
                ((branches, tellers),) = rows(target, SUMS)
                assert branches == tellers
                syncs += 1
                for report in group.reports.values():
                    modes.add(report.mode)
                    moved += report.rows_inserted + report.rows_updated + report.rows_deleted
                    assert "somebody has written" not in report.why
                    if report.proof:
                        proven += report.proof.rows
                        assert report.proof.differing == 0, report
            transactions = workload.transactions()
        group = sync_group(source, target, specs, atomic=True)
        assert group.ok, group.failures
        for table in TABLES:
            assert content(source, table) == content(target, table), table
            assert validate(source, target, table, content=True).in_sync
    print(
        f"\n{old} to {new} {' '.join(options)}: {transactions} transactions, "
        f"{syncs} syncs, {moved:,} rows moved, {proven:,} proven, modes {sorted(modes)}"
    )
    assert syncs >= 3  # on a busy machine; else tens
    assert mode in modes
    assert proven > 0


def content(dsn: str, table: str) -> list[tuple[object, ...]]:
    """Return the number of rows and a sum of their hashes, without the sync's columns."""
    columns = "aid, bid, abalance, filler"
    listed = {
        "pgbench_branches": "bid, bbalance, filler",
        "pgbench_tellers": "tid, bid, tbalance, filler",
        "pgbench_history": "tid, bid, aid, delta, mtime, filler",
    }.get(table, columns)
    return rows(
        dsn,
        f"select count(*), sum(hashtextextended(row({listed})::text, 0)::numeric) from {table}",
    )


@pytest.mark.timeout(120)
def test_the_control_sees_sums_that_differ(server: Server) -> None:
    with servers(server, 18, 18) as (source, _):
        call(source, "-i", "-q", "-s", str(SCALE))
        apart = looks = 0
        with load(source, 3) as workload, psycopg.connect(source, autocommit=True) as connection:
            while workload.runs:
                found = [
                    connection.execute(query).fetchone()
                    for query in (
                        "select sum(bbalance) from pgbench_branches",
                        "select sum(tbalance) from pgbench_tellers",
                    )
                ]
                looks += 1
                apart += found[0] != found[1]
                time.sleep(0.01)
    print(f"\ntable by table: {apart} of {looks} copies have sums that differ")
    assert apart > 0
