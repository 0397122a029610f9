"""The pages in a real browser: the graph, a run with a config, red and healed, the flight deck.

One `replica dev` serves all tests, in their order: a project with the sample and with what the
tutorial configures. The pictures of the documentation are made here; `make pictures` keeps them.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from replica_platform.app.launch import PROJECT
from replica_platform.app.project import init_project
from replica_platform.app.settings import Settings
from replica_platform_tests.acceptance.conftest import WITHIN_MS, free_port, watched
from replica_platform_tests.acceptance.pages import Pages, environment, of_this_platform
from replica_platform_tests.acceptance.test_tutorial import BLOCK, OF_TUTORIAL, commands_of
from replica_platform_tests.chromium import chromium, needs_chromium

pytestmark = [needs_chromium, pytest.mark.timeout(900)]

GROUPS = ("backups", "market", "outbox", "readers", "replica", "source", "warehouse")
# What the tutorial's commands do before its first `replica run`, by a word of theirs.
PREPARING = ("shop.sql", "adopt", "write.py", "work.py")
KEPT = PROJECT / "docs" / "assets"
LARGEST_BYTES, LARGEST_TOTAL_BYTES = 150_000, 1_000_000
# A week that a chart shows; the platform of a test is minutes old.
WEEK = """
insert into replica_platform.history
select series, name, 'hour', date_trunc('hour', now(), 'UTC') - h * interval '1h',
    case series when 'lag_s' then 150 + 60 * sin(h) + length(name) * 4 * (h % 5)
        when 'rows_moved' then greatest(0, 900 * sin((h + length(name)) / 4.0)) else h % 7 end
from unnest(array['lag_s', 'rows_moved', 'lag_s', 'rows_moved', 'pending'],
            array['shop.purchase', 'shop.purchase', 'raw_data.prices', 'raw_data.prices',
                  'visits/local']) one (series, name),
    generate_series(1, 167) h
on conflict do nothing
"""
DAYS = """
insert into replica_platform.history
select series, name, 'day', date_trunc('day', now(), 'UTC') - d * interval '1d',
    case series when 'lag_s' then case d when 9 then 200000 else 300 end
        when 'proven_age_s' then 86400 * (d % 6) else 40000 end
from unnest(array['lag_s', 'proven_age_s', 'lag_s', 'proven_age_s', 'backup_age_s'],
            array['shop.purchase', 'shop.purchase', 'raw_data.prices', 'raw_data.prices',
                  'backups/gym_system']) one (series, name),
    generate_series(1, 60) d
on conflict do nothing
"""
# The folder of a test says nothing to a reader.
HIDE_FOLDER = """
() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const shown = texts.currentNode.data.replace(/\\/tmp\\/rp-\\w+/g, "/srv");
    if (shown !== texts.currentNode.data) texts.currentNode.data = shown;
  }
}
"""
Picture = Callable[..., None]


def eventually(page: Page, url: str, seen: Callable[[], None]) -> None:
    """Load a page again until something is seen on it."""
    until = time.monotonic() + WITHIN_MS / 1000
    while True:
        page.goto(url)
        try:
            return seen()
        except AssertionError:
            if time.monotonic() > until:
                raise


class Site:
    """A served platform: its pages, its project, and what Dagster answers to a program."""

    def __init__(self, pages: Pages, port: int, project: Path, settings: Settings) -> None:
        self.dagster = f"http://127.0.0.1:{port}"
        self.deck = f"http://127.0.0.1:{port + 1}/"
        self.project = project
        self.settings = settings
        self._pages = pages

    def run_jobs(self, *names: str, **tags: str) -> None:
        """Run jobs by the daemon, and wait until they have succeeded."""
        for run in [self._pages.launch(job=name, **tags) for name in names]:
            self._pages.wait(run, WITHIN_MS / 1000)


def prepared(project: Path, given: dict[str, str]) -> None:
    """Make the project of the tutorial, and bring what it configures into being."""
    init_project(project, sample=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), given["PATH"]])
    kept = {**given, "PATH": path, "REPLICA_SAMPLE": "off"}

    def call(line: str) -> None:
        done = subprocess.run(["bash", "-c", line], cwd=project, env=kept, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    done = []
    for _, title, block in BLOCK.findall((PROJECT / "docs" / "tutorial.md").read_text()):
        if title:
            (project / title).parent.mkdir(parents=True, exist_ok=True)
            (project / title).write_text(block)
            continue
        for command in commands_of(block):
            if any(word in command.line for word in PREPARING):
                call(command.line)
                done.append(command.line)
    assert len(done) == 5
    # Twelve times as often as by default; a test should not wait for a minute.
    with (project / "my_platform" / "defs" / "sales" / "defs.yaml").open("a") as entry:
        entry.write("  repair_interval_s: 5\n")
    call("replica run")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The platform of all tests."""
    chromium()
    # Not below pytest's folder, which is private: started by root, Postgres is another user.
    with tempfile.TemporaryDirectory(prefix="rp-") as folder, ExitStack() as stack:
        project = Path(folder) / "my_platform"
        stack.callback(lambda: [one.kill() for one in of_this_platform(project / "data")])
        given = environment(project / "data")
        prepared(project, given)
        settings = Settings(data_dir=project / "data", _env_file=None)
        port = free_port()
        pages = stack.enter_context(Pages(port, given, project))
        pages.repository()
        yield Site(pages, port, project, settings)


@pytest.fixture(scope="module")
def filled(site: Site) -> Site:
    """The same, when the market's tables are published, with a week of history."""
    site.run_jobs("nasdaq_daily_pipeline", **{"dagster/partition": "2013-03-01"})
    site.run_jobs("nightly_backups", "fds_sync")
    with psycopg.connect(site.settings.target) as target:
        target.execute(WEEK)
        target.execute(DAYS)
    return site


@pytest.fixture
def picture(page: Page, tmp_path: Path) -> Picture:
    """A function that makes a picture of a page, and keeps it where it is asked to."""
    folder = KEPT if os.environ.get("REPLICA_PICTURES") == "1" else tmp_path

    def make(name: str, **options: Any) -> None:
        page.evaluate(HIDE_FOLDER)
        shown = Image.open(BytesIO(page.screenshot(animations="disabled", **options)))
        file = folder / f"{name}.png"
        # The pages have few colours, the rarest of which is the red of a failure.
        few = shown.convert("RGB").quantize(
            255, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        few.save(file, optimize=True)
        assert file.stat().st_size <= LARGEST_BYTES

    return make


def test_an_error_of_a_page_is_noticed(context: BrowserContext) -> None:
    page = context.new_page()
    errors = watched(page)
    page.set_content("<script>console.warn('a'); console.error('b'); throw Error('c')</script>")
    page.wait_for_function("true")
    assert errors == ["b", "c"]


def test_the_graph_shows_every_group(site: Site, page: Page) -> None:
    page.goto(f"{site.dagster}/asset-groups")
    for group in GROUPS:
        expect(page.get_by_title(group, exact=True).first).to_be_visible(timeout=WITHIN_MS)
    graph = page.locator("svg foreignObject")
    for group in GROUPS:
        expect(graph.filter(has_text=re.compile(f"^{group}$")).first).to_be_visible()


def test_a_config_on_the_page_materialises_and_its_check_turns_green(
    site: Site, page: Page, picture: Picture
) -> None:
    page.goto(f"{site.dagster}/assets/symbols?view=checks")
    expect(page.get_by_text("Not evaluated").first).to_be_visible(timeout=WITHIN_MS)
    page.get_by_role("button", name="Materialize").first.click(modifiers=["Shift"])
    editor = page.locator(".CodeMirror")
    expect(page.get_by_text("No errors")).to_be_visible(timeout=WITHIN_MS)
    editor.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("ops:\n  symbols:\n    config:\n      accept_delistings: yes-please")
    expect(page.get_by_text("No errors")).to_be_hidden(timeout=WITHIN_MS)
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("ops:\n  symbols:\n    config:\n      accept_delistings: true")
    expect(page.get_by_text("No errors")).to_be_visible(timeout=WITHIN_MS)
    picture("config")
    page.get_by_role("button", name="Materialize").last.click()
    page.wait_for_url("**/runs/*")
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=WITHIN_MS)
    page.goto(f"{site.dagster}/assets/symbols?view=checks")
    expect(page.get_by_text("Succeeded").first).to_be_visible(timeout=WITHIN_MS)
    page.goto(f"{site.dagster}/assets/symbols")
    expect(page.get_by_text("5 rows new, 0 corrected")).to_be_visible(timeout=WITHIN_MS)


def test_the_graph_shows_what_was_materialised(filled: Site, page: Page, picture: Picture) -> None:
    page.set_viewport_size({"width": 1600, "height": 900})
    expanded = ",".join(f"global@global:{group}" for group in ("market", "replica"))
    page.goto(f"{filled.dagster}/asset-groups?expanded={expanded}")
    graph = page.locator("svg foreignObject")
    for asset in ("symbols", "watchlist", "market_replica", "sales"):
        green = graph.filter(has_text=asset).locator("[style*=background-green]")
        expect(green.first).to_be_visible(timeout=WITHIN_MS)
    picture("graph")


def test_a_page_shows_the_picture_of_a_symbol(filled: Site, page: Page, picture: Picture) -> None:
    page.goto(f"{filled.dagster}/assets/watchlist")
    page.get_by_text("[Show Markdown]").click()
    expect(page.get_by_role("img", name="AAPL").first).to_be_visible(timeout=WITHIN_MS)
    picture("asset")


@pytest.mark.parametrize("asset", OF_TUTORIAL)
def test_an_asset_of_the_tutorial_has_its_page(filled: Site, page: Page, asset: str) -> None:
    page.goto(f"{filled.dagster}/assets/{asset}")
    expect(page.get_by_text("Latest materialization")).to_be_visible(timeout=WITHIN_MS)
    expect(page.get_by_text("Materialize", exact=True).first).to_be_visible(timeout=WITHIN_MS)
    expect(page.get_by_text("No automations found for this asset")).to_have_count(0)
    jobs = {"sales": "sales_repair", "visits": "visits_drain"}
    expect(page.get_by_text(jobs.get(asset, "shop_sync")).first).to_be_visible(timeout=WITHIN_MS)


def test_the_deck_draws_every_chart(filled: Site, page: Page, picture: Picture) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(filled.deck)
    page.wait_for_selector("html[data-drawn-ms]", state="attached")
    charts = page.locator(".chart")
    assert charts.count() >= 6
    for chart in charts.all():
        drawn = chart.locator("svg.marks, canvas.marks").bounding_box()
        assert drawn and drawn["width"] > 900 and drawn["height"] > 30
    # The tutorial's tables, file and outbox: in the choices of charts, and in the table.
    choices = page.locator(".vega-bind option")
    for name in ("shop.customer", "shop.purchase", "visits/local"):
        expect(choices.get_by_text(name, exact=True).first).to_be_attached()
    expect(page.get_by_role("cell", name="sales", exact=True).first).to_be_visible()
    # Every empty part has a sentence.
    for section in page.locator("section").all():
        shown = section.locator("li, table, .chart, .nothing")
        assert shown.count() > 0, section.inner_text()
    picture("deck")
    page.emulate_media(color_scheme="dark")
    picture("deck-dark")
    page.set_viewport_size({"width": 390, "height": 800})
    page.reload()
    page.wait_for_selector("html[data-drawn-ms]", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Its own page prints nothing at all, no warning either.
    assert said == []


def test_a_lost_replica_is_red_and_healed(filled: Site, page: Page, picture: Picture) -> None:
    sensor = f"{filled.dagster}/locations/my_platform/sensors/sales_repair"
    checks = f"{filled.dagster}/assets/sales?view=checks&checkDetail=published_bytes_are_intact"
    card = page.locator(".health li", has_text="sales")
    switch = page.locator("label", has=page.locator("input[type=checkbox]")).first

    def repairs(wanted: bool) -> None:
        page.goto(sensor)
        switch.click()
        expect(page.get_by_role("checkbox").first).to_be_checked(checked=wanted, timeout=WITHIN_MS)

    def is_now(state: str) -> None:
        eventually(page, filled.deck, lambda: expect(card).to_have_class(state))

    is_now("well")
    repairs(False)
    for generation in (filled.project / "data/replica/sales/generations").glob("*.duckdb"):
        generation.unlink()
    page.goto(checks)
    page.get_by_role("button", name="execute Execute", exact=True).click()
    expect(page.get_by_text("Failed").first).to_be_visible(timeout=WITHIN_MS)
    picture("red")
    is_now("red")

    repairs(True)
    eventually(
        page,
        checks,
        lambda: expect(page.get_by_text("Passed").first).to_be_visible(timeout=20_000),
    )
    is_now("well")


def test_the_pictures_of_the_documentation_are_small() -> None:
    sizes = {file.name: file.stat().st_size for file in KEPT.glob("*.png")}
    assert {"graph.png", "config.png", "asset.png", "deck.png", "deck-dark.png", "red.png"} <= set(
        sizes
    )
    assert max(sizes.values()) <= LARGEST_BYTES
    assert sum(sizes.values()) <= LARGEST_TOTAL_BYTES
