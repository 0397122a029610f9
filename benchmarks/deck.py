"""Time the flight deck of many tables and 90 days: to write it, its size, and to draw it.

    python benchmarks/deck.py [--tables 500]

There is no peer: the figures are printed as shares of the limits, 3 s, 3 MB and 1 s.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from replica_platform.app.configured import Configured
from replica_platform.app.deck import deck_page, write_deck
from replica_platform.app.embedded import running
from replica_platform.app.settings import Settings
from replica_platform.history import Sample, record

WRITE_S, SIZE_BYTES, DRAW_S = 3.0, 3_000_000, 1.0
HOURS = """
insert into replica_platform.history
select series, 'raw.table_' || t, 'hour', date_trunc('hour', now(), 'UTC') - h * interval '1h',
    floor(random() * 20000)
from unnest(array['lag_s', 'rows_moved']) series, generate_series(1, %s) t,
    generate_series(0, 167) h
"""
DAYS = """
insert into replica_platform.history
select series, 'raw.table_' || t, 'day', date_trunc('day', now(), 'UTC') - d * interval '1d',
    case series when 'integrity' then 1 - (random() < 0.002)::int * 0.02 else random() * 900000 end
from unnest(array['proven_age_s', 'integrity', 'lag_s']) series, generate_series(1, %s) t,
    generate_series(0, 89) d
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", type=int, default=500)
    tables = parser.parse_args().tables
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg") as server,
    ):
        record(server.dsn(), [Sample("lag_s", "raw.one", 1)])
        with psycopg.connect(server.dsn()) as target:
            target.execute(HOURS, [tables])
            target.execute(DAYS, [tables])
        dsn = server.dsn()
        settings = Settings(data_dir=Path(folder) / "data", source_dsn=dsn, target_dsn=dsn,
                            dagster_dsn=dsn, _env_file=None)  # fmt: skip
        settings.data_dir.mkdir()
        for kept in ("the first page, Vega-Lite put together", "each further page"):
            began = time.monotonic()
            page = deck_page(settings, Configured(()))
            took_s = time.monotonic() - began
            print(f"{kept}: {took_s:.2f} s to write, {took_s / WRITE_S:.2f} of the limit")
        print(f"{len(page) / 1e6:.2f} MB, {len(page) / SIZE_BYTES:.2f} of the limit")
        write_deck(Path(folder) / "deck.html", page)
        chromium = shutil.which("chromium")
        if chromium is None:
            print("There is no Chromium, so that nothing is drawn.")
            return
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                   "--virtual-time-budget=20000", f"--user-data-dir={folder}/profile",
                   (Path(folder) / "deck.html").as_uri()]  # fmt: skip
        dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (drawn_ms,) = re.findall(r'data-drawn-ms="(\d+)"', dom)
        print(f"{int(drawn_ms) / 1000:.2f} s to draw, {int(drawn_ms) / 1000 / DRAW_S:.2f} of it")


if __name__ == "__main__":
    main()
