"""A red check under a real daemon: it reaches a webhook that `.env` names, and so does its end."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from replica_platform.app.drill.faults import FAULTS
from replica_platform.app.drill.sandbox import append, daemon, sandbox
from replica_platform.outbox import drain
from replica_platform_tests.app.alert_servers import webhook

WITHIN_S = 600.0


def wait_for(found: Callable[[], list[str]]) -> str:
    until = time.monotonic() + WITHIN_S
    while not (lines := found()):
        assert time.monotonic() < until
        time.sleep(0.5)
    return lines[0]


@pytest.mark.timeout(1500)
def test_a_red_check_reaches_the_webhook_and_so_does_its_end(folder: Path, torture: bool) -> None:
    if not torture:
        pytest.skip("two looks of the sensor take a minute; `make torture` runs it")
    with webhook() as hook, sandbox(folder / "box") as box:
        with (box.project / ".env").open("a") as settings:
            settings.write(f"REPLICA_ALERT_WEBHOOK={hook.url}\n")
            settings.write("REPLICA_UI_URL=https://dagster.example.com\n")
        what = "Check nothing_is_missing of orders is red since"
        with daemon(box, off=["orders_repair"]):
            FAULTS["records-deleted"].damage(box)
            red = wait_for(lambda: [line for line in hook.lines if line.startswith(f"🔴 {what}")])
            assert red.endswith("https://dagster.example.com/assets/orders?view=checks")
            # By hand, as the sentence and the page of operations say.
            drain([box.data / "orders"], box.dsn("target"), repair=True)
            append(box, "orders", 1)
            over = wait_for(lambda: [line for line in hook.lines if line.startswith("✅")])
            assert what in over
        assert FAULTS["records-deleted"].is_healed(box)
        assert [line for line in hook.lines if what in line] == [red, over]
        logged = box.log.read_text()
        assert what in logged and "open-sesame" not in logged
