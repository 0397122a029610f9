"""Alerts are told once, and reach a real webhook and a real mail server, or wait for them."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from replica_platform.app.alerts.deliver import deliver
from replica_platform.app.alerts.ledger import MOST_WAITING, Ledger
from replica_platform.app.alerts.receivers import (
    LogReceiver,
    MailReceiver,
    NotDelivered,
    Receiver,
    WebhookReceiver,
    mail_server,
)
from replica_platform.app.alerts.trouble import Trouble
from replica_platform.app.settings import Settings
from replica_platform.resources.alerts import alert_receivers
from replica_platform_tests.app.alert_servers import Webhook, certificate, mail_host, webhook
from replica_platform_tests.conftest import Cli

UI = "http://127.0.0.1:3000"


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as made:
        yield made


def trouble(number: int, **more: object) -> Trouble:
    fields = {"key": f"check:t{number}", "what": f"Check is_intact of t{number} is red"}
    return Trouble(**fields | {"why": "3 keys are missing.", "since": 0.0, "page": "/a"} | more)


class Told:
    """Looks one after the other, each with the ledger that the last one left."""

    def __init__(self, *receivers: Receiver) -> None:
        self.receivers, self.cursor, self.now = receivers, "", 60.0

    def look(self, *found: Trouble) -> list[str]:
        ledger = Ledger.read(self.cursor, UI)
        ledger.note(found, [one.name for one in self.receivers], self.now)
        problems = deliver(ledger, self.receivers)
        self.cursor, self.now = ledger.cursor(), self.now + 60
        return problems


@pytest.mark.parametrize("count", [0, 1, 2, 45])
def test_each_trouble_is_told_once_until_it_ends(hook: Webhook, count: int) -> None:
    told = Told(WebhookReceiver(hook.url))
    found = [trouble(number) for number in range(count)]
    for _ in range(3):
        assert told.look(*found) == []
    assert hook.lines == [
        f"🔴 Check is_intact of t{number} is red since 1970-01-01 00:00 UTC: "
        f"3 keys are missing. {UI}/a"
        for number in range(count)
    ]
    assert hook.requests == -(-count // 20)
    hook.taken.clear()
    told.look(*found[1:])
    told.look(*found[1:])
    over = "✅ Recovered after 4 minutes: Check is_intact of t0 is red since 1970-01-01 00:00 UTC. "
    assert hook.lines == [f"{over}{UI}/a"][:count]
    hook.taken.clear()
    told.look(*found)  # it is there again: another trouble
    assert len(hook.lines) == min(count, 1)


@pytest.mark.parametrize("status", [302, 307, 400, 403, 404, 410, 429, 500, 503])
def test_a_webhook_that_refuses_is_asked_again_and_nothing_is_lost(
    hook: Webhook, status: int
) -> None:
    told = Told(WebhookReceiver(hook.url))
    hook.status, hook.headers = status, {"Location": hook.url}
    (problem,) = told.look(trouble(1))
    assert f"answers {status}" in problem and "1 messages wait" in problem
    assert "REPLICA_ALERT_WEBHOOK" in problem and "open-sesame" not in problem
    assert hook.requests == 1 and hook.taken == []
    told.look(trouble(1))
    told.look(trouble(2))  # the first one is over, and nobody has heard of it
    hook.status = 200
    assert told.look(trouble(2)) == []
    assert [line.partition(" is red")[0] for line in hook.lines] == [
        "🔴 Check is_intact of t1",
        "✅ Recovered after 3 minutes: Check is_intact of t1",
        "🔴 Check is_intact of t2",
    ]
    assert told.look(trouble(2)) == [] and len(hook.taken) == 1


def test_a_webhook_that_is_down_or_silent_does_not_hold_up_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replica_platform.app.alerts.receivers.TIMEOUT_S", 0.2)
    with socket.socket() as silent, caplog.at_level(logging.INFO):
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/open-sesame"
        told = Told(LogReceiver(logging.getLogger("alerts")), WebhookReceiver(url))
        (refused,) = told.look(trouble(1))
        silent.listen()
        (mute,) = told.look()
    assert [one.levelname for one in caplog.records] == ["ERROR", "INFO"]
    assert "does not answer" in refused and "1 messages wait" in refused
    assert "does not answer" in mute and "2 messages wait" in mute
    assert "open-sesame" not in refused + mute + repr(told.receivers)


def test_a_warning_that_passes_by_is_not_told(hook: Webhook) -> None:
    told = Told(WebhookReceiver(hook.url))
    warning = trouble(1, since=60.0, patience_s=120.0)
    told.look(warning)
    told.look()
    assert hook.lines == []
    for _ in range(3):
        told.look(trouble(1, since=told.now, patience_s=120.0))  # evaluated anew at each look
    assert len(hook.lines) == 1
    told.look()
    assert "✅ Recovered after 3 minutes" in hook.lines[1]


def test_a_new_receiver_is_told_what_lasts(hook: Webhook) -> None:
    told = Told(LogReceiver(logging.getLogger("alerts")))
    told.look(trouble(1), trouble(2))
    told.receivers = (*told.receivers, WebhookReceiver(hook.url))
    told.look(trouble(2), trouble(3))
    assert [line[:23] for line in hook.lines] == [
        "🔴 Check is_intact of t2",
        "✅ Recovered after 2 min",
        "🔴 Check is_intact of t3",
    ]


def test_what_waits_is_bounded_and_what_lasts_is_kept(hook: Webhook) -> None:
    told = Told(WebhookReceiver(hook.url))
    hook.status = 503
    told.look(trouble(0))
    for number in range(MOST_WAITING):
        told.look(trouble(0), trouble(1, key=f"flaps:{number}"))
    assert len(Ledger.read(told.cursor, UI).waiting["webhook"]) <= MOST_WAITING
    hook.status = 200
    while told.look(trouble(0)) or hook.lines == []:
        pass
    assert hook.lines[0].startswith("🔴 Check is_intact of t0")


def test_what_slack_would_read_as_a_link_is_escaped(hook: Webhook) -> None:
    Told(WebhookReceiver(hook.url)).look(trouble(1, why="a < b & c > d <!channel>\nTraceback"))
    (line,) = hook.lines
    assert "a &lt; b &amp; c &gt; d &lt;!channel&gt; Traceback" in line


def test_a_cursor_of_another_format_begins_anew() -> None:
    assert Ledger.read('{"format": 0}', UI) == Ledger(UI)


def test_mail_is_sent_to_each_address_and_waits_for_those_that_are_refused() -> None:
    with mail_host() as (host, port):
        settings = Settings(
            _env_file=None,
            alert_mail_server=f"smtp://127.0.0.1:{port}",
            alert_mail_to="ada@example.com, bob@example.com",
        )
        told = Told(*alert_receivers(settings).others)
        host.refused = {"bob@example.com"}
        (problem,) = told.look(trouble(1), trouble(2, why="Ünïcode\nin two lines"))
        assert "refuses the address for bob@example.com" in problem and "2 messages" in problem
        host.refused = set()
        assert told.look(trouble(1)) == []
    assert [(one["To"], one["From"]) for one in host.taken] == [
        ("ada@example.com", "ada@example.com"),
        ("ada@example.com", "ada@example.com"),
        ("bob@example.com", "ada@example.com"),
    ]
    first, over, late = (one.get_content() for one in host.taken)
    assert "t1 is red" in first and "Ünïcode in two lines" in first
    assert over.startswith("✅ Recovered after")
    assert "Recovered" in late and "t1 is red" in late
    assert host.taken[0]["Subject"].endswith("(and 1 more)")


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("implicit", [False, True])
def test_a_password_is_sent_over_tls_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, implicit: bool
) -> None:
    trusted = certificate(tmp_path / "certificate.pem")
    with mail_host(trusted, implicit=implicit) as (host, port):
        scheme = "smtps" if implicit else "smtp"
        server = mail_server(f"{scheme}://ops%40example.com@localhost:{port}")
        receiver = MailReceiver("ada@example.com", "ops@example.com", server, "open-sesame")
        (untrusted,) = Told(receiver).look(trouble(1))
        assert "certificate" in untrusted and host.logins == []
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert Told(receiver).look(trouble(1)) == []
        assert host.logins == [(b"ops@example.com", b"open-sesame")] and len(host.taken) == 1
        wrong = MailReceiver("ada@example.com", "ops@example.com", server, "abracadabra")
        (refused,) = Told(wrong).look(trouble(1))
        assert "refuses the login (535)" in refused and "REPLICA_ALERT_MAIL_SERVER" in refused
        assert "abracadabra" not in refused + repr(wrong)


def test_a_server_without_tls_gets_no_password() -> None:
    with mail_host() as (host, port):
        server = mail_server(f"smtp://ops@127.0.0.1:{port}")
        with pytest.raises(NotDelivered, match="offers no encryption"):
            ledger = Ledger.read(None, UI)
            ledger.note([trouble(1)], ["x"], 60.0)
            MailReceiver("a@b", "a@b", server, "open-sesame").send(ledger.waiting["x"])
    assert host.logins == [] and host.taken == []


def test_a_mail_server_that_is_down_is_asked_again() -> None:
    with mail_host() as (_, port):
        pass
    receiver = MailReceiver("a@b", "a@b", mail_server(f"smtp://127.0.0.1:{port}"))
    told = Told(receiver)
    (problem,) = told.look(trouble(1))
    assert "does not answer" in problem and "1 messages wait" in problem


WRONG = {
    "hooks.example.com/open-sesame": "write it whole",
    "file:///open-sesame": "not the address of a webhook",
    "https://": "not the address of a webhook",
    "https://h:open-sesame/x": "not the address of a webhook",
    "https://h/open sesame": "not the address of a webhook",
}


@pytest.mark.parametrize(("url", "word"), WRONG.items())
def test_a_wrong_webhook_is_refused_without_its_address(url: str, word: str) -> None:
    with pytest.raises(ValidationError, match=word) as raised:
        Settings(_env_file=None, alert_webhook=url)
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"server": "mail.example.com"}, "smtps://user@mail.example.com:465"),
        ({"server": "smtps://ops:sesame@h"}, "belongs into REPLICA_ALERT_MAIL_PASSWORD"),
        ({"server": "smtps://h"}, "needs the addresses"),
        ({"to": "a@b"}, "it needs REPLICA_ALERT_MAIL_SERVER"),
        ({"server": "smtps://h", "to": "a@b, c"}, "'c' is not an address"),
    ],
)
def test_wrong_mail_settings_are_refused(settings: dict[str, str], word: str) -> None:
    with pytest.raises(ValidationError, match=word) as raised:
        Settings(_env_file=None, **{f"alert_mail_{name}": one for name, one in settings.items()})
    assert "sesame" not in str(raised.value)


def test_a_command_names_the_wrong_setting_without_its_value(cli: Cli) -> None:
    done = cli("env", REPLICA_ALERT_WEBHOOK="hooks.example.com/open-sesame")
    assert done.returncode == 1
    assert "The setting REPLICA_ALERT_WEBHOOK is not valid" in done.stderr
    assert "sesame" not in done.stderr


def test_the_receivers_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert alert_receivers(Settings(_env_file=None)).others == ()
    for name, value in {
        "WEBHOOK": "https://hooks.example.com/open-sesame",
        "MAIL_SERVER": "smtps://ops@mail.example.com",
        "MAIL_PASSWORD": "open-sesame",
        "MAIL_FROM": "platform@example.com",
        "MAIL_TO": "ada@example.com,bob@example.com,",
    }.items():
        monkeypatch.setenv(f"REPLICA_ALERT_{name}", value)
    monkeypatch.setenv("REPLICA_UI_URL", "https://dagster.example.com/")
    settings = Settings(_env_file=None)
    receivers = alert_receivers(settings)
    assert receivers.ui_url == "https://dagster.example.com"
    assert [one.name for one in receivers.others] == [
        "webhook", "mail to ada@example.com", "mail to bob@example.com",
    ]  # fmt: skip
    assert {one.sender for one in receivers.others[1:]} == {"platform@example.com"}
    assert "open-sesame" not in f"{receivers!r} {receivers.others!r} {settings!r}"
    assert "open-sesame" not in str(settings.environment())
