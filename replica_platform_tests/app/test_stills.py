"""Pictures of the deck's charts on the pages of assets: what they show, how large, how often."""

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from replica_platform.app.deck.stills import EVERY_S, MOST_A_RUN, MOST_BYTES, Stills
from replica_platform.history import Sample, record
from replica_platform.metadata import history

NOW = datetime.now(UTC)


@pytest.fixture
def week(target: str) -> str:
    """A target with a week of a table and of three outboxes."""
    for hour in range(0, 7 * 24, 5):
        samples = [
            Sample("lag_s", "raw.t", 60 + hour * 7 % 500),
            Sample("rows_moved", "raw.t", hour * 31 % 1000),
            *(Sample("pending", f"shop/{node}", hour * 3 % (7 + node)) for node in range(3)),
        ]
        record(target, samples, at=NOW - timedelta(hours=7 * 24 - 1 - hour))
    return target


def pictures(markdown: str | None) -> dict[str, ElementTree.Element]:
    """Return the pictures of markdown by their titles, read as XML."""
    assert markdown is not None
    assert len(markdown) <= MOST_BYTES
    found = re.findall(r"!\[([^]]*)\]\(data:image/svg\+xml,([^()\s]*)\)", markdown)
    return {title: ElementTree.fromstring(unquote(svg)) for title, svg in found}


def words(picture: ElementTree.Element) -> str:
    return " ".join(one.text or "" for one in picture.iter() if one.tag.endswith("text"))


def test_each_kind_of_asset_has_its_picture(week: str, tmp_path: Path) -> None:
    stills = Stills(week, tmp_path / "pictures")
    table = pictures(stills.of_table("raw.t"))
    assert list(table) == ["Lag by hour", "Rows moved by hour"]
    assert "lag, minutes" in words(table["Lag by hour"])
    outbox = pictures(stills.of_outbox([f"shop/{node}" for node in range(3)]))
    assert all(f"shop/{node}" in words(*outbox.values()) for node in range(3))
    taken = [NOW - timedelta(days=days) for days in range(40) if days not in (3, 4, 5)]
    calendar = pictures(stills.of_backups("backups/a", taken))
    assert "within 2 days" in words(*calendar.values())
    text = ElementTree.tostring(*calendar.values(), encoding="unicode")
    assert text.count("#d1495b") == 3  # the cells of two days, and the legend


def test_an_asset_gets_one_in_a_while(week: str, tmp_path: Path) -> None:
    """A run that a person started always has one; another asset is another matter."""
    first = Stills(week, tmp_path)
    assert first.of_table("raw.t")
    assert Stills(week, tmp_path).of_table("raw.t") is None
    assert Stills(week, tmp_path).of_outbox(["shop/1"])
    assert Stills(week, tmp_path, always=True).of_table("raw.t")
    for noted in tmp_path.iterdir():
        earlier = noted.stat().st_mtime - EVERY_S
        os.utime(noted, (earlier, earlier))
    assert Stills(week, tmp_path).of_table("raw.t")


def test_a_run_draws_a_few(tmp_path: Path) -> None:
    stills = Stills("", tmp_path, always=True)
    drawn = [stills.of_backups(f"backups/{number}", [NOW]) for number in range(MOST_A_RUN + 2)]
    assert [one is not None for one in drawn] == [True] * MOST_A_RUN + [False] * 2


def test_without_the_extra_nothing_changes(
    week: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert Stills(week, tmp_path / "none").of_table("raw.t") is None
    assert not (tmp_path / "none").exists()
    assert history(None) == {}


def test_what_cannot_be_drawn_fails_nothing(
    target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Stills(target, tmp_path).of_table("raw.t") is None  # nothing is recorded
    assert not caplog.records
    assert Stills("postgresql:///gone?host=/nowhere", tmp_path).of_table("raw.u") is None
    assert "No picture of raw.u: " in caplog.text
