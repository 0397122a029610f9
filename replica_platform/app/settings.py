"""Every setting, with its default and a sentence; environment variables are `REPLICA_…`.

The environment comes first, then `.env` in the working folder. A database without a DSN is in the
embedded Postgres (see `embedded`). `replica env` prints the folder and the DSNs in force.
"""

from pathlib import Path

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from replica_platform.app.alerts.receivers import mail_server, webhook_url
from replica_platform.app.embedded import server_at


class Settings(BaseSettings):
    """The settings of a platform; every default works on a fresh machine."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_prefix="REPLICA_",
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    data_dir: Path = Field(
        default=Path("data"),
        description="The folder of master, replica, outboxes and backups.",
    )
    source_dsn: SecretStr | None = Field(
        default=None, description="The Postgres that tables are synced from; embedded when absent."
    )
    target_dsn: SecretStr | None = Field(
        default=None,
        description="The Postgres that tables and records are written to; embedded when absent.",
    )
    dagster_dsn: SecretStr | None = Field(
        default=None,
        description="The Postgres of Dagster's own instance; embedded when absent.",
    )
    broker_url: SecretStr | None = Field(
        default=None,
        description="The Redis through which runs reach the workers of other hosts; everything "
        "runs on one machine when absent.",
    )
    bars: Path | None = Field(
        default=None,
        description="A folder or file of daily bars, or yfinance; the sample's when absent.",
    )
    symbols: str | None = Field(
        default=None,
        description="Files or addresses of the NASDAQ's symbol directory, comma-separated; the "
        "symbols of the bars when absent.",
    )
    watch_rules: Path | None = Field(
        default=None,
        description="A YAML file of rules for the symbols to quote; the most traded when absent.",
    )
    keep_generations: int = Field(
        default=3, ge=2, description="How many generations of the replica are kept."
    )
    block_store: str | None = Field(
        default=None,
        description="A folder or s3://bucket/prefix for a second copy of each generation.",
    )
    xmin_workers: int | None = Field(
        default=None,
        alias="XMIN_WORKERS",
        ge=1,
        le=64,
        description="Connections that copy one table in parallel; measured when absent.",
    )
    xmin_batch_bytes: int | None = Field(
        default=None,
        alias="XMIN_BATCH_BYTES",
        ge=64 * 1024,
        description="Bytes of a table that one connection reads at a time; 64 MiB when absent.",
    )
    keep_runs_days: int = Field(
        default=14,
        ge=1,
        description="Days after which runs, events and ticks leave Dagster's database.",
    )
    host: str | None = Field(
        default=None,
        description="The name of this host, where entries of `defs.yaml` files name hosts.",
    )
    sample: bool = Field(
        default=True,
        description="Whether the sample's assets and input are part of the platform; on or off.",
    )
    ui_url: str | None = Field(
        default=None,
        description="The address of the Dagster UI that alerts lead to; that of `replica dev` "
        "when absent.",
    )
    alert_webhook: SecretStr | None = Field(
        default=None,
        description="The webhook that alerts are sent to, as Slack's JSON; a secret.",
    )
    alert_mail_server: str | None = Field(
        default=None,
        description="The server that takes alerts by mail: smtps://user@host:465, or "
        "smtp://user@host:587 for STARTTLS.",
    )
    alert_mail_password: SecretStr | None = Field(
        default=None, description="The password of the mail server's user."
    )
    alert_mail_from: str | None = Field(
        default=None,
        description="The address that alerts come from; the first one that gets them when absent.",
    )
    alert_mail_to: str | None = Field(
        default=None,
        validate_default=True,
        description="The addresses that get alerts by mail, comma-separated.",
    )
    port: int = Field(
        default=3000,
        ge=1,
        le=65535,
        description="The port on which `replica dev` serves the Dagster UI.",
    )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        # Dagster's processes may have another working folder than the one that read it.
        return folder.absolute()

    @field_validator("alert_webhook")
    @classmethod
    def _is_webhook(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            webhook_url(url.get_secret_value())
        return url

    @field_validator("alert_mail_server")
    @classmethod
    def _is_mail_server(cls, url: str | None) -> str | None:
        if url is not None:
            mail_server(url)
        return url

    @field_validator("alert_mail_to")
    @classmethod
    def _are_addresses(cls, addresses: str | None, info: ValidationInfo) -> str | None:
        if "alert_mail_server" not in info.data:
            return addresses  # its own error is reported
        server = info.data["alert_mail_server"]
        if addresses is None and server is not None:
            raise ValueError("REPLICA_ALERT_MAIL_SERVER needs the addresses that get the mail")
        if addresses is not None and server is None:
            raise ValueError("it needs REPLICA_ALERT_MAIL_SERVER")
        for one in addresses_of(addresses):
            name, at, host = one.rpartition("@")
            if not (name and at and host) or not one.isprintable() or " " in one:
                raise ValueError(f"{one!r} is not an address such as ops@example.com")
        return addresses

    @property
    def alert_ui_url(self) -> str:
        """The address of the Dagster UI that alerts lead to, without a slash at its end."""
        return (self.ui_url or f"http://127.0.0.1:{self.port}").rstrip("/")

    @property
    def postgres_dir(self) -> Path:
        """The cluster of the embedded Postgres."""
        return self.data_dir / "postgres"

    @property
    def databases(self) -> dict[str, SecretStr | None]:
        """The configured DSN of each database, by its name in the embedded Postgres.

        That of the embedded Postgres itself, which `replica env` gives to other programs, is none.
        """
        own = server_at(self.postgres_dir)
        given = {
            "fds": self.source_dsn,
            "warehouse": self.target_dsn,
            "dagster": self.dagster_dsn,
        }
        return {
            name: None if dsn and dsn.get_secret_value() == own.dsn(name) else dsn
            for name, dsn in given.items()
        }

    @property
    def uses_embedded(self) -> bool:
        """Whether a database has no DSN, so that the embedded Postgres must run."""
        return None in self.databases.values()

    @property
    def source(self) -> str:
        """The DSN of the source in force."""
        return self._in_force("fds")

    @property
    def target(self) -> str:
        """The DSN of the target in force."""
        return self._in_force("warehouse")

    @property
    def dagster(self) -> str:
        """The DSN of Dagster's instance in force."""
        return self._in_force("dagster")

    def _in_force(self, database: str) -> str:
        given = self.databases[database]
        if given is not None:
            return given.get_secret_value()
        return server_at(self.postgres_dir).dsn(database)

    def environment(self) -> dict[str, str]:
        """Return the variables that give another process the same platform."""
        broker = self.broker_url
        return {
            **({"REPLICA_BROKER_URL": broker.get_secret_value()} if broker else {}),
            "REPLICA_DATA_DIR": str(self.data_dir),
            "REPLICA_SAMPLE": "on" if self.sample else "off",
            "REPLICA_SOURCE_DSN": self.source,
            "REPLICA_TARGET_DSN": self.target,
            "REPLICA_DAGSTER_DSN": self.dagster,
        }

    def path(self, path: str) -> Path:
        """Return a path below the data folder; an absolute path stays as it is."""
        return self.data_dir / path

    @property
    def store(self) -> Path:
        """The folder of the replicas that name no other one."""
        return self.data_dir / "replica"

    @property
    def outbox_dir(self) -> Path:
        """The folder of the workers' outbox files, one for each worker slot."""
        return self.data_dir / "outbox"

    @property
    def backup_dir(self) -> Path:
        """The folder of verified SQLite backups."""
        return self.data_dir / "backups"


def addresses_of(text: str | None) -> list[str]:
    """Return the addresses of a comma-separated list."""
    return [one.strip() for one in (text or "").split(",") if one.strip()]
