"""The example with a real Celery worker: when it is killed, every saved conversation arrives."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from replica_platform.outbox import backlog, drain

pytest.importorskip("celery", reason="pip install celery")

ROOT = Path(__file__).parents[2]
TABLE = "create table conversations (id uuid primary key, user_id int, message text, response text)"
MAPPING = {
    "conversation": {"table": "conversations", "columns": ["id", "user_id", "message", "response"]}
}


@contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with two processes; at the end, what still runs of it is killed."""
    arguments = ["-A", "examples.celery_worker", "worker", "--concurrency=2", "--loglevel=INFO"]
    arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def send(environment: dict[str, str], n: int) -> list[str]:
    """Send from another process, as a web server would."""
    ids = [str(uuid.uuid4()) for _ in range(n)]
    program = (
        "import sys\n"
        "from examples.celery_worker import save_conversation\n"
        "for n, id in enumerate(sys.argv[1:]):\n"
        "    save_conversation.delay(id, n, f'question {n}', f'answer {n}')\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, *ids], cwd=ROOT, env=os.environ | environment, check=True
    )
    return ids


def until_saved(folder: Path, n: int, log: Path) -> None:
    end = time.monotonic() + 60
    while backlog([folder]).pending < n:
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGKILL])
def test_every_saved_conversation_arrives(
    tmp_path: Path, target: str, death: signal.Signals
) -> None:
    for name in ("queue", "control"):
        (tmp_path / "broker" / name).mkdir(parents=True)
    outbox_dir, log = tmp_path / "outbox", tmp_path / "worker.log"
    environment = {"BROKER_DIR": str(tmp_path / "broker"), "OUTBOX_DIR": str(outbox_dir)}
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(TABLE)
    ids = send(environment, 40)
    with worker(environment, log) as first:
        until_saved(outbox_dir, 20, log)
        if death == signal.SIGTERM:
            first.terminate()
            first.wait(30)
        else:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait(30)
    ids += send(environment, 10)
    with worker(environment, log) as second:
        # Tasks that a killed worker had taken from a folder broker without starting them are lost
        # by the broker; the outbox keeps those whose append returned.
        until_saved(outbox_dir, 50 if death == signal.SIGTERM else 30, log)
        second.terminate()
        second.wait(30)
    saved = backlog([outbox_dir]).pending
    report = drain([outbox_dir], target, mappings=MAPPING)
    assert (report.delivered + report.absorbed, report.ok) == (saved, True)
    with psycopg.connect(target) as connection:
        arrived = {
            id for (id,) in connection.execute("select id::text from conversations").fetchall()
        }
    print(
        f"\nCelery, {death.name}: {len(ids)} sent, {saved} saved, {len(arrived)} arrived, "
        f"{report.absorbed} run twice, files: {[Path(one.path).name for one in report.files]}"
    )
    assert arrived <= set(ids)
    assert len(arrived) == report.delivered
    if death == signal.SIGTERM:
        assert arrived == set(ids)
