"""The one log line of a failed run and of a failed tick, and nothing that hides it."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest
import yaml
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    InstigatorType,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import SerializableErrorInfo

from replica_platform.app.launch import PROJECT
from replica_platform.defs.automation import failed_runs, failed_ticks


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    configured = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    logs = {name: given for name, given in configured.items() if name == "python_logs"}
    with dg.instance_for_test(overrides=logs) as instance:
        yield instance


def failed(instance: dg.DagsterInstance, job: dg.JobDefinition) -> dg.ExecuteInProcessResult:
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    return result


def errors(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that were logged as errors."""
    lines = capfd.readouterr().err.splitlines()
    return [line.split(" - ERROR - ", 1)[1] for line in lines if " - ERROR - " in line]


def alert_of(
    instance: dg.DagsterInstance,
    result: dg.ExecuteInProcessResult,
    capfd: pytest.CaptureFixture[str],
) -> str:
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
    ).for_run_failure()
    capfd.readouterr()
    failed_runs(context)
    (text,) = errors(capfd)
    return text


def test_a_failed_run_is_one_line_with_step_and_cause(
    instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    @dg.op
    def events() -> None:
        try:
            raise ConnectionError("no route to 10.0.0.7\nafter 3 tries")
        except ConnectionError as error:
            raise RuntimeError("the step ended") from error

    @dg.op
    def refused() -> None:
        raise dg.Failure("The target refuses the rows; run GRANT INSERT.", allow_retries=False)

    @dg.job
    def job() -> None:
        events()
        refused()

    text = alert_of(instance, failed(instance, job), capfd)
    assert "events: ConnectionError: no route to 10.0.0.7 after 3 tries" in text
    assert "refused: The target refuses the rows; run GRANT INSERT." in text
    assert "\n" not in text


def test_a_run_that_failed_before_its_steps_names_the_cause(
    instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    @dg.resource
    def away(_: object) -> None:
        raise ValueError("the resource is away")

    @dg.op(required_resource_keys={"away"})
    def work() -> None: ...

    @dg.job(resource_defs={"away": away})
    def job() -> None:
        work()

    text = alert_of(instance, failed(instance, job), capfd)
    assert "the resource is away" in text
    assert "its start" in text


def test_steps_print_no_line_at_debug_level_and_their_events_are_kept(
    instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    @dg.asset
    def table(context: dg.AssetExecutionContext) -> None:
        context.log.info("a line of the asset")

    definitions = dg.Definitions(assets=[table], loggers={"console": dg.colored_console_logger})
    job = definitions.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance).success
    printed = capfd.readouterr().err
    assert "a line of the asset" in printed
    assert "DEBUG" not in printed
    assert instance.get_latest_materialization_event(table.key) is not None


class Ticks:
    """Schedules and sensors whose ticks are in an instance."""

    def __init__(self, instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]) -> None:
        self.instance, self.capfd, self.cursor = instance, capfd, None

    def add(self, name: str, status: TickStatus, cause: str = "") -> InstigatorTick:
        location = RegisteredCodeLocationOrigin("here")
        origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "repository"), name)
        state = InstigatorState(
            origin,
            InstigatorType.SCHEDULE,
            InstigatorStatus.DECLARED_IN_CODE,
            ScheduleInstigatorData("* * * * *"),
        )
        if not self.instance.get_instigator_state(origin.get_id(), state.selector_id):
            self.instance.add_instigator_state(state)
        inner = SerializableErrorInfo(f"ValueError: {cause}\n", [], "ValueError")
        error = SerializableErrorInfo("Error occurred\n", [], "Error", cause=inner)
        return self.instance.create_tick(
            TickData(
                origin.get_id(),
                name,
                InstigatorType.SCHEDULE,
                status,
                time.time(),
                selector_id=state.selector_id,
                run_ids=[],
                error=error if cause else None,
            )
        )

    def alerts(self) -> list[str]:
        self.capfd.readouterr()
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        with context:
            result = failed_ticks.evaluate_tick(context)
        self.cursor = result.cursor
        return errors(self.capfd)


def test_a_failed_tick_is_one_line_once(
    instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    ticks = Ticks(instance, capfd)
    ticks.add("fds_sync", TickStatus.SUCCESS)
    ticks.add("outbox_drain", TickStatus.FAILURE, "several RunRequests\nneed a run_key")
    assert ticks.alerts() == [
        "The tick of outbox_drain failed: ValueError: several RunRequests need a run_key"
    ]
    assert ticks.alerts() == []
    ticks.add("outbox_drain", TickStatus.FAILURE, "again")
    ticks.add("fds_sync", TickStatus.FAILURE, "no source")
    assert sorted(ticks.alerts()) == [
        "The tick of fds_sync failed: ValueError: no source",
        "The tick of outbox_drain failed: ValueError: again",
    ]
