"""What others read and write beside the market: the bars before it, readers and quotes after it."""

import dagster as dg

daily_bars = dg.AssetSpec(
    ["source", "daily_bars"],
    group_name="source",
    kinds={"file"},
    description="The daily bars that the market is made from: what `REPLICA_BARS` names, or the "
    "sample of bokeh_sampledata.",
)

readers = dg.AssetSpec(
    ["readers", "market_readers"],
    deps=["market_replica"],
    group_name="readers",
    kinds={"python", "duckdb"},
    description="Programs that query the newest generation through "
    '`ReplicaReader("data/replica")`, and any DuckDB client that opens '
    "`data/replica/stock_data_replica.db` read-only. `replica status` names those that read now.",
)

quotes = dg.AssetSpec(
    ["readers", "quote_producer"],
    deps=[["purposes", "quotes"]],
    group_name="readers",
    kinds={"python", "kafka"},
    description="Quotes of the watchlist in a Kafka topic, sent by `replica quotes`.",
)
