"""One run of all assets in this process, and the outcome of each."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.execution.stats import RunStepKeyStatsSnapshot, StepEventStatus
from dagster._core.utils import make_new_run_id

from replica_platform.app.launch import project_dir
from replica_platform.core.errors import TerminalError
from replica_platform.core.reports import Progress, ReportFields
from replica_platform.pictures import sentence_of

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
    from dagster_shared.error import SerializableErrorInfo

# Assets of other groups, which these are made of, come first.
PILLARS = ["replica", "warehouse", "outbox", "backups"]

# For the connections to Dagster's own database, which may be busy.
STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, MAX_OVERFLOW = 300_000, 3600, 20


class NothingConfigured(TerminalError):
    """No `defs.yaml` and no module configures an asset."""


@dataclass
class AssetDone(ReportFields):
    """The outcome of one asset in a run.

    Attributes:
        asset: The key of the asset.
        rows: The rows of its table or file, None where it has none.
        seconds: The duration of its step.
        done: What was done, in a few words.
        changed: Whether anything changed.
        checks: How many of its checks ran.
        checks_passed: How many of them passed.
        problems: Why the step or a check failed.
    """

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
        """Whether it was materialised and all its checks passed."""
        return not self.problems and self.done != "not reached"


@dataclass(frozen=True)
class StepDone:
    """A step of a run that has ended.

    Attributes:
        step: Its key.
        seconds: Its duration.
        ok: Whether it succeeded.
    """

    step: str
    seconds: float
    ok: bool


def materialise_all(
    definitions: dg.Definitions,
    progress: Progress | None = None,
    on_step: Callable[[StepDone], None] | None = None,
) -> list[AssetDone]:
    """Materialise every asset once, with its checks, recorded for the Dagster UI.

    Args:
        definitions: The platform to run.
        progress: A callback that receives the number of finished steps.
        on_step: A callback that receives each finished step.

    Returns:
        The outcome of each asset, by pillar and then in the order of the graph.

    Raises:
        NothingConfigured: There is no asset.
    """
    assets = definitions.resolve_asset_graph().materializable_asset_keys
    if not assets:
        raise NothingConfigured(
            "Nothing is configured yet. `replica adopt DSN --write` proposes the tables of a "
            "database, `dg scaffold defs replica_platform.components.DuckDBReplica shop` writes an "
            "example of another entry; or set REPLICA_SAMPLE=on."
        )
    job = definitions.resolve_implicit_global_asset_job_def()
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.DagsterInstance.from_config(str(project_dir())) as instance:
        # Keep connections open, as the Dagster UI does: some 600 new ones took a second.
        instance.optimize_for_webserver(STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, MAX_OVERFLOW)
        run_id = make_new_run_id()
        with _reported(instance, run_id, len(job.nodes), progress, on_step):
            # Named, so that the list of runs shows what this one is of.
            result = job.execute_in_process(
                instance=instance,
                run_config=quiet,
                raise_on_error=False,
                run_id=run_id,
                asset_selection=sorted(assets),
            )
        return _outcomes(definitions, result)


@contextmanager
def _reported(
    instance: dg.DagsterInstance,
    run_id: str,
    steps: int,
    progress: Progress | None,
    on_step: Callable[[StepDone], None] | None,
) -> Iterator[None]:
    """Report finished steps twice a second, and once at the end, if there is a callback."""
    if progress is None and on_step is None:
        yield
        return
    finished = threading.Event()

    def report() -> None:
        reported: set[str] = set()
        last = False
        while not last:
            last = finished.wait(0.5)
            ended = [s for s in instance.get_run_step_stats(run_id) if s.start_time and s.end_time]
            for stats in sorted(ended, key=lambda one: one.end_time or 0.0):
                if on_step and stats.step_key not in reported:
                    on_step(_step_done(stats))
                reported.add(stats.step_key)
            if progress:
                progress(len(ended), steps, "steps")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        finished.set()
        reporter.join()


def _step_done(stats: RunStepKeyStatsSnapshot) -> StepDone:
    seconds = (stats.end_time or 0.0) - (stats.start_time or 0.0)
    return StepDone(stats.step_key, seconds, stats.status is StepEventStatus.SUCCESS)


def _outcomes(definitions: dg.Definitions, result: dg.ExecuteInProcessResult) -> list[AssetDone]:
    """Return the outcome of each asset, by pillar and then in the order of the graph."""
    graph = definitions.resolve_asset_graph()
    outcomes = {key: AssetDone(key.to_user_string()) for key in _in_order(graph)}
    _add_failures(outcomes, graph, result)
    _add_checks(outcomes, result)
    _add_materializations(outcomes, result)
    return list(outcomes.values())


def _in_order(graph: "AssetGraph") -> list[dg.AssetKey]:
    keys = [key for key in graph.toposorted_asset_keys if key in graph.materializable_asset_keys]
    order = {pillar: number for number, pillar in enumerate(PILLARS)}
    return sorted(keys, key=lambda key: order.get(graph.get(key).group_name, -1))


def _add_failures(
    outcomes: dict[dg.AssetKey, AssetDone], graph: "AssetGraph", result: dg.ExecuteInProcessResult
) -> None:
    """Add the reason of a failed step to each of its assets."""
    steps = {
        step.op.name: {*step.keys, *(check.asset_key for check in step.check_keys)}
        for step in graph.assets_defs
        if step.is_executable
    }
    for event in result.all_events:
        if event.is_step_failure:
            for key in steps[event.node_name]:
                outcomes[key].problems.append(failure_cause(event))


def _add_checks(outcomes: dict[dg.AssetKey, AssetDone], result: dg.ExecuteInProcessResult) -> None:
    for evaluation in result.get_asset_check_evaluations():
        outcome = outcomes[evaluation.asset_key]
        outcome.checks += 1
        outcome.checks_passed += evaluation.passed
        if not evaluation.passed:
            sentence = sentence_of(evaluation.description)
            outcome.problems.append(f"{evaluation.check_name}: {sentence}")


def _add_materializations(
    outcomes: dict[dg.AssetKey, AssetDone], result: dg.ExecuteInProcessResult
) -> None:
    seconds = {
        event.step_key: event.step_success_data.duration_ms / 1000
        for event in result.all_events
        if event.is_step_success
    }
    for event in result.get_asset_materialization_events():
        materialization = event.materialization
        metadata: dict[str, Any] = {
            name: value.value for name, value in materialization.metadata.items()
        }
        outcome = outcomes[materialization.asset_key]
        outcome.rows = metadata.get("dagster/row_count")
        outcome.done = metadata.get("done", "materialised")
        outcome.changed = metadata.get("changed", True)
        outcome.seconds = seconds.get(event.step_key, 0.0)


def failure_cause(event: dg.DagsterEvent) -> str:
    """Return why a step failed: the text of its failure, else the innermost error."""
    failure = event.step_failure_data
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    return innermost_cause(failure.error)


def innermost_cause(error: "SerializableErrorInfo | None") -> str:
    """Return the message of the error that led to all others."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else "it failed without a message"
