"""DuckDB 1.5 and 2.0 beside each other: what one writes and publishes, the other reads, both ways.

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


def there(program: str, *arguments: object) -> str:
    """What a program says that runs on the other version."""
    finished = subprocess.run(
        [str(OTHER), "-c", PRELUDE + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_the_other_is_another() -> None:
    versions = {duckdb.__version__, there("print(duckdb.__version__)")}
    print(f"\n{versions}")
    assert {version.split(".")[0] for version in versions} == {"1", "2"}


def test_published_here_read_there(tmp_path: Path) -> None:
    master, store = Master(tmp_path / "master.duckdb"), tmp_path / "store"
    with master.write() as connection:
        connection.execute(FILL.format(rows=200_000))
        expected = str(connection.execute(SUMS).fetchall())
    file = publish(master.path, store).file
    plain = f"print(duckdb.connect(sys.argv[1], read_only=True).execute({SUMS!r}).fetchall())"
    assert there(plain, file) == expected
    ours = f"with ReplicaReader(sys.argv[1]) as reader: print(reader.query({SUMS!r}))"
    assert there(ours, store) == expected


def test_written_by_both_in_turn(tmp_path: Path) -> None:
    """A master that is made there, published here, changed there and published there."""
    master, store = Master(tmp_path / "master.duckdb"), tmp_path / "store"
    write = (
        "with Master(sys.argv[1]).write() as connection:\n"
        "    connection.execute(sys.argv[2])\n"
        f"    print(connection.execute({SUMS!r}).fetchall())\n"
    )
    for rows, publishing in ((1_000, "here"), (2_000, "there"), (3_000, "here")):
        expected = there(write, master.path, FILL.format(rows=rows))
        if publishing == "here":
            publish(master.path, store)
        else:
            there("publish(sys.argv[1], sys.argv[2])", master.path, store)
        assert status(store, master.path).in_sync
        with ReplicaReader(store) as reader:
            assert str(reader.query(SUMS)) == expected
        with master.write() as connection:
            connection.execute("insert into t values (-1, 'here', null)")
