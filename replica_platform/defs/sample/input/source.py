"""The sample's input: tables of the source database, and a worker's outbox."""

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pandas as pd
import psycopg

from replica_platform.core.postgres import connect
from replica_platform.market.sources.sample import sample_bars
from replica_platform.outbox import Outbox

SOURCE_TABLES = """
create schema fds;
create table fds.sym_v1_sym_ticker_exchange (
    fsym_id text primary key,
    ticker_exchange text not null
);
create table fds.prices (
    fsym_id text not null references fds.sym_v1_sym_ticker_exchange,
    price_date date not null,
    price_open double precision not null,
    price_high double precision not null,
    price_low double precision not null,
    price_close double precision not null,
    volume bigint not null,
    primary key (fsym_id, price_date)
);
"""


def fill_source(dsn: str) -> None:
    """Create the source's tables with the sample's bars in one transaction, if absent."""
    with connect(dsn) as source:
        if source.execute("select to_regclass('fds.prices')").fetchone() == (None,):
            _fill(source, sample_bars())


def append_conversations(outbox: Path) -> int:
    """Append each sample conversation to a new outbox; return how many, 0 if the file exists."""
    if outbox.exists():
        return 0
    lines = files(__package__).joinpath("conversations.jsonl").read_text("utf-8")
    conversations = [json.loads(line) for line in lines.splitlines()]
    outbox.parent.mkdir(parents=True, exist_ok=True)
    with Outbox(outbox) as worker:
        worker.append_many("conversation", conversations)
    return len(conversations)


def _fill(source: psycopg.Connection, bars: pd.DataFrame) -> None:
    source.execute(SOURCE_TABLES)
    for symbol in bars["symbol"].unique():
        source.execute(
            "insert into fds.sym_v1_sym_ticker_exchange values (%s, %s)",
            (_fsym_id(symbol), f"{symbol}-USA"),
        )
    with source.cursor().copy("copy fds.prices from stdin") as copy:
        for symbol, day, *rest in bars.itertuples(index=False):
            copy.write_row((_fsym_id(symbol), day.date(), *rest))


def _fsym_id(symbol: str) -> str:
    """Return a stable identifier in the vendor's form: six letters or digits, then `-R`."""
    digest = hashlib.sha256(symbol.encode()).digest()
    return base64.b32encode(digest)[:6].decode() + "-R"
