"""One more day of the market against its own first load, and a rebuild against TA-Lib itself.

    python benchmarks/market_day.py                      # 5,000 symbols, 1 and 10 years
    python benchmarks/market_day.py --symbols 500 --years 1 2

Bars are generated. For each number of years, in one run: the first load; one more day (a bar of
each symbol) through symbols, ohlcv, indicators, watchlist, checks and the publication, each day in
a new process whose memory is measured; a run with nothing new; and all indicators computed again
against TA-Lib on the same arrays plus a plain load of the same table.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from replica_platform.market.checks import BEGINNING, NEVER, TABLES, audit_rules, broken_rules
from replica_platform.market.indicators import compute_indicators
from replica_platform.market.sessions import sessions
from replica_platform.market.sources import Fetched
from replica_platform.market.tables import (
    load_bars,
    update_indicators,
    write_symbols,
    write_watchlist,
)
from replica_platform.market.tables.master import data_as_of
from replica_platform.market.watch import WatchRules
from replica_platform.replica import Master, audit, prepare

LAST = date(2025, 10, 31)
BLOCK_BYTES = 256 * 1024


class Generated:
    """Bars by formula: the same for a symbol and day whenever they are asked for."""

    name = "generated"

    def __init__(self, symbols: int, first: date, last: date) -> None:
        self.first_day, self.expected_day = first, last
        self.names = [f"S{number:05d}" for number in range(symbols)]
        self.days = sessions(first, last)

    def symbols(self) -> pd.DataFrame:
        return pd.DataFrame({"symbol": self.names, "name": self.names, "exchange": "XNAS"})

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        days = [day for day in self.days if start <= day <= end]
        numbers = np.array([int(symbol[1:]) for symbol in symbols])
        closes = np.array([closes_on(day, len(self.names))[numbers] for day in days]).ravel()
        frame = pd.DataFrame(
            {
                "symbol": np.tile(np.array(symbols, dtype=object), len(days)),
                "day": np.repeat(pd.to_datetime(days).values, len(symbols)),
                "open": np.round(closes * 0.995, 2),
                "high": np.round(closes * 1.01, 2),
                "low": np.round(closes * 0.99, 2),
                "close": closes,
                "volume": (closes * 1e4).astype(np.int64),
            }
        )
        return Fetched(frame)


def closes_on(day: date, symbols: int) -> np.ndarray:
    number = np.arange(symbols)
    noise = np.random.default_rng(day.toordinal()).normal(0, 0.02, symbols)
    trend = 0.3 * np.sin(day.toordinal() / 90 + number)
    return np.round((20 + number % 180) * np.exp(trend + noise), 2)


def one_day(folder: Path, symbols: int, first: date, last: date) -> dict[str, float]:
    """Run the batch up to `last`, and return the seconds of each step and the peak memory."""
    source, master, store = (
        Generated(symbols, first, last),
        Master(folder / "stock.duckdb"),
        folder / "store",
    )
    took: dict[str, float] = {}

    def timed(step: str, work):  # type: ignore[no-untyped-def]
        began = time.monotonic()
        result = work()
        took[step] = time.monotonic() - began
        return result

    written = {
        "symbols": timed("symbols", lambda: write_symbols(master, source)),
        "ohlcv": timed("ohlcv", lambda: load_bars(master, source)),
        "indicators": timed("indicators", lambda: update_indicators(master)),
        "watchlist": timed("watchlist", lambda: write_watchlist(master, WatchRules())),
    }

    def checks() -> None:
        with master.read() as connection:
            for table, one in written.items():
                since = (one.first_day or BEGINNING) if one.changed else NEVER
                assert not broken_rules(connection, table, since), table

    timed("checks", checks)

    def published() -> int:
        with master.read() as connection:
            as_of = data_as_of(connection)
        candidate = prepare(master.path, store, data_as_of=as_of, keep=2, min_age_s=0)
        assert not audit(candidate, audit_rules())
        return candidate.release().blocks_written

    blocks = timed("publication", published)
    total = sum(took.values())
    cpu = sum(os.times()[:4])  # this program and its children, imports included
    return {**took, "total": total, "cpu": cpu, "peak_mb": _peak_mb(), "blocks": blocks}


def _peak_mb() -> float:
    """Return this program's peak; `ru_maxrss` would have that of the one that started it."""
    status = Path("/proc/self/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        / 1024
    )


def in_process(folder: Path, symbols: int, first: date, last: date) -> dict[str, float]:
    finished = subprocess.run(
        [sys.executable, __file__, "--one-day", str(folder), str(symbols), str(first), str(last)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(finished.stdout)  # type: ignore[no-any-return]


def rebuild(folder: Path) -> dict[str, float]:
    """Return the seconds of a rebuild, of TA-Lib on the same arrays, and of a plain load."""
    master = Master(folder / "stock.duckdb")
    with master.read() as connection:
        bars = connection.execute(
            "select symbol, close from ohlcv order by symbol, day"
        ).fetchnumpy()
    _, starts = np.unique(bars["symbol"], return_index=True)
    parts = np.split(np.asarray(bars["close"]), starts[1:])
    began = time.monotonic()
    for part in parts:
        compute_indicators(part)
    by_talib = time.monotonic() - began

    plain = folder / "plain.duckdb"
    with master.read() as connection:
        rows = connection.execute("from indicators").fetchnumpy()
    connection = duckdb.connect()
    connection.execute(f"attach '{plain}' as plain (storage_version 'v1.5.0')")
    began = time.monotonic()
    connection.execute("create table plain.indicators as from rows")
    connection.execute("checkpoint plain")
    load = time.monotonic() - began
    connection.close()
    plain.unlink()
    del rows, bars

    with master.write() as connection:
        connection.execute("drop table indicators")
        connection.execute("update bar_coverage set indicators_from = first_day")
    began = time.monotonic()
    written = update_indicators(master)
    took = time.monotonic() - began
    return {"rebuild": took, "talib": by_talib, "load": load, "held": written.held_s}


def run(symbols: int, years: int, days: int) -> dict[str, float]:
    first = date(LAST.year - years, LAST.month, LAST.day)
    last_days = sessions(first, LAST)[-days - 1 :]
    with tempfile.TemporaryDirectory(prefix="market-day-") as path:
        folder = Path(path)
        loaded = in_process(folder, symbols, first, last_days[0])
        size = (folder / "stock.duckdb").stat().st_size
        print(f"\n{symbols:,} symbols, {years} years: {size / 1e6:,.0f} MB")
        print(f"  first load     {_line(loaded)}")
        found = []
        for day in last_days[1:]:
            before = _blocks(folder / "stock.duckdb")
            found.append(in_process(folder, symbols, first, day))
            after = _blocks(folder / "stock.duckdb")
            same = sum(one == other for one, other in zip(before, after, strict=False))
            print(
                f"  one more day   {_line(found[-1])}, {len(after) - same} of {len(after)} blocks"
            )
        nothing = in_process(folder, symbols, first, last_days[-1])
        print(f"  nothing new    {_line(nothing)}")
        again = rebuild(folder)
        limit = again["talib"] + again["load"]
        print(
            f"  all indicators {again['rebuild']:.2f} s, master held {again['held']:.2f} s; TA-Lib "
            f"{again['talib']:.2f} s + plain load {again['load']:.2f} s: "
            f"{again['rebuild'] / limit:.2f} times (at most 1.5)"
        )
        shutil.rmtree(folder / "store")
    return {
        # The first publications have no retired generation to patch.
        "day": statistics.median(one["total"] for one in found[2:] or found),
        "cpu": statistics.median(one["cpu"] for one in found[2:] or found),
        "peak_mb": max(one["peak_mb"] for one in found),
        "nothing": nothing["total"],
    }


def _blocks(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [hash(block) for block in iter(lambda: file.read(BLOCK_BYTES), b"")]


def _line(took: dict[str, float]) -> str:
    steps = ", ".join(f"{name} {took[name]:.2f}" for name in (*TABLES, "checks", "publication"))
    cpu = f"cpu {took['cpu']:.1f} s"
    return f"{took['total']:.2f} s ({steps}), {cpu}, peak {took['peak_mb']:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--symbols", type=int, default=5_000)
    parser.add_argument("--years", type=int, nargs="+", default=[1, 10])
    parser.add_argument(
        "--days",
        type=int,
        default=5,
        help="days after the first load; the first two copy whole files",
    )
    parser.add_argument("--one-day", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_day:
        folder, symbols, first, last = arguments.one_day
        print(
            json.dumps(
                one_day(
                    Path(folder), int(symbols), date.fromisoformat(first), date.fromisoformat(last)
                )
            )
        )
        return
    results = {years: run(arguments.symbols, years, arguments.days) for years in arguments.years}
    least, most = min(results), max(results)
    ratio = results[most]["day"] / results[least]["day"]
    by_cpu = results[most]["cpu"] / results[least]["cpu"]
    print(
        f"\none more day at {most} years: {results[most]['day']:.2f} s (wanted under 5), "
        f"{results[most]['peak_mb']:,.0f} MB (under 1,000), {ratio:.2f} times that of {least} "
        f"(at most 1.3; {by_cpu:.2f} by cpu); "
        f"nothing new {results[most]['nothing']:.2f} s (under 1)"
    )


if __name__ == "__main__":
    main()
