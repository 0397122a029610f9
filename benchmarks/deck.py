"""Time the flight deck of many tables and 90 days: to write it, its size, and to draw it.

    python benchmarks/deck.py [--tables 500]

There is no peer: the figures are printed as shares of the limits, 3 s, 3 MB and 1 s.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import psycopg
from playwright.sync_api import sync_playwright

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
        drawn_s, whole_s = draw(chromium, Path(folder) / "deck.html")
        print(f"{drawn_s:.2f} s to draw, {drawn_s / DRAW_S:.2f} of the limit")
        print(f"{whole_s:.2f} s from opening the page to its last chart")


def draw(chromium: str, page: Path) -> tuple[float, float]:
    """Return how long a browser takes for the charts of a page, and for all of it, in seconds."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 800})
        shown.goto(page.as_uri())
        shown.wait_for_selector("html[data-drawn-ms]", state="attached")
        drawn_ms, whole_ms = shown.evaluate(
            "[Number(document.documentElement.dataset.drawnMs), performance.now()]"
        )
        browser.close()
    return drawn_ms / 1000, whole_ms / 1000


if __name__ == "__main__":
    main()
