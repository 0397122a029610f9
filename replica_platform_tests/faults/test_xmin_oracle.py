"""Writers and definitions change the source while syncs run; at the end both sides are equal.

The naive predicates run in the same harness and must lose rows there.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from replica_platform.xmin import Proving, TableSpec, sync_group, validate
from replica_platform_tests.faults.xmin_writers import NAIVE, SETUP, TABLES, Naive, Writers
from replica_platform_tests.xmin.helpers import execute, rows


def differences(source: str, target: str, table: str) -> dict[str, int]:
    """Count the rows missing, stale and extra in the target, row by row."""
    columns = ", ".join(
        f'"{name}"'
        for (name,) in rows(
            source,
            f"select attname from pg_attribute where attrelid = '{table}'::regclass "
            "and attnum > 0 and not attisdropped order by attnum",
        )
    )
    query = f"select {columns} from {table}"
    there = {row[0]: row for row in rows(source, query)}
    here = {row[0]: row for row in rows(target, query)}
    return {
        "missing": len(there.keys() - here.keys()),
        "stale": sum(here[key] != row for key, row in there.items() if key in here),
        "extra": len(here.keys() - there.keys()),
    }


@pytest.mark.timeout(300)
def test_nothing_is_lost_and_the_naive_copiers_lose(
    database: Callable[[str], str], torture: bool
) -> None:
    source, target = database("oracle_source"), database("oracle_target")
    execute(source, *SETUP)
    seconds = 40.0 if torture else 12.0
    specs = [TableSpec(table) for table in TABLES]
    modes: Counter[str] = Counter()
    moved = syncs = repairs = proven = differing = 0
    failures: Counter[str] = Counter()
    naive = [Naive(source, name, cycle) for name, cycle in NAIVE.items()]
    stop = threading.Event()
    with ExitStack() as stack:
        writers = stack.enter_context(Writers(source))
        for one in naive:
            stack.enter_context(one.running(stop))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # Each sync proves a part, at a moment when the target has to equal the snapshot.
            group = sync_group(source, target, specs, prove=Proving(0, most_bytes=64 * 8192))
            syncs += 1
            failures.update(sentence.split(":")[0][:60] for sentence in group.failures.values())
            for report in group.reports.values():
                modes[report.mode] += 1
                moved += report.rows_read
                proven += report.proof.rows if report.proof else 0
                differing += report.proof.differing if report.proof else 0
                repairs += "somebody has written" in report.why
    last = sync_group(source, target, specs)
    for one in naive:
        one.once()
        one.once()

    found = {table: differences(source, target, table) for table in TABLES}
    lost = {one.name: naive_losses(source, one) for one in naive}
    print(
        f"\n{writers.transactions} transactions, {writers.definitions} definitions, {syncs} syncs "
        f"of {len(TABLES)} tables in {seconds:g} s, {moved} rows moved, modes {dict(modes)}, "
        f"failed tables {dict(failures)}, repairs {repairs}, "
        f"{proven} rows proven, {differing} of them differed"
    )
    for table, counts in found.items():
        print(f"{table}: {counts}")
    for one in naive:
        print(f"naive {one.name}: {lost[one.name]} after {one.cycles} cycles")
    assert last.ok
    assert writers.transactions > 100
    assert syncs > 5
    assert all(not any(counts.values()) for counts in found.values())
    assert repairs == 0
    assert proven > 1000
    assert differing == 0
    assert all(validate(source, target, table).in_sync for table in TABLES)
    assert all(sum(counts.values()) > 0 for counts in lost.values())


def naive_losses(source: str, naive: Naive) -> dict[str, int]:
    """Count the live rows that a naive copier lacks, or has in an older version."""
    with psycopg.connect(source) as connection:
        live: dict[int, tuple[Any, ...]] = {
            key: (v, n) for key, v, n in connection.execute("select id, v, n from ledger")
        }
    return {
        "missing": len(live.keys() - naive.rows.keys()),
        "stale": sum(naive.rows[key] != row for key, row in live.items() if key in naive.rows),
    }
