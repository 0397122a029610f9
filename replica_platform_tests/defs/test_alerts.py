"""What the sensor `alerts` finds: failed runs, failing ticks, red checks and overdue assets."""

import time
from collections.abc import Iterator
from functools import partial

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._utils.error import SerializableErrorInfo

from replica_platform.app.alerts.ledger import Ledger
from replica_platform.app.alerts.look import look
from replica_platform.app.alerts.receivers import WebhookReceiver
from replica_platform.app.launch import PROJECT
from replica_platform.defs.automation import alerts
from replica_platform.resources.alerts import AlertReceivers
from replica_platform_tests.app.alert_servers import webhook

UI = "https://dagster.example.com"
BROKEN: set[str] = set()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    configured = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    logs = {name: given for name, given in configured.items() if name == "python_logs"}
    BROKEN.clear()
    with dg.instance_for_test(overrides=logs) as instance:
        yield instance


@dg.asset
def events() -> None:
    try:
        if "events" in BROKEN:
            raise ConnectionError("no route to 10.0.0.7\nafter 3 tries")
    except ConnectionError as error:
        raise RuntimeError("the step ended") from error


@dg.asset
def orders() -> None:
    if "orders" in BROKEN:
        raise dg.Failure("The target refuses the rows; run GRANT INSERT.", allow_retries=False)


def result(name: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=name not in BROKEN,
        severity=dg.AssetCheckSeverity.WARN if name == "warns" else dg.AssetCheckSeverity.ERROR,
        description="3 keys are missing; materialise orders.",
    )


@dg.asset_check(asset=orders)
def is_intact() -> dg.AssetCheckResult:
    return result("is_intact")


@dg.asset_check(asset=orders, blocking=True)
def is_fresh() -> dg.AssetCheckResult:
    return result("is_fresh")


@dg.op
def sync() -> None:
    if "sync" in BROKEN:
        raise ValueError("no source")


@dg.job
def erp_sync() -> None:
    sync()


@dg.resource
def away(_: object) -> None:
    if "away" in BROKEN:
        raise ValueError("the resource is away")


@dg.op(required_resource_keys={"away"})
def needing() -> None: ...


@dg.job(resource_defs={"away": away})
def needy() -> None:
    needing()


DEFINITIONS = dg.Definitions(
    assets=[events, orders],
    asset_checks=[is_intact, is_fresh],
    jobs=[
        erp_sync,
        needy,
        dg.define_asset_job("both", [events, orders]),
        dg.define_asset_job("checks_only", dg.AssetSelection.all_asset_checks()),
    ],
)


class Watch:
    """The sensor, with its cursor, and what it told."""

    def __init__(self, instance: dg.DagsterInstance, told: list[str], url: str) -> None:
        self.instance, self.told, self.cursor = instance, told, None
        self.receivers = AlertReceivers(UI, (WebhookReceiver(url),))
        self.repository = DEFINITIONS.get_repository_def()

    def run(self, job: str, *assets: dg.AssetKey, broken: tuple[str, ...] = ()) -> str:
        """Run a job while something is broken; return the run's id."""
        BROKEN.clear()
        BROKEN.update(broken)
        definition = DEFINITIONS.resolve_job_def(job)
        done = definition.execute_in_process(
            instance=self.instance, raise_on_error=False, asset_selection=assets or None
        )
        return str(done.run_id)

    def look(self) -> list[str]:
        """Return the lines of one look, sorted."""
        before = len(self.told)
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=self.repository,
            resources={"alert_receivers": self.receivers},
        ) as context:
            self.cursor = alerts.evaluate_tick(context).cursor
        return sorted(line for text in self.told[before:] for line in text.splitlines())


@pytest.fixture
def watch(instance: dg.DagsterInstance) -> Iterator[Watch]:
    with webhook() as hook:
        yield Watch(instance, hook.taken, hook.url)


def test_nothing_is_wrong_nothing_is_told(watch: Watch) -> None:
    assert watch.look() == []
    watch.run("both")
    assert watch.look() == []


def test_a_failed_run_is_one_line_with_its_steps_causes_and_page(
    watch: Watch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_id = watch.run("both", broken=("events", "orders"))
    capfd.readouterr()
    (line,) = watch.look()
    assert line.startswith(f"🔴 Run {run_id[:8]} of both has failed since 20")
    assert "events: ConnectionError: no route to 10.0.0.7 after 3 tries" in line
    assert "orders: The target refuses the rows; run GRANT INSERT. Correct the cause" in line
    assert line.endswith(f"{UI}/runs/{run_id}")
    (logged,) = (one for one in capfd.readouterr().err.splitlines() if " - ERROR - " in one)
    assert logged.endswith(line.removeprefix("🔴 "))
    watch.run("both", broken=("events",))
    assert watch.look() == []  # the same trouble
    watch.run("both")
    (line,) = watch.look()
    assert line.startswith("✅ Recovered after") and "of both has failed" in line
    assert watch.look() == []


def test_a_run_that_failed_before_its_steps_names_the_cause(watch: Watch) -> None:
    watch.run("needy", broken=("away",))
    (line,) = watch.look()
    assert "its start: " in line and "the resource is away" in line


def test_a_job_of_an_op_ends_its_trouble_by_success(watch: Watch) -> None:
    watch.run("erp_sync", broken=("sync",))
    watch.run("needy", broken=("away",))
    assert len(watch.look()) == 2
    watch.run("both")  # another job changes nothing
    assert watch.look() == []
    watch.run("erp_sync")
    (line,) = watch.look()
    assert line.startswith("✅") and "of erp_sync" in line
    for run in watch.instance.get_runs(dg.RunsFilter(job_name="needy")):
        watch.instance.delete_run(run.run_id)
    (line,) = watch.look()
    assert line.startswith("✅") and "of needy" in line


def test_an_asset_that_arrived_by_another_run_ends_the_trouble(watch: Watch) -> None:
    watch.run("both", broken=("events", "orders"))
    assert len(watch.look()) == 1
    watch.run("both", events.key)
    assert watch.look() == []  # orders is still missing
    watch.run("both", orders.key)
    (line,) = watch.look()
    assert line.startswith("✅")


def test_a_run_that_dagster_retries_is_not_told(watch: Watch) -> None:
    run_id = watch.run("erp_sync", broken=("sync",))
    watch.instance.add_run_tags(run_id, {"dagster/will_retry": "true"})
    assert watch.look() == []
    watch.instance.add_run_tags(run_id, {"dagster/will_retry": "false"})
    assert len(watch.look()) == 1


def test_what_was_made_good_before_the_look_is_not_told(watch: Watch) -> None:
    watch.run("erp_sync", broken=("sync",))
    watch.run("erp_sync")
    watch.run("both", broken=("orders", "is_intact"))
    watch.run("both")
    assert watch.look() == []


def test_red_checks_are_told_until_they_pass(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watch.run("both", broken=("is_intact", "is_fresh"))
    lines = watch.look()
    assert [line.partition(" since ")[0] for line in lines] == [
        "🔴 Check is_fresh of orders is red",
        "🔴 Check is_intact of orders is red",
    ]
    assert "3 keys are missing; materialise orders. Its page" in lines[0]
    assert lines[0].endswith(f"{UI}/assets/orders?view=checks")
    watch.run("both", broken=("is_intact",))
    (line,) = watch.look()
    assert line.startswith("✅") and "is_fresh of orders" in line
    watch.run("checks_only")
    (line,) = watch.look()
    assert line.startswith("✅") and "is_intact of orders" in line


def test_a_check_that_runs_now_stays_as_it_was(watch: Watch) -> None:
    watch.run("both", broken=("is_intact",))
    assert len(watch.look()) == 1
    job = DEFINITIONS.resolve_job_def("both")
    watch.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    (planned,) = (
        one.status
        for one in watch.instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [is_intact.check_key]
        ).values()
    )
    assert planned is AssetCheckExecutionRecordStatus.PLANNED
    assert watch.look() == []


def test_a_warning_is_told_when_it_lasts(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    @dg.asset_check(asset=orders)
    def warns() -> dg.AssetCheckResult:
        return result("warns")

    BROKEN.add("warns")
    own = dg.Definitions(assets=[orders], asset_checks=[warns])
    own.resolve_implicit_global_asset_job_def().execute_in_process(instance=watch.instance)
    watch.repository = own.get_repository_def()
    assert watch.look() == []
    later = time.time() + 901
    monkeypatch.setattr("replica_platform.defs.automation.time.time", lambda: later)
    (line,) = watch.look()
    assert line.startswith("🔴 Check warns of orders warns since")


def add_tick(instance: dg.DagsterInstance, name: str, status: TickStatus, cause: str = "") -> None:
    """Add a tick of a schedule to an instance, with a cause if it failed."""
    location = RegisteredCodeLocationOrigin("here")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    state = InstigatorState(
        origin,
        InstigatorType.SCHEDULE,
        InstigatorStatus.DECLARED_IN_CODE,
        ScheduleInstigatorData("* * * * *"),
    )
    if not instance.get_instigator_state(origin.get_id(), state.selector_id):
        instance.add_instigator_state(state)
    inner = SerializableErrorInfo(f"ValueError: {cause}\n", [], "ValueError")
    error = SerializableErrorInfo("Error occurred\n", [], "Error", cause=inner)
    instance.create_tick(
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


def test_failing_ticks_are_told_until_one_succeeds(watch: Watch) -> None:
    tick = partial(add_tick, watch.instance)
    tick("fds_sync", TickStatus.SUCCESS)
    tick("outbox_drain", TickStatus.FAILURE, "several RunRequests\nneed a run_key")
    (line,) = watch.look()
    assert line.startswith("🔴 Schedule outbox_drain fails since 20")
    assert "ValueError: several RunRequests need a run_key. Correct the cause" in line
    assert line.endswith(f"{UI}/locations/here/schedules/outbox_drain")
    assert len(look(watch.instance, watch.repository, Ledger(UI), "elsewhere")) == 1
    assert look(watch.instance, watch.repository, Ledger(UI), "here") == []  # no longer defined
    tick("outbox_drain", TickStatus.FAILURE, "again")
    tick("outbox_drain", TickStatus.STARTED)
    tick("fds_sync", TickStatus.FAILURE, "no source")
    (line,) = watch.look()
    assert line.startswith("🔴 Schedule fds_sync fails")
    tick("outbox_drain", TickStatus.SKIPPED)
    (line,) = watch.look()
    assert line.startswith("✅ Recovered after") and "outbox_drain fails" in line
    (state,) = (s for s in watch.instance.all_instigator_state() if s.name == "fds_sync")
    watch.instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))
    (line,) = watch.look()  # switched off by a person
    assert line.startswith("✅") and "fds_sync" in line


def test_an_overdue_asset_is_told_once(watch: Watch) -> None:
    def becomes(state: FreshnessState) -> None:
        watch.instance._report_runless_asset_event(
            FreshnessStateChange(
                key=orders.key,
                new_state=state,
                previous_state=FreshnessState.UNKNOWN,
                state_change_timestamp=time.time(),
            )
        )

    watch.run("both")
    becomes(FreshnessState.PASS)
    assert watch.look() == []
    becomes(FreshnessState.WARN)
    (line,) = watch.look()
    assert line.startswith("🔴 orders is overdue since 20") and "last materialised" in line
    assert line.endswith(f"{UI}/assets/orders?view=overview")
    becomes(FreshnessState.FAIL)
    assert watch.look() == []
    becomes(FreshnessState.PASS)
    (line,) = watch.look()
    assert line.startswith("✅") and "orders is overdue" in line


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
