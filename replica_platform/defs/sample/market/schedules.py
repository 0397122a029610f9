"""The daily run of the market: its tables and the publication, on trading days."""

import dagster as dg

from replica_platform.market.sessions import TIME_ZONE, is_trading_day
from replica_platform.policies import named_job

# Whatever depends on the publication follows by its automation condition.
daily_pipeline_job = named_job(
    "nasdaq_daily_pipeline",
    dg.AssetSelection.groups("market")
    # The sample's own: a replica of another entry may live on another host.
    | dg.AssetSelection.key_prefixes("market_replica", ["purposes", "quotes"]),
    "symbols → ohlcv → indicators, watchlist → market_replica, checks included.",
)


@dg.schedule(
    name="nasdaq_daily_pipeline",
    job=daily_pipeline_job,
    cron_schedule="30 16 * * 1-5",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The market's tables and their publication, half an hour after the close of each "
    "trading day.",
)
def nasdaq_daily_pipeline(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request a run on a trading day; a cron schedule knows no holidays."""
    day = context.scheduled_execution_time.date()
    if not is_trading_day(day):
        return dg.SkipReason(f"{day} is not a trading day.")
    return dg.RunRequest(run_key=f"nasdaq-{day}", partition_key=day.isoformat())
