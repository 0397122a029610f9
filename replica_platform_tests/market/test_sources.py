"""Each source gives symbols and bars, and says what is wrong with its input."""

import http.server
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from replica_platform.market.errors import BadBars, NotInstalled, SourceFailed
from replica_platform.market.sources import open_source
from replica_platform.market.sources.folder import FolderSource
from replica_platform.market.sources.nasdaq import NasdaqDirectory
from replica_platform.market.sources.yahoo import YahooSource

START, END = date(2025, 10, 1), date(2025, 10, 31)
HEAD = "symbol,day,open,high,low,close,volume\n"
LISTED = """\
Symbol|Security Name|Market Category|Test Issue|Financial Status|Round Lot Size|ETF|NextShares
AAPL|Apple Inc. - Common Stock|Q|N|N|100|N|N
NA|Nano Labs Ltd|G|N|N|100|N|N
ZVZZT|NASDAQ TEST STOCK|G|Y|N|100|N|N
File Creation Time: 1126202521:33|||||||
"""
OTHER = """\
ACT Symbol|Security Name|Exchange|CQS Symbol|ETF|Round Lot Size|Test Issue|NASDAQ Symbol
IBM|International Business Machines|N|IBM|N|100|N|IBM
SPY|SPDR S&P 500|P|SPY|Y|100|N|SPY
ZTST|Test|N|ZTST|N|100|Y|ZTST
File Creation Time: 1126202521:33||||||
"""


def test_the_sample_is_12154_real_bars() -> None:
    source = open_source()
    answer = source.bars(list(source.symbols()["symbol"]), source.first_day, source.expected_day)
    assert len(answer.frame) == 12154
    assert source.expected_day == date(2013, 3, 1)


def test_a_folder_has_files_of_many_or_of_one_symbol(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "two.csv").write_text(HEAD + "A,2025-10-01,1,2,1,2,10\nB,2025-10-02,1,2,1,2,10\n")
    (tmp_path / "more" / "C.csv").write_text(
        "day,open,high,low,close,volume,note\n2025-10-03,1,2,1,2,10,x\n"
    )
    pd.DataFrame(
        {"symbol": ["D"], "day": [date(2025, 9, 1)], "open": [1.0], "high": [2.0], "low": [1.0],
         "close": [2.0], "volume": [10]}
    ).to_parquet(tmp_path / "d.parquet")  # fmt: skip
    source = FolderSource(tmp_path)
    assert list(source.symbols()["symbol"]) == ["A", "B", "C", "D"]
    frame = source.bars(["A", "C", "D"], START, END).frame
    assert list(zip(frame["symbol"], frame["volume"], strict=True)) == [("A", 10), ("C", 10)]


def test_symbols_csv_says_what_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD + "A,2025-10-01,1,2,1,2,10\n")
    (tmp_path / "symbols.csv").write_text("symbol,name\nA,Alpha\nNA,Nano\n")
    symbols = FolderSource(tmp_path).symbols()
    assert symbols.to_dict("list") == {
        "symbol": ["A", "NA"], "name": ["Alpha", "Nano"], "exchange": ["", ""],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("symbol,day,close\nA,2025-10-01,2\n", "lacks the columns high, low, open, volume"),
        (HEAD + "A,soon,1,2,1,2,10\n", "cannot be read"),
    ],
)
def test_a_wrong_file_of_a_folder_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadBars, match=message):
        FolderSource(tmp_path).bars(["A"], START, END)


def test_an_absent_or_empty_folder_says_which_setting(tmp_path: Path) -> None:
    with pytest.raises(BadBars, match="check REPLICA_BARS"):
        open_source(str(tmp_path / "absent"))
    with pytest.raises(BadBars, match="holds no"):
        FolderSource(tmp_path).symbols()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of `tmp_path`, served by HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_directory_is_read_from_files_and_addresses(tmp_path: Path, served: str) -> None:
    (tmp_path / "nasdaqlisted.txt").write_text(LISTED)
    (tmp_path / "otherlisted.txt").write_text(OTHER)
    source = open_source(None, f"{tmp_path / 'nasdaqlisted.txt'}, {served}/otherlisted.txt")
    assert source.symbols().values.tolist() == [
        ["AAPL", "Apple Inc. - Common Stock", "XNAS"],
        ["NA", "Nano Labs Ltd", "XNAS"],
        ["IBM", "International Business Machines", "XNYS"],
        ["SPY", "SPDR S&P 500", "ARCX"],
    ]
    assert len(source.bars(["IBM"], date(2013, 2, 1), date(2013, 2, 28)).frame) == 19


def test_a_directory_cut_short_delists_nothing(tmp_path: Path) -> None:
    path = tmp_path / "nasdaqlisted.txt"
    path.write_text("\n".join(LISTED.splitlines()[:2]))
    with pytest.raises(BadBars, match=r"was cut short; fetch it again\. No symbol"):
        NasdaqDirectory([str(path)]).symbols()
    path.write_text("a|b\nFile Creation Time: 1|\n")
    with pytest.raises(BadBars, match="is no symbol directory"):
        NasdaqDirectory([str(path)]).symbols()
    with pytest.raises(SourceFailed, match="check REPLICA_SYMBOLS"):
        NasdaqDirectory([str(tmp_path / "absent.txt")]).symbols()


def recorded(tickers: list[str], **asked: object) -> pd.DataFrame:
    """An answer in the form of `yfinance.download(group_by="ticker")`: GONE is delisted."""
    assert asked["start"] == "2025-10-01"
    assert asked["end"] == "2025-11-01"  # yfinance leaves the last day out
    days = pd.DatetimeIndex(["2025-10-01", "2025-10-02"], name="Date", tz="America/New_York")
    fields = ["Open", "High", "Low", "Close", "Adj Close", "Volume"]
    columns = pd.MultiIndex.from_product([tickers, fields], names=["Ticker", "Price"])
    frame = pd.DataFrame(float("nan"), index=days, columns=columns)
    for ticker in set(tickers) - {"GONE"}:
        frame.loc[days[0], ticker] = [1.0, 2.0, 1.0, 2.0, 1.9, 10.0]
    frame.loc[days[1], "AAPL"] = [2.0, 3.0, 2.0, 3.0, 2.9, float("nan")]
    return frame


def test_yfinance_answers_and_loses_a_symbol_by_name() -> None:
    answer = YahooSource(recorded).bars(["AAPL", "GONE", "MSFT"], START, END)
    assert answer.failed == {"GONE": "yfinance returned no row"}
    assert answer.frame.values.tolist() == [
        ["AAPL", pd.Timestamp("2025-10-01"), 1.0, 2.0, 1.0, 2.0, 10.0],
        ["AAPL", pd.Timestamp("2025-10-02"), 2.0, 3.0, 2.0, 3.0, 0.0],
        ["MSFT", pd.Timestamp("2025-10-01"), 1.0, 2.0, 1.0, 2.0, 10.0],
    ]


def test_a_download_that_raises_or_is_empty_has_failed() -> None:
    def refuse(**_: object) -> None:
        raise ValueError("Too Many Requests")

    with pytest.raises(SourceFailed, match="Too Many Requests"):
        YahooSource(refuse).bars(["AAPL"], START, END)
    empty = YahooSource(lambda **_: pd.DataFrame()).bars(["AAPL"], START, END)
    assert empty.failed == {"AAPL": "yfinance returned no row"}
    with pytest.raises(BadBars, match="REPLICA_SYMBOLS"):
        YahooSource(recorded).symbols()


def test_without_yfinance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yfinance", None)
    with pytest.raises(NotInstalled, match=r"replica-platform\[yfinance\]"):
        open_source("yfinance")
