"""Containerfile, Compose file and Helm values: checked against rules, and built as far as it goes.

The processes of the Compose file are started in `test_deploy`.
"""

import importlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInvalidConfigError
from dagster._core.instance.config import dagster_instance_config
from pydantic import BaseModel, ConfigDict, Field

from replica_platform.app.launch import PROJECT
from replica_platform.app.project import INSTANCE, init_project
from replica_platform_tests.acceptance import containerfile
from replica_platform_tests.acceptance.compose import (
    CLUSTER,
    COMPOSE,
    compose,
    interpolated,
    merged,
    variables,
)

TEXT = containerfile.PATH.read_text()
KUBERNETES = PROJECT / "deploy" / "kubernetes"
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
SCRIPTS = Path(sysconfig.get_path("scripts"))
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(SCRIPTS))
PLATFORM = ("code", "webserver", "daemon", "deck", "metrics")
WORKERS = ("worker-central", "worker-a")


# The Containerfile.


def test_the_containerfile_keeps_its_rules() -> None:
    assert containerfile.broken_rules(TEXT) == []


@pytest.mark.parametrize(
    ("pattern", "replacement", "sentence"),
    [
        ("USER 10001:10001", "USER root", "USER by number"),
        ("USER 10001:10001\n", "", "USER by number"),
        (":3.11.13-slim-bookworm", ":latest", "not pinned"),
        ("HOME=/tmp", "REPLICA_TARGET_DSN=postgresql://a:b@c/d", "looks like a secret"),
        ("COPY --from=project pyproject.toml /srv", "COPY --from=project . /srv", "takes ."),
        ("COPY replica_platform", "COPY replica_platfrom", "no replica_platfrom"),
        (" --constraint constraints.txt", "", "without --constraint"),
        ("RUN python -m venv", "RUN curl -O x && python -m venv", "not pinned"),
        ("CMD", "ENTRYPOINT", "ENTRYPOINT"),
    ],
)
def test_a_broken_rule_is_named(pattern: str, replacement: str, sentence: str) -> None:
    assert pattern in TEXT
    broken = containerfile.broken_rules(TEXT.replace(pattern, replacement))
    assert any(sentence in one for one in broken), broken


def test_its_python_is_one_that_is_tested() -> None:
    versions = set(re.findall(r"python:(\d+\.\d+)\.", TEXT))
    ci = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text())
    assert len(versions) == 1
    assert versions <= set(ci["jobs"]["ci"]["strategy"]["matrix"]["python"])


def test_its_extras_are_those_of_the_package() -> None:
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", TEXT)
    there = PYPROJECT["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= there.keys()
    assert set(extras.split(",")) >= {"metrics", "deck", "store"}


def test_what_is_copied_makes_a_wheel(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    found = containerfile.instructions(TEXT)
    for one in found:
        if (one.name, one.stage, one.options) == ("COPY", 0, {}):
            *sources, _ = one.words
            for name in sources:
                if (PROJECT / name).is_dir():
                    shutil.copytree(PROJECT / name, source / name)
                else:
                    shutil.copy(PROJECT / name, source)
    (given,) = [one.text for one in found if one.name == "ARG" and "VERSION" in one.text]
    number = given.partition("=")[2]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path), "."),
        ],
        cwd=source,
        env={"PATH": "/usr/bin:/bin", "SETUPTOOLS_SCM_PRETEND_VERSION": number},
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert f"-{number}-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {"replica_platform/py.typed", "replica_platform/app/dagster.yaml"} <= set(names)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_accepts_it() -> None:
    # DL3022 asks that --from names a stage; `project` is a folder given to the build.
    command = [str(HADOLINT), "--ignore", "DL3022", "-"]
    done = subprocess.run(command, input=TEXT, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# The Compose file.


@pytest.mark.parametrize("cluster", [False, True])
def test_the_compose_specification_accepts_it(cluster: bool) -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    text = yaml.safe_dump(compose(cluster=cluster))
    parsed = compose_spec.PyCompose.from_yaml(text)
    parsed.validate()
    misspelt = text.replace("healthcheck:", "helthcheck:", 1)
    with pytest.raises(ValueError, match="helthcheck"):
        compose_spec.PyCompose.from_yaml(misspelt)


@pytest.mark.parametrize("cluster", [False, True])
def test_each_service_is_pinned_healthy_and_confined(cluster: bool) -> None:
    services = compose(cluster=cluster)["services"]
    further = {"broker", "bucket", *WORKERS} if cluster else set()
    assert set(services) == {"postgres", *PLATFORM, *further}
    for name, service in services.items():
        assert re.search(r":[\w.-]*\d", service["image"]), name
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["healthcheck"].keys() > {"interval", "timeout", "retries", "start_period"}
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "user"}
    for name in (*PLATFORM, *(WORKERS if cluster else ())):
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert (SCRIPTS / service["command"][0]).exists()
    for name in ("postgres", "code", *further):
        assert "ports" not in services[name]
    # What knows Dagster's database, and where there is one its broker, can lose nothing else.
    known = {"REPLICA_PROJECT", "REPLICA_DAGSTER_DSN"}
    known |= {"DAGSTER_HOME", "REPLICA_BROKER_URL"} if cluster else set()
    for name in ("webserver", "daemon"):
        assert services[name]["environment"].keys() == known
        assert services[name]["volumes"] == ["logs:/logs"]
        assert "env_file" not in services[name]
    for name in ("code", "deck", "metrics"):
        assert services[name]["env_file"] == [".env"]


def test_secrets_come_from_the_environment_alone() -> None:
    text = COMPOSE.read_text() + CLUSTER.read_text()
    for path in (COMPOSE, CLUSTER):
        for service in yaml.safe_load(path.read_text())["services"].values():
            for name, value in service.get("environment", {}).items():
                if containerfile.SECRET.search(name):
                    assert "${" in value, name
    assert not re.search(r"://[^\s:$]*:[^$\s]+@", text)
    example = (COMPOSE.parent / "env.example").read_text()
    given = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    assert set(variables(text)) == given.keys()
    assert {name for name, value in given.items() if not value} == {
        *("POSTGRES_PASSWORD", "REPLICA_SOURCE_DSN", "BROKER_PASSWORD", "BUCKET_SECRET_KEY"),
    }
    assert ".env" in (PROJECT / ".gitignore").read_text().split()


def test_a_variable_that_must_be_set_is_asked_for() -> None:
    with pytest.raises(KeyError, match=r"set it in \.env"):
        interpolated(COMPOSE.read_text(), {"POSTGRES_PASSWORD": "a"})
    with pytest.raises(KeyError, match=r"set it in \.env"):
        interpolated(COMPOSE.read_text(), {"POSTGRES_PASSWORD": "", "REPLICA_SOURCE_DSN": "b"})


def test_the_files_that_it_names_are_there() -> None:
    found = compose(cluster=True)
    build = found["services"]["code"]["build"]
    context = (COMPOSE.parent / build["context"]).resolve()
    assert context == PROJECT
    assert (context / build["dockerfile"]).resolve() == containerfile.PATH
    assert [f"ARG {name}" in TEXT for name in build["args"]] == [True]
    assert build["additional_contexts"].keys() == set(re.findall(r"--from=(\w+)", TEXT)) - {"build"}
    for service in found["services"].values():
        for volume in service["volumes"]:
            origin = volume.split(":")[0]
            known = (
                (COMPOSE.parent / origin).is_file() if "/" in origin else origin in found["volumes"]
            )
            assert known, volume


@pytest.mark.parametrize("cluster", [False, True])
def test_its_instance_is_that_of_a_project_with_folders_of_its_own(
    cluster: bool, tmp_path: Path
) -> None:
    folder = COMPOSE.parent / "cluster" if cluster else COMPOSE.parent
    ours = yaml.safe_load((folder / "dagster.yaml").read_text())
    folders = {name: ours.pop(name) for name in ("compute_logs", "local_artifact_storage")}
    theirs = INSTANCE.with_name("cluster.yaml") if cluster else INSTANCE
    assert ours == yaml.safe_load(theirs.read_text())
    assert all(one["config"]["base_dir"].startswith("/logs/") for one in folders.values())
    assert_valid(ours | folders, tmp_path)


# The Helm values. The chart's own schema lets unknown keys pass; these models do not, so that a
# misspelt key is found.


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Image(Strict):
    repository: str
    tag: str = Field(pattern=r"\d")
    pullPolicy: str = Field(pattern="^(Always|IfNotPresent|Never)$")


class PodContext(Strict):
    runAsNonRoot: bool
    runAsUser: int
    runAsGroup: int
    fsGroup: int


class ContainerContext(Strict):
    allowPrivilegeEscalation: bool
    capabilities: dict[str, list[str]]


class Placed(Strict):
    image: Image
    podSecurityContext: PodContext
    securityContext: ContainerContext


class Name(Strict):
    name: str


class Claim(Strict):
    claimName: str


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim


class Mount(Strict):
    name: str
    mountPath: str


class Probe(Strict):
    periodSeconds: int
    timeoutSeconds: int
    failureThreshold: int


class Ready(Probe):
    enabled: bool


class Alive(Probe):
    exec: dict[str, list[str]]
    initialDelaySeconds: int


class Get(Strict):
    path: str
    port: int


class Served(Strict):
    type: str
    port: int


class Deployment(Placed):
    name: str
    dagsterApiGrpcArgs: list[str]
    port: int
    envSecrets: list[Name]
    deploymentStrategy: dict[str, str]
    volumes: list[Volume]
    volumeMounts: list[Mount]
    readinessProbe: Ready
    resources: dict[str, dict[str, str]]


class UserDeployments(Strict):
    enabled: bool
    enableSubchart: bool
    deployments: list[Deployment]


class Server(Strict):
    host: str
    port: int
    name: str


class Workspace(Strict):
    enabled: bool
    servers: list[Server]


class Webserver(Placed):
    workspace: Workspace
    service: Served
    readinessProbe: dict[str, Get]


class Queue(Strict):
    dequeueIntervalSeconds: int


class Coordinator(Strict):
    enabled: bool
    type: str = Field(pattern="^(Queued|Custom)RunCoordinator$")
    config: dict[str, Queue]


class Monitoring(Strict):
    enabled: bool
    startTimeoutSeconds: int
    maxRuntimeSeconds: int
    pollIntervalSeconds: int
    freeSlotsAfterRunEndSeconds: int


class Retries(Strict):
    enabled: bool
    maxRetries: int
    retryOnAssetOrOpFailure: bool


class Daemon(Placed):
    livenessProbe: Alive
    runCoordinator: Coordinator
    runMonitoring: Monitoring
    runRetries: Retries


class Custom(Strict):
    module: str
    class_: str = Field(alias="class")
    config: dict[str, Any]


class Launcher(Strict):
    type: str = Field(pattern="^CustomRunLauncher$")
    config: dict[str, Custom]


class Postgres(Strict):
    enabled: bool
    postgresqlHost: str
    postgresqlUsername: str
    postgresqlDatabase: str
    service: dict[str, int]


class Retention(Strict):
    enabled: bool
    schedule: dict[str, int]
    sensor: dict[str, dict[str, int]]


class Pools(Strict):
    granularity: str
    defaultLimit: int


class Concurrency(Strict):
    enabled: bool
    runs: dict[str, int]
    pools: Pools


class Values(Strict):
    global_: dict[str, str] = Field(alias="global")
    generatePostgresqlPasswordSecret: bool
    postgresql: Postgres
    user_deployments: UserDeployments = Field(alias="dagster-user-deployments")
    dagsterWebserver: Webserver
    dagsterDaemon: Daemon
    runLauncher: Launcher
    pythonLogs: dict[str, str]
    retention: Retention
    telemetry: dict[str, bool]
    concurrency: Concurrency


def helm_values() -> Values:
    return Values.model_validate(yaml.safe_load((KUBERNETES / "values.yaml").read_text()))


def test_the_helm_values_fit_together(tmp_path: Path) -> None:
    values = helm_values()
    (deployment,) = values.user_deployments.deployments
    (server,) = values.dagsterWebserver.workspace.servers
    assert (server.host, server.port) == (deployment.name, deployment.port)
    # The location has the name that `replica init` gives it, so that schedules keep their state.
    init_project(tmp_path / "my_platform")
    workspace = yaml.safe_load((tmp_path / "my_platform" / "workspace.yaml").read_text())
    location = workspace["load_from"][0]["python_module"]
    assert server.name == location["location_name"]
    assert f"--module-name={location['module_name']}" in deployment.dagsterApiGrpcArgs
    claim = yaml.safe_load((KUBERNETES / "data.yaml").read_text())
    assert claim["metadata"]["name"] == deployment.volumes[0].persistentVolumeClaim.claimName
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    image = containerfile.image_environment(TEXT)
    assert [(one.name, one.mountPath) for one in deployment.volumeMounts] == [
        (deployment.volumes[0].name, image["REPLICA_DATA_DIR"])
    ]
    (user,) = re.findall(r"^USER (\d+):(\d+)$", TEXT, re.MULTILINE)
    for one in (deployment, values.dagsterWebserver, values.dagsterDaemon):
        assert one.image == deployment.image
        context = one.podSecurityContext
        assert context.runAsNonRoot
        assert (str(context.runAsUser), str(context.runAsGroup)) == user
        assert one.securityContext.capabilities == {"drop": ["ALL"]}
        assert not one.securityContext.allowPrivilegeEscalation
    assert deployment.deploymentStrategy == {"type": "Recreate"}
    # The probes ask what the health checks of the Compose file ask.
    services = compose()["services"]
    page = values.dagsterWebserver.readinessProbe["httpGet"]
    assert page.port == values.dagsterWebserver.service.port > 1023
    assert any(f":{page.port}{page.path}" in word for word in check(services["webserver"]))
    assert values.dagsterDaemon.livenessProbe.exec["command"] == check(services["daemon"])


def check(service: dict[str, Any]) -> list[str]:
    command: list[str] = service["healthcheck"]["test"][1:]
    return command


def test_the_chart_is_that_of_the_images_dagster() -> None:
    pins = dict(
        line.split("==")
        for line in (PROJECT / "constraints.txt").read_text().split()
        if "==" in line
    )
    for text in (
        (KUBERNETES / "values.yaml").read_text(),
        (PROJECT / "docs/deploy.md").read_text(),
    ):
        assert set(re.findall(r"--version (\S+)", text)) == {pins["dagster"]}


def test_the_helm_values_hold_no_secret() -> None:
    def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
        if isinstance(value, dict):
            return [leaf for name, one in value.items() for leaf in leaves(one, f"{path}.{name}")]
        if isinstance(value, list):
            return [leaf for one in value for leaf in leaves(one, path)]
        return [(path, value)]

    suspicious = {
        path
        for path, value in leaves(yaml.safe_load((KUBERNETES / "values.yaml").read_text()))
        if containerfile.SECRET.search(path.rpartition(".")[2]) or "://" in str(value)
    }
    assert suspicious == {".global.postgresqlSecretName", ".generatePostgresqlPasswordSecret"}
    assert not helm_values().generatePostgresqlPasswordSecret


def test_the_instance_of_the_chart_works_as_that_of_a_project(tmp_path: Path) -> None:
    values = helm_values()
    monitoring, retries = values.dagsterDaemon.runMonitoring, values.dagsterDaemon.runRetries
    assert values.dagsterDaemon.runCoordinator.enabled
    assert values.concurrency.enabled
    assert values.retention.enabled
    # As the chart's template writes it.
    instance = {
        "concurrency": {
            "runs": {"max_concurrent_runs": values.concurrency.runs["maxConcurrentRuns"]},
            "pools": {
                "granularity": values.concurrency.pools.granularity,
                "default_limit": values.concurrency.pools.defaultLimit,
            },
        },
        "run_monitoring": {
            "enabled": monitoring.enabled,
            "start_timeout_seconds": monitoring.startTimeoutSeconds,
            "max_runtime_seconds": monitoring.maxRuntimeSeconds,
            "free_slots_after_run_end_seconds": monitoring.freeSlotsAfterRunEndSeconds,
        },
        "run_retries": {
            "enabled": retries.enabled,
            "max_retries": retries.maxRetries,
            "retry_on_asset_or_op_failure": retries.retryOnAssetOrOpFailure,
        },
        "python_logs": {"python_log_level": values.pythonLogs["pythonLogLevel"]},
        "telemetry": values.telemetry,
        "retention": {
            "schedule": {"purge_after_days": values.retention.schedule["purgeAfterDays"]},
            "sensor": {"purge_after_days": values.retention.sensor["purgeAfterDays"]},
        },
    }
    project = yaml.safe_load(INSTANCE.read_text())
    assert instance == {name: project[name] for name in instance}
    assert project.keys() - instance.keys() == {"storage", "run_queue", "nux"}
    queue = values.dagsterDaemon.runCoordinator.config["queuedRunCoordinator"]
    assert project["run_queue"] == {"dequeue_interval_seconds": queue.dequeueIntervalSeconds}
    launcher = values.runLauncher.config["customRunLauncher"].model_dump(by_alias=True)
    coordinator = {"module": "dagster", "class": "QueuedRunCoordinator"}
    config = {"config": project["run_queue"]}
    assert_valid(
        instance | {"run_launcher": launcher, "run_coordinator": coordinator | config}, tmp_path
    )
    # Dagster refuses a limit that is said twice.
    twice = {"config": {"max_concurrent_runs": 4}}
    with pytest.raises(DagsterInvalidConfigError, match="max_concurrent_runs"):
        assert_valid(instance | {"run_coordinator": coordinator | twice}, tmp_path)


def test_the_values_of_a_cluster_are_its_instance(tmp_path: Path) -> None:
    text = (KUBERNETES / "cluster-values.yaml").read_text()
    both = merged(yaml.safe_load((KUBERNETES / "values.yaml").read_text()), yaml.safe_load(text))
    for part in ("dagsterWebserver", "dagsterDaemon"):
        assert both[part].pop("envSecrets") == [{"name": "replica-platform-cluster"}]
    coordinator = both["dagsterDaemon"]["runCoordinator"]["config"].pop("customRunCoordinator")
    values = Values.model_validate(both)
    assert values.dagsterDaemon.runCoordinator.type == "CustomRunCoordinator"
    launcher = values.runLauncher.config["customRunLauncher"].model_dump(by_alias=True)
    project = yaml.safe_load(INSTANCE.with_name("cluster.yaml").read_text())
    assert launcher == project["run_launcher"]
    most = {"max_concurrent_runs": values.concurrency.runs["maxConcurrentRuns"]}
    own = project["run_coordinator"]
    assert coordinator | {"config": coordinator["config"] | most} == own
    monitoring, retries = values.dagsterDaemon.runMonitoring, values.dagsterDaemon.runRetries
    ours = project["run_monitoring"]
    assert monitoring.pollIntervalSeconds == ours["poll_interval_seconds"]
    assert monitoring.startTimeoutSeconds == ours["start_timeout_seconds"]
    assert retries.maxRetries == project["run_retries"]["max_retries"]
    assert_valid(
        {
            "run_launcher": launcher,
            "run_coordinator": coordinator,
            "concurrency": {"runs": most, "pools": project["concurrency"]["pools"]},
        },
        tmp_path,
    )


def test_the_workers_are_those_of_the_compose_file() -> None:
    objects = list(yaml.safe_load_all((KUBERNETES / "workers.yaml").read_text()))
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in objects
        if one["kind"] == "StatefulSet"
    }
    assert set(pods) == {"replica-broker", *WORKERS}
    services = compose(cluster=True)["services"]
    values = helm_values()
    (location,) = values.user_deployments.deployments
    for name in WORKERS:
        pod, service = pods[name], services[name]
        (container,) = pod["containers"]
        assert container["command"] == service["command"]
        assert container["livenessProbe"]["exec"]["command"] == service["healthcheck"]["test"][1:]
        assert f"{pod['terminationGracePeriodSeconds']}s" == service["stop_grace_period"]
        assert container["image"] == f"{location.image.repository}:{location.image.tag}"
        assert pod["securityContext"] == location.podSecurityContext.model_dump()
        assert container["securityContext"] == location.securityContext.model_dump()
    (redis,) = pods["replica-broker"]["containers"]
    assert redis["command"] == services["broker"]["command"]
    assert redis["image"] == services["broker"]["image"]
    claim = yaml.safe_load((KUBERNETES / "data.yaml").read_text())["metadata"]["name"]
    (data,) = [one for one in pods["worker-central"]["volumes"] if one["name"] == "data"]
    assert data["persistentVolumeClaim"]["claimName"] == claim


def assert_valid(given: dict[str, Any], folder: Path) -> None:
    """Assert that Dagster accepts this as its `dagster.yaml`, and that it has the classes."""
    (folder / "dagster.yaml").write_text(yaml.safe_dump(given))
    dagster_instance_config(str(folder))
    for one in given.values():
        if isinstance(one, dict) and "class" in one:
            assert hasattr(importlib.import_module(one["module"]), one["class"]), one
