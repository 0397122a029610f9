"""A broker that is not there, refuses, or would forget; and what a worker is told."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replica_platform.cluster.broker import ForgetfulBroker, NoBroker, answers, assert_kept
from replica_platform_tests.conftest import Cli

pytest.importorskip("redis", reason="the extra `cluster` is not installed")
NO_SERVER = shutil.which("redis-server") is None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A function that starts a Redis with options and returns its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            "redis-server",
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(tmp_path),
        ]
        started.append(subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL))
        url = f"redis://127.0.0.1:{port}/0"
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return url
            time.sleep(0.05)
        raise AssertionError("redis-server does not listen")

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(NO_SERVER, reason="redis-server is not installed")
def test_a_broker_that_forgets_is_refused(redis_server: Callable[..., str], cli: Cli) -> None:
    url = redis_server("--appendonly", "no")
    assert answers(url)
    with pytest.raises(ForgetfulBroker, match="`appendonly` is no"):
        assert_kept(url)
    dsn = "postgresql://nobody@127.0.0.1:1/none"
    refused = cli(
        "worker", "--host", "a",
        REPLICA_BROKER_URL=url, REPLICA_DAGSTER_DSN=dsn, REPLICA_TARGET_DSN=dsn,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "forgets its queue when it ends" in refused.stderr
    # The remedy that it names.
    subprocess.run(
        ["redis-cli", "-u", url, *["config", "set", "appendonly", "yes"]],
        check=True, capture_output=True,
    )  # fmt: skip
    assert_kept(url)


@pytest.mark.skipif(NO_SERVER, reason="redis-server is not installed")
def test_a_wrong_password_is_not_printed(redis_server: Callable[..., str]) -> None:
    url = redis_server("--appendonly", "yes", "--requirepass", "right")
    with pytest.raises(NoBroker, match="refuses the password") as refused:
        answers(url.replace("redis://", "redis://:open-sesame@"))
    assert "open-sesame" not in str(refused.value)
    assert answers(url.replace("redis://", "redis://:right@"))


def test_a_broker_that_does_not_answer() -> None:
    url = "redis://:open-sesame@127.0.0.1:1/0"
    assert not answers(url)
    with pytest.raises(NoBroker, match="does not answer") as refused:
        assert_kept(url)
    assert "open-sesame" not in str(refused.value)


def test_what_is_no_address() -> None:
    with pytest.raises(NoBroker, match="not the address of a Redis") as refused:
        answers("http://u:open-sesame@h/")
    assert "open-sesame" not in str(refused.value)


@pytest.mark.parametrize("given", [(), ("REPLICA_BROKER_URL",), ("REPLICA_DAGSTER_DSN",)])
def test_a_worker_names_what_is_missing(cli: Cli, given: tuple[str, ...]) -> None:
    values = {"REPLICA_BROKER_URL": "redis://h/0", "REPLICA_DAGSTER_DSN": "postgresql://h/d"}
    refused = cli("worker", "--host", "a", **{name: values[name] for name in given})
    assert refused.returncode == 1
    for name in {*values, "REPLICA_TARGET_DSN"} - set(given):
        assert name in refused.stderr
    assert "shares them with all hosts" in refused.stderr


@pytest.mark.parametrize(
    ("options", "settings"), [(["--host", "db-1"], {}), ([], {"REPLICA_HOST": "db-1"})]
)
def test_a_name_that_no_entry_can_have(
    cli: Cli, options: list[str], settings: dict[str, str]
) -> None:
    refused = cli("worker", *options, **settings)
    assert refused.returncode == 2
    assert "'db-1' is not a name of letters, digits and _" in refused.stderr


def test_a_worker_without_a_host(cli: Cli) -> None:
    refused = cli("worker")
    assert refused.returncode == 2
    assert "Name the host, by --host NAME or as REPLICA_HOST." in refused.stderr
