"""The receivers of alerts: the log, a webhook that takes Slack's JSON, and mail.

No text of an error has the webhook's address or a password in it.
"""

import json
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.client import HTTPException
from logging import Logger
from typing import IO, Protocol
from urllib.parse import unquote, urlsplit

from replica_platform.app.alerts.ledger import Message
from replica_platform.app.alerts.trouble import one_line
from replica_platform.core.errors import TransientError

TIMEOUT_S = 10.0


class NotDelivered(TransientError):
    """A receiver did not take a message; it waits, and is sent again at the next look."""


class Receiver(Protocol):
    """Who is told."""

    @property
    def name(self) -> str:
        """The name that its waiting messages are kept under; without secrets."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send some messages as one.

        Raises:
            NotDelivered: They were not taken; the text says why, and what to do.
        """


@dataclass(frozen=True)
class LogReceiver:
    """The daemon's log, with a line for each message: an error, or the information of its end."""

    log: Logger
    name: str = "log"

    def send(self, messages: Sequence[Message]) -> None:
        """Write the lines."""
        for one in messages:
            (self.log.info if one.over else self.log.error)(one.text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are refused: a POST that is redirected becomes a GET, and the message is lost."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, *_: object
    ) -> None:
        return None


@dataclass(frozen=True)
class WebhookReceiver:
    """A webhook that takes `{"text": …}`: of Slack, Mattermost, Teams' workflows and others.

    Attributes:
        url: Its address, which is a secret.
        name: The name that its waiting messages are kept under.
    """

    url: str = field(repr=False)
    name: str = "webhook"

    def send(self, messages: Sequence[Message]) -> None:
        """Send some messages as one text, a line each.

        Raises:
            NotDelivered: It does not answer, or not with a success.
        """
        text = "\n".join(_mark(one) + _escaped(one.text) for one in messages)
        request = urllib.request.Request(
            self.url, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}
        )
        problem = ""
        try:
            opener = urllib.request.build_opener(_NoRedirect)
            with opener.open(request, timeout=TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"answers {error.code}"
        except urllib.error.URLError as error:
            problem = f"does not answer ({error.reason})"
        except (OSError, HTTPException, ValueError) as error:
            problem = f"does not answer ({type(error).__name__})"
        # Not `from error`: the address may be in it.
        raise NotDelivered(f"The webhook {problem}; if that stays, correct REPLICA_ALERT_WEBHOOK.")


def _mark(message: Message) -> str:
    return "✅ " if message.over else "🔴 "


def _escaped(text: str) -> str:
    """Return a text as Slack takes it: these three characters would begin a link or an entity."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(frozen=True)
class MailServer:
    """A server that takes mail.

    Attributes:
        host: Its name.
        port: Its port.
        tls: Whether the connection is encrypted from its beginning; otherwise by STARTTLS, if the
            server offers that.
        user: The user to log in as; None for no login.
    """

    host: str
    port: int
    tls: bool
    user: str | None


def mail_server(url: str) -> MailServer:
    """Return the server of an address such as `smtps://user@mail.example.com:465`.

    Raises:
        ValueError: It is not such an address; the text does not repeat it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("smtp", "smtps"):
        raise ValueError(
            "write it as smtps://user@mail.example.com:465, or smtp://user@mail.example.com:587 "
            "for STARTTLS"
        )
    if parts.password is not None:
        raise ValueError("the password belongs into REPLICA_ALERT_MAIL_PASSWORD")
    tls = parts.scheme == "smtps"
    user = unquote(parts.username) if parts.username else None
    return MailServer(host, port or (465 if tls else 587 if user else 25), tls, user)


def webhook_url(url: str) -> str:
    """Return the address of a webhook.

    Raises:
        ValueError: It is not an address of the web; the text does not repeat it.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            "it is not the address of a webhook; write it whole, as https://hooks.example.com/…"
        )
    return url


@dataclass(frozen=True)
class MailReceiver:
    """One address that gets mail.

    Attributes:
        to: The address.
        sender: The address that it comes from.
        server: The server that takes it.
        password: The password of the server's user.
    """

    to: str
    sender: str
    server: MailServer
    password: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name that its waiting messages are kept under."""
        return f"mail to {self.to}"

    def send(self, messages: Sequence[Message]) -> None:
        """Send some messages as one mail, a line each.

        Raises:
            NotDelivered: The server does not answer, or refuses the login or the mail.
        """
        mail = EmailMessage()
        mail["From"], mail["To"] = self.sender, self.to
        mail["Subject"] = _subject(messages)
        mail.set_content("\n\n".join(_mark(one) + one.text for one in messages) + "\n")
        server = self.server
        problem = ""
        try:
            with self._connected() as smtp:
                if server.user:
                    smtp.login(server.user, self.password or "")
                smtp.send_message(mail)
                return
        except smtplib.SMTPAuthenticationError as error:
            problem = f"refuses the login ({error.smtp_code})"
        except smtplib.SMTPRecipientsRefused:
            problem = "refuses the address"
        except smtplib.SMTPResponseException as error:
            problem = f"answers {error.smtp_code}"
        except smtplib.SMTPException as error:
            problem = f"refuses the mail ({one_line(str(error))})"
        except OSError as error:
            problem = f"does not answer ({one_line(str(error))})"
        raise NotDelivered(
            f"The mail server {server.host} {problem} for {self.to}; if that stays, correct "
            "REPLICA_ALERT_MAIL_SERVER, _PASSWORD or _TO."
        )

    def _connected(self) -> smtplib.SMTP:
        """Return an open connection, encrypted if the server can; a password needs that."""
        server, trusted = self.server, ssl.create_default_context()
        if server.tls:
            return smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_S, context=trusted)
        smtp = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_S)
        try:
            smtp.ehlo()
            if smtp.has_extn("starttls"):
                smtp.starttls(context=trusted)
            elif server.user:
                raise smtplib.SMTPNotSupportedError(
                    "it offers no encryption, without which no password is sent"
                )
        except BaseException:
            smtp.close()
            raise
        return smtp


def _subject(messages: Sequence[Message]) -> str:
    """Return the first message in short, and how many there are."""
    first = one_line(messages[0].text)
    short = first if len(first) <= 90 else f"{first[:89]}…"
    return short if len(messages) == 1 else f"{short} (and {len(messages) - 1} more)"
