"""A chart of a symbol: a PNG, text for a terminal, or a sentence about what is missing."""

import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from replica_platform.market.chart import (
    ChartNotInstalled,
    UnknownSymbol,
    chart_markdown,
    chart_png,
    chart_text,
    read_chart,
)
from replica_platform.market.sources import open_source
from replica_platform.replica import Master, ReplicaReader, publish
from replica_platform_tests.conftest import Cli
from replica_platform_tests.market.conftest import Changeable, run_batch

# mplfinance and matplotlib under pandas 3.1.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chart")
    master = Master(folder / "stock_data.duckdb")
    run_batch(master, open_source())
    publish(master.path, folder / "store")
    return folder


def test_a_picture_shows_candles_in_two_colours(folder: Path) -> None:
    with ReplicaReader(folder / "store") as reader:
        frame = read_chart(reader, "IBM", days=60)
    assert len(frame) == 41
    assert frame["Close"].iloc[-1] == 202.91
    with Image.open(BytesIO(chart_png(frame, "IBM"))) as picture:
        assert picture.format == "PNG"
        width, height = picture.size
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=2**24)}
    assert min(width, height) > 300
    assert {(r > 200 > g, g > 150 > r) for r, g, _ in colours} >= {(True, False), (False, True)}


def test_the_terminal_gets_text_without_escapes(folder: Path) -> None:
    with ReplicaReader(folder / "store") as reader:
        text = chart_text(read_chart(reader, "FB"), "FB", 90, colour=False)
    assert "FB, 2012-09-04 to 2013-03-01, US dollars" in text
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 90


def test_a_symbol_of_a_few_days_has_a_chart(master: Master, source: Changeable) -> None:
    source.frame = source.frame[source.frame["day"] >= "2025-10-08"]
    run_batch(master, source)
    markdown = chart_markdown(master, None)
    assert markdown is not None
    assert markdown.startswith("![A](data:image/png;base64,")


def test_a_symbol_without_bars_is_named(folder: Path) -> None:
    with (
        ReplicaReader(folder / "store") as reader,
        pytest.raises(UnknownSymbol, match="no bar of O'NE"),
    ):
        read_chart(reader, "O'NE")


@pytest.mark.parametrize("library", ["mplfinance", "plotext"])
def test_without_the_library_the_extra_is_named(
    folder: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with ReplicaReader(folder / "store") as reader:
        frame = read_chart(reader, "IBM", days=30)
    with pytest.raises(ChartNotInstalled, match=r"replica-platform\[chart\]"):
        if library == "plotext":
            chart_text(frame, "IBM", 80)
        else:
            chart_png(frame, "IBM")


def test_the_command_draws_both(folder: Path, cli: Cli, tmp_path: Path) -> None:
    png = tmp_path / "ibm.png"
    drawn = cli("chart", "IBM", "--store", folder / "store", "--png", png)
    assert drawn.returncode == 0, drawn.stderr
    assert "IBM, 122 bars up to 2013-03-01" in drawn.stdout
    assert png.read_bytes().startswith(b"\x89PNG")
    text = cli("chart", "IBM", "--store", folder / "store", "--days", 30)
    assert "IBM, 2013-01-31 to 2013-03-01" in text.stdout
    unknown = cli("chart", "NONE", "--store", folder / "store")
    assert unknown.returncode == 1
    assert "error: There is no bar of NONE" in unknown.stderr
