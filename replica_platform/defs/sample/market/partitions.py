"""The days of the market as partitions, so that the Dagster UI can read a range of them again."""

import warnings

import dagster as dg

from replica_platform.market.sessions import TIME_ZONE

# A range of days is one run; the parameter that says so is in beta.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy` of function")

# Weekdays; a holiday is a day without bars. Today's is there from midnight on.
TRADING_DAYS = dg.TimeWindowPartitionsDefinition(
    start="2000-01-03",
    fmt="%Y-%m-%d",
    cron_schedule="0 0 * * 1-5",
    timezone=TIME_ZONE,
    end_offset=1,
)
