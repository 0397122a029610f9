"""One run of everything in this process, and what became of each asset."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from replica_platform.app.launch import project_dir
from replica_platform.core.reports import Progress

PILLARS = ["market", "replica", "warehouse", "outbox", "backups"]

# Of the connections to Dagster's own database, which may be busy.
STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, MAX_OVERFLOW = 300_000, 3600, 20


@dataclass
class AssetDone:
    """What became of one asset in a run."""

    asset: str
    rows: int | None = None
    seconds: float = 0.0
    done: str = "not reached"
    changed: bool = False
    checks: int = 0
    checks_passed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it was materialised and every check of it passed."""
        return not self.problems and self.done != "not reached"


def materialise_all(
    definitions: dg.Definitions, progress: Progress | None = None
) -> list[AssetDone]:
    """Materialise every asset once, with its checks, recorded for the Dagster pages."""
    job = definitions.resolve_implicit_global_asset_job_def()
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.DagsterInstance.from_config(str(project_dir())) as instance:
        # Connections are kept, as the pages keep theirs: some 600 new ones took a second.
        instance.optimize_for_webserver(STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, MAX_OVERFLOW)
        with _followed(instance, len(job.nodes), progress):
            result = job.execute_in_process(
                instance=instance, run_config=quiet, raise_on_error=False
            )
        return _what_became(definitions, result)


@contextmanager
def _followed(
    instance: dg.DagsterInstance, steps: int, progress: Progress | None
) -> Iterator[None]:
    """Tell `progress` how many steps are over, twice a second; nobody asks where it is None."""
    if progress is None:
        yield
        return
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.5):
            for run in instance.get_runs(limit=1):
                ended = [s for s in instance.get_run_step_stats(run.run_id) if s.end_time]
                progress(len(ended), steps, "steps")

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()


def _what_became(definitions: dg.Definitions, result: dg.ExecuteInProcessResult) -> list[AssetDone]:
    """The events of a run as one line an asset, by pillar and then in the order of the graph."""
    graph = definitions.resolve_asset_graph()
    keys = [key for key in graph.toposorted_asset_keys if key in graph.materializable_asset_keys]
    order = {pillar: number for number, pillar in enumerate(PILLARS)}
    keys.sort(key=lambda key: order.get(graph.get(key).group_name, len(order)))
    assets = {key: AssetDone(key.to_user_string()) for key in keys}
    steps = {
        step.op.name: {*step.keys, *(check.asset_key for check in step.check_keys)}
        for step in graph.assets_defs
        if step.is_executable
    }
    seconds: dict[str | None, float] = {}
    for event in result.all_events:
        if event.is_step_success:
            seconds[event.step_key] = event.step_success_data.duration_ms / 1000
        elif event.is_step_failure:
            for key in steps[event.node_name]:
                assets[key].problems.append(_reason(event))
    for evaluation in result.get_asset_check_evaluations():
        asset = assets[evaluation.asset_key]
        asset.checks += 1
        asset.checks_passed += evaluation.passed
        if not evaluation.passed:
            asset.problems.append(f"{evaluation.check_name}: {evaluation.description}")
    for event in result.get_asset_materialization_events():
        materialization = event.materialization
        metadata: dict[str, Any] = {
            name: value.value for name, value in materialization.metadata.items()
        }
        asset = assets[materialization.asset_key]
        asset.rows = metadata.get("dagster/row_count")
        asset.done = metadata.get("done", "materialised")
        asset.changed = metadata.get("changed", True)
        asset.seconds = seconds.get(event.step_key, 0.0)
    return list(assets.values())


def _reason(event: dg.DagsterEvent) -> str:
    """Why a step failed: our own sentence where there is one, else the innermost error."""
    failure = event.step_failure_data
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else "it failed without a word"
