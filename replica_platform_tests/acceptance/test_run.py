"""`replica run` and `replica status` on a fresh machine, with the embedded Postgres."""

import json
import sys
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.embedded import running
from replica_platform_tests.conftest import Cli


def red(cli: Cli) -> dict[str, str]:
    """Return the pillars that `replica status` finds red, with their sentences."""
    finished = cli("status", "--json")
    pillars = json.loads(finished.stdout)
    assert finished.returncode == int(not all(pillar["ok"] for pillar in pillars))
    return {pillar["pillar"]: pillar["sentence"] for pillar in pillars if not pillar["ok"]}


@pytest.mark.timeout(240)
def test_run_twice_then_lose_files_and_tables(cli: Cli, folder: Path) -> None:
    data = folder / "data"
    assert set(red(cli)) == {"platform"}
    assert not data.exists()

    first = cli("run")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "12,154 rows new, 0 corrected" in first.stdout
    assert "make dev" in first.stdout
    assert first.stderr == ""
    assert red(cli) == {}

    second = cli("run")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Nothing had changed; no row was moved." in second.stdout

    (generation,) = (data / "replica" / "generations").glob("*.duckdb")
    generation.unlink()
    found = red(cli)
    assert set(found) == {"replica"}
    assert "missing" in found["replica"]

    (data / "outbox").rename(folder / "away")
    assert "There is no outbox" in red(cli)["outbox"]
    (folder / "away").rename(data / "outbox")

    with running(data / "postgres") as server, psycopg.connect(server.dsn("warehouse")) as target:
        target.execute("drop table raw_data.prices")
    assert "raw_data.prices is gone from the target" in red(cli)["warehouse"]

    repaired = cli("run")
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert red(cli) == {}


def test_configured_databases_replace_the_embedded_ones(
    cli: Cli, source: str, target: str, database: object, folder: Path
) -> None:
    assert callable(database)
    dagster = database("dagster")
    finished = cli(
        "run",
        "--json",
        REPLICA_SOURCE_DSN=source,
        REPLICA_TARGET_DSN=target,
        REPLICA_DAGSTER_DSN=dagster,
    )
    # The sample's tables are missing there, and nothing creates them.
    assert finished.returncode == 1
    assets = {one["asset"]: one for one in json.loads(finished.stdout)}
    assert "fds.prices" in " ".join(assets["raw_data/prices"]["problems"])
    assert assets["market_replica"]["ok"]
    assert not (folder / "data" / "postgres").exists()
    with psycopg.connect(source) as connection:
        assert connection.execute("select to_regnamespace('fds')").fetchone() == (None,)


def test_a_dotenv_file_is_in_force_below_the_environment(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "REPLICA_SOURCE_DSN=postgresql://u:secret@one/s\n"
        "REPLICA_TARGET_DSN=postgresql://u:secret@one/t\n"
        "REPLICA_DAGSTER_DSN=postgresql://u:secret@one/d\n"
    )
    shown = cli("env", REPLICA_TARGET_DSN="postgresql://u:secret@two/t").stdout
    assert "REPLICA_SOURCE_DSN=postgresql://u:***@one/s" in shown
    assert "REPLICA_TARGET_DSN=postgresql://u:***@two/t" in shown
    assert "secret" not in shown


def test_env_masks_and_runs_commands(cli: Cli) -> None:
    shown = cli("env", REPLICA_TARGET_DSN="postgresql://u:secret@h/d")
    assert "REPLICA_TARGET_DSN=postgresql://u:***@h/d" in shown.stdout
    assert "secret" not in shown.stdout
    program = (
        "import os, psycopg\n"
        "with psycopg.connect(os.environ['REPLICA_TARGET_DSN']) as connection:\n"
        "    print(*connection.execute('select 40 + 2').fetchone())\n"
        "raise SystemExit(3)"
    )
    ran = cli("env", sys.executable, "-c", program)
    assert ran.stdout.strip() == "42"
    assert ran.returncode == 3
