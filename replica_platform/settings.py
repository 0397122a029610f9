"""Every setting: its environment variable, its default, one sentence.

Read from the environment, then from `.env` in the working folder. Where no DSN is given the
embedded Postgres (see `embedded`) takes its place; `replica env` prints what is in force.
"""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What is configured; anything left out has a default that works on a fresh machine."""

    model_config = SettingsConfigDict(
        env_file=".env", env_prefix="REPLICA_", extra="ignore", populate_by_name=True
    )

    data_dir: Path = Field(
        Path("data"), description="Where the master, the store, outboxes and backups are kept."
    )
    source_dsn: SecretStr | None = Field(
        None, description="The Postgres that tables are synced from; embedded when absent."
    )
    target_dsn: SecretStr | None = Field(
        None, description="The Postgres that tables and records arrive in; embedded when absent."
    )
    dagster_dsn: SecretStr | None = Field(
        None, description="The Postgres that holds Dagster's own instance; embedded when absent."
    )
    xmin_workers: int | None = Field(
        None,
        alias="XMIN_WORKERS",
        ge=1,
        le=64,
        description="Connections that copy one table side by side; measured when absent.",
    )
    xmin_batch_bytes: int | None = Field(
        None,
        alias="XMIN_BATCH_BYTES",
        ge=64 * 1024,
        description="Bytes moved between two looks at the clock; measured when absent.",
    )
    port: int = Field(3000, ge=1, le=65535, description="Where `replica dev` serves its pages.")

    @property
    def master(self) -> Path:
        """The one writable DuckDB file."""
        return self.data_dir / "master" / "stock_data.duckdb"

    @property
    def store(self) -> Path:
        """The folder of published generations."""
        return self.data_dir / "replica"

    @property
    def outbox_dir(self) -> Path:
        """The folder of the workers' outbox files, one a slot."""
        return self.data_dir / "outbox"

    @property
    def backup_dir(self) -> Path:
        """The folder of verified SQLite backups."""
        return self.data_dir / "backups"
