"""DuckDB 1.5 and 2.0 together: each reads what the other writes and publishes.

`make test-duckdb2` runs this with the other version's Python named in REPLICA_OTHER_PYTHON.
"""

import os
import subprocess
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Master, ReplicaReader, publish, status

OTHER = os.environ.get("REPLICA_OTHER_PYTHON")
SUMS = "select count(*), sum(i)::bigint, bit_xor(hash(s))::varchar, max(d)::varchar from t"
FILL = (
    "create or replace table t as select range i, hash(range)::varchar s, "
    "date '2026-01-01' + range::integer % 365 d from range({rows})"
)
PRELUDE = (
    "import sys, duckdb\nfrom replica_platform.replica import Master, ReplicaReader, publish\n"
)

pytestmark = pytest.mark.skipif(
    not OTHER, reason="REPLICA_OTHER_PYTHON names no Python with another DuckDB"
)


def run_other(program: str, *arguments: object) -> str:
    """Return the output of a program that runs on the other version."""
    finished = subprocess.run(
        [str(OTHER), "-c", PRELUDE + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_the_two_versions_differ() -> None:
    versions = {duckdb.__version__, run_other("print(duckdb.__version__)")}
    print(f"\n{versions}")
    assert {version.split(".")[0] for version in versions} == {"1", "2"}


def test_a_generation_of_one_version_is_read_by_the_other(tmp_path: Path) -> None:
    master, store = Master(tmp_path / "master.duckdb"), tmp_path / "store"
    with master.write() as connection:
        connection.execute(FILL.format(rows=200_000))
        expected = str(connection.execute(SUMS).fetchall())
    file = publish(master.path, store).file
    plain = f"print(duckdb.connect(sys.argv[1], read_only=True).execute({SUMS!r}).fetchall())"
    assert run_other(plain, file) == expected
    ours = f"with ReplicaReader(sys.argv[1]) as reader: print(reader.query({SUMS!r}))"
    assert run_other(ours, store) == expected


def test_both_versions_write_and_publish_in_turn(tmp_path: Path) -> None:
    """The other version makes and changes a master that both versions publish."""
    master, store = Master(tmp_path / "master.duckdb"), tmp_path / "store"
    write = (
        "with Master(sys.argv[1]).write() as connection:\n"
        "    connection.execute(sys.argv[2])\n"
        f"    print(connection.execute({SUMS!r}).fetchall())\n"
    )
    for rows, publishing in ((1_000, "here"), (2_000, "there"), (3_000, "here")):
        expected = run_other(write, master.path, FILL.format(rows=rows))
        if publishing == "here":
            publish(master.path, store)
        else:
            run_other("publish(sys.argv[1], sys.argv[2])", master.path, store)
        assert status(store, master.path).in_sync
        with ReplicaReader(store) as reader:
            assert str(reader.query(SUMS)) == expected
        with master.write() as connection:
            connection.execute("insert into t values (-1, 'here', null)")
