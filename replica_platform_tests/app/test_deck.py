"""The flight deck: what it shows, that it asks nobody, that it draws, and who may fetch it."""

import http.client
import json
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from replica_platform.app.configured import configured
from replica_platform.app.deck import deck_page, serve_deck, write_deck
from replica_platform.app.deck.contents import BY_DAY, BY_HOUR, DAYS, HOURS, Contents
from replica_platform.app.deck.page import render
from replica_platform.app.deck.vega import vega_script
from replica_platform.app.observation import record_state
from replica_platform.app.recording import record_integrity
from replica_platform.defs.history import history
from replica_platform.history import Past, Span, read
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform.xmin import validate
from replica_platform_tests.app.test_health import Folder
from replica_platform_tests.app.test_metrics import made as made_platform  # a fixture
from replica_platform_tests.chromium import chromium, needs_chromium
from replica_platform_tests.conftest import Cli

__all__ = ["made_platform"]
DATA = re.compile(rb'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
NOW_S = 1_772_452_800  # 2026-03-02 12:00 UTC


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script that draws; to put it together takes seconds."""
    folder = tmp_path_factory.mktemp("vega")
    vega_script(folder)
    return folder


@pytest.fixture
def script(kept: Path) -> str:
    """The script that draws."""
    return vega_script(kept)


@pytest.fixture
def made(made_platform: Folder, kept: Path) -> Folder:
    """A platform with one of each, and the script."""
    shutil.copytree(kept, made_platform.settings.data_dir / "deck")
    return made_platform


def charts(page: bytes) -> dict[str, dict[str, Any]]:
    (found,) = DATA.findall(page)
    return {chart["place"]: chart["data"] for chart in json.loads(found)["charts"]}


def test_it_shows_what_is_configured(made: Folder) -> None:
    found = configured(made.defs)
    made.age("raw.t", "1 minute")  # a lag of 0 has no chart
    assert record_state(made.settings, found) == 6
    page = deck_page(made.settings, found)
    text = page.decode()
    assert charts(page)["lag"]["names"] == ["raw.t"]
    assert charts(page)["pending"]["names"] == ["conversations/web"]
    assert charts(page)["backups"]["names"] == ["backups/a"]
    assert charts(page)["backups"]["rows"][0].endswith(".0")  # within a day, since today
    assert "<td>shop</td><td>1</td><td>current</td>" in text
    assert "It was 0 all the time." in text  # dead records
    assert re.search(r"<td>in \d+ \w+</td><td>fds: its schedule</td>", text)
    assert "<b>warehouse</b>" in text


def test_a_proof_shows_on_its_day(made: Folder) -> None:
    found = configured(made.defs)
    record_state(made.settings, found)
    before = charts(deck_page(made.settings, found))["integrity"]
    assert before["states"][int(before["rows"][0][-1])] == "not proven, synced"
    validate(made.settings.source, made.settings.target, "public.t", into="raw", content=True)
    record_state(made.settings, found)
    after = charts(deck_page(made.settings, found))["integrity"]
    assert after["states"][int(after["rows"][0][-1])] == "proven within a day"


def test_it_asks_no_other_host_for_anything(made: Folder) -> None:
    text = deck_page(made.settings, configured(made.defs)).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none';")
    assert "http" not in policy[1]
    # The rest is Vega, which the policy holds, too.
    own = text.partition("<script")[0]
    assert not re.search(r"src=|href=|@import|url\(", own)


@pytest.mark.parametrize(
    ("seen", "letter"),
    [
        ({}, "."),
        ({"lag_s": 60}, "3"),
        ({"lag_s": 60, "proven_age_s": 3600}, "0"),
        ({"lag_s": 60, "proven_age_s": 6 * 86_400}, "1"),
        ({"lag_s": 60, "proven_age_s": 8 * 86_400}, "2"),
        ({"lag_s": 2 * 86_400, "proven_age_s": 3600}, "4"),
        ({"lag_s": 60, "proven_age_s": 3600, "differing": 2}, "5"),
        ({"lag_s": 60, "integrity": 0.99}, "5"),
    ],
)
def test_a_day_of_a_table_has_one_state(seen: dict[str, float], letter: str) -> None:
    at = [NOW_S - 86_400, NOW_S]
    days = {name: Past(at, {}) for name in BY_DAY}
    days["lag_s"] = Past(at, {"raw.t": [60, seen.get("lag_s")]})
    for name in seen.keys() - {"lag_s"}:
        days[name] = Past(at, {"raw.t": [None, seen[name]]})
    page = render(Contents(NOW_S, days=days), "").encode()
    assert charts(page)["integrity"]["rows"] == [f"3{letter}"]


def test_names_from_databases_are_text(script: str) -> None:
    name = "raw.</script><script>document.title='taken'</script><!--vega-->\u2028"
    hours = {"lag_s": Past([NOW_S], {name: [60]})}
    contents = Contents(
        NOW_S, hours=hours, generations=[[name] * 6], missing=[f"No {name} <img src=x>"]
    )
    page = render(contents, script).encode()
    assert charts(page)["lag"]["names"] == [name]
    assert b"<script>document.title" not in page
    assert b"<img" not in page.partition(b"<script")[0]


def test_what_cannot_be_read_is_a_sentence_and_the_rest_is_shown(made: Folder) -> None:
    away = made.settings.model_copy(
        update={"target_dsn": type(made.settings.target_dsn)("postgresql://127.0.0.1:1/away")}
    )
    text = deck_page(away, configured(made.defs)).decode()
    assert re.search(r"<p class=missing>[^<]*127\.0\.0\.1", text)
    assert "<td>shop</td><td>1</td><td>current</td>" in text


def large(tables: int) -> Contents:
    """What many tables leave in 90 days."""
    names = [f"raw_data.table_number_{number}" for number in range(tables)]
    hours = [NOW_S - 3600 * back for back in reversed(range(HOURS))]
    days = [NOW_S - 86_400 * back for back in reversed(range(DAYS))]

    def past(at: list[int], scale: float) -> Past:
        values = {
            name: [float((n * 7919 + k * 104_729) % 9973) * scale for k in range(len(at))]
            for n, name in enumerate(names)
        }
        return Past(at, values)

    return Contents(
        NOW_S,
        hours={name: past(hours, 1) for name in ("lag_s", "rows_moved")}
        | {name: Past(hours, {}) for name in BY_HOUR[2:]},
        days={name: Past(days, {}) for name in BY_DAY}
        | {"lag_s": past(days, 1), "proven_age_s": past(days, 90)},
    )


def test_many_tables_stay_below_3_mb(script: str) -> None:
    page = render(large(500), script).encode()
    print(f"{len(page) / 1e6:.2f} MB")
    assert len(charts(page)["integrity"]["rows"]) == 500
    assert len(page) < 3_000_000


def specs(page: bytes) -> dict[str, dict[str, Any]]:
    (found,) = DATA.findall(page)
    return {chart["place"]: chart["spec"] for chart in json.loads(found)["charts"]}


@pytest.mark.parametrize(
    ("largest_s", "unit"),
    [(90, "seconds"), (5_000, "minutes"), (100_000, "hours"), (400_000_000, "days")],
)
def test_an_age_has_a_unit_that_fits(largest_s: float, unit: str) -> None:
    hours = {"data_age_s": Past([NOW_S], {"a": [largest_s]})}
    spec = specs(render(Contents(NOW_S, hours=hours), "").encode())["data_age"]
    assert spec["encoding"]["y"]["title"] == unit


@pytest.mark.parametrize(("known_hours", "days"), [(1, "1"), (24, "1"), (25, "7"), (160, "7")])
def test_a_young_history_is_shown_as_a_day(known_hours: int, days: str) -> None:
    at = [NOW_S - 3600 * back for back in reversed(range(HOURS))]
    values = [None] * (HOURS - known_hours) + [60.0] * known_hours
    hours = {"lag_s": Past(at, {"raw.t": values})}
    spec = specs(render(Contents(NOW_S, hours=hours), "").encode())["lag"]
    assert spec["params"][0]["value"] == days


def test_the_colours_of_a_map_have_a_legend_of_the_page() -> None:
    days = {name: Past([NOW_S], {}) for name in BY_DAY} | {"lag_s": Past([NOW_S], {"raw.t": [60]})}
    text = render(Contents(NOW_S, days=days), "")
    assert "</i>not proven, synced</li>" in text


def drawn(file: Path, profile: Path) -> str:
    """Return what Chromium makes of a page, when its scripts have ended."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    finished = subprocess.run(
        [chromium(), *flags, f"--user-data-dir={profile}", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    return finished.stdout


@needs_chromium
def test_a_browser_draws_every_chart(script: str, tmp_path: Path) -> None:
    columns = {"day": ["2026-02-27", "2026-03-02"]} | {
        name: [2.0, 3.0]
        for name in (
            *("open", "high", "low", "close", "volume", "sma_20", "sma_50"),
            *("bollinger_upper", "bollinger_lower", "rsi_14", "macd", "macd_signal"),
        )
    }
    contents = large(12)
    contents.candles, contents.symbol = columns, "AAPL"
    page = render(contents, script)
    write_deck(tmp_path / "deck.html", page.encode())
    dom = drawn(tmp_path / "deck.html", tmp_path / "profile")
    (root,) = re.findall(r"<html[^>]*>", dom)[:1]
    assert "data-failed" not in root
    assert re.search(r'data-drawn-ms="\d+"', root)
    assert len(re.findall('<svg[^>]*class="marks"', dom)) == 3  # lag, rows moved, candles
    assert len(re.findall('<canvas[^>]*class="marks"', dom)) == 1  # integrity

    # The control: a chart that cannot be drawn is noticed.
    broken = page.replace('"mark":{"type":"rect"', '"mark":{"type":"none-such"', 1)
    assert broken != page
    write_deck(tmp_path / "broken.html", broken.encode())
    dom = drawn(tmp_path / "broken.html", tmp_path / "profile")
    (root,) = re.findall(r"<html[^>]*>", dom)[:1]
    assert "data-failed" in root or '<canvas class="marks"' not in dom


def test_it_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    write_deck(tmp_path / "deck.html", b"x")
    assert stat.S_IMODE((tmp_path / "deck.html").stat().st_mode) == 0o640


@contextmanager
def served(make: Any, address: str = "127.0.0.1") -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    stop = threading.Event()
    given = {"host": address}
    thread = threading.Thread(target=serve_deck, args=(make, port, stop), kwargs=given)
    thread.start()
    try:
        yield port
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def ask(
    port: int, path: str = "/", host: str | None = None, address: str = "127.0.0.1"
) -> tuple[int, bytes]:
    for _ in range(50):
        connection = http.client.HTTPConnection(address, port, timeout=10)
        try:
            connection.request("GET", path, headers={"Host": host} if host else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionRefusedError:
            threading.Event().wait(0.1)
        finally:
            connection.close()
    raise AssertionError("It does not listen.")


def test_it_is_served_to_this_machine_and_kept_while_it_is_fresh() -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"<html>deck"

    with served(make) as port:
        assert ask(port) == (200, b"<html>deck")
        assert ask(port, host=f"localhost:{port}")[0] == 200
        # Another site's name that leads here, and any other path.
        assert ask(port, host=f"evil.example:{port}")[0] == 404
        assert ask(port, "/../dagster.yaml")[0] == 404
    assert len(made) == 1


def test_a_reload_makes_it_again_when_it_is_no_longer_fresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("replica_platform.app.deck.serve.FRESHEST_S", 0.0)
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return str(len(made)).encode()

    with served(make) as port:
        assert [ask(port)[1], ask(port)[1]] == [b"1", b"2"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2 without set-up")
def test_at_another_address_a_request_still_has_to_name_this_machine() -> None:
    with served(lambda: b"deck", "127.0.0.2") as port:
        # As through a port that a container publishes on 127.0.0.1.
        assert ask(port, host=f"127.0.0.1:{port}", address="127.0.0.2") == (200, b"deck")
        assert ask(port, host=f"10.0.0.7:{port}", address="127.0.0.2")[0] == 404


def test_the_sensor_records_without_a_run(made: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICA_SAMPLE", "on")
    resources = {
        "platform": PlatformConfig(
            data_dir=str(made.settings.data_dir), backup_dir=str(made.settings.backup_dir)
        ),
        "target": PostgresDatabase(made.settings.target),
    }
    skipped = history(dg.build_sensor_context(resources=resources))
    assert isinstance(skipped, dg.SkipReason)
    assert re.match(r"[1-9]\d* values recorded", str(skipped.skip_message))
    lag = read(made.settings.target, ["lag_s"], Span.HOUR, 2)["lag_s"].values
    assert list(lag) == ["raw.t"]


def test_the_commands_record_and_draw(made: Folder, cli: Cli) -> None:
    dsns = {
        "REPLICA_DATA_DIR": str(made.settings.data_dir),
        "REPLICA_SAMPLE": "off",
        "REPLICA_SOURCE_DSN": made.settings.source,
        "REPLICA_TARGET_DSN": made.settings.target,
        "REPLICA_DAGSTER_DSN": made.settings.dagster,
    }
    with psycopg.connect(made.settings.source) as source:
        source.execute("insert into public.t select generate_series(1, 7)")
    databases = ("--source", made.settings.source, "--target", made.settings.target)
    assert cli("sync", "public.t", *databases, "--into", "raw", **dsns).returncode == 0
    moved = read(made.settings.target, ["rows_moved"], Span.HOUR, 2)["rows_moved"].values
    assert sum(value or 0 for value in moved["raw.t"]) == 7
    record_integrity(made.settings.target, {"raw.t": 1.0})

    written = cli("deck", **dsns)
    assert written.returncode == 0, written.stderr
    assert "deck.html is written" in written.stdout
    page = (made.settings.data_dir / "deck.html").read_bytes()
    assert charts(page)["moved"]["names"] == ["raw.t"]
    assert cli("deck", "--file", "a.html", "--port", 9, **dsns).returncode == 2
    nowhere = cli("deck", "--file", made.settings.data_dir / "absent" / "a.html", **dsns)
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "There is no folder" in nowhere.stderr
