"""Where a lake is: its catalog, the schema in it, and its data; and the secrets of both."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from replica_platform.core.postgres import mask_dsn
from replica_platform.lake.errors import WrongLake

# Under this name a lake is attached.
NAME = "lake"


@dataclass(frozen=True)
class Lake:
    """A DuckLake: tables as Parquet files, and a catalog in Postgres that many writers share.

    Attributes:
        catalog: The DSN of the catalog's database; never part of `repr`.
        schema: The schema of that database that holds the catalog, for this lake alone.
        data: The folder of the Parquet files, or s3://bucket/prefix; for this lake alone. The
            environment, with the names of the AWS tools, has the credentials of a bucket.
    """

    catalog: str = field(repr=False)
    schema: str
    data: str

    def __post_init__(self) -> None:
        if "://" in self.data:
            if not self.data.startswith("s3://") or not self.data.removeprefix("s3://").strip("/"):
                raise WrongLake(
                    f"{mask_dsn(self.data)} is no place for a lake's data; name a folder or "
                    "s3://bucket/prefix."
                )
        else:
            object.__setattr__(self, "data", str(Path(self.data).absolute()))
        object.__setattr__(self, "data", self.data.rstrip("/") + "/")
        try:
            conninfo_to_dict(self.catalog)
        except psycopg.ProgrammingError:
            # Not repeated: nobody knows where in it the password is.
            raise WrongLake(
                f"What is given as the catalog of the lake {self.schema} is no connection string; "
                "write it as postgresql://user:password@host:5432/database."
            ) from None

    @property
    def in_bucket(self) -> bool:
        """Whether the data is in a bucket."""
        return "://" in self.data

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the connection to the catalog, the password included."""
        return {name: str(value) for name, value in conninfo_to_dict(self.catalog).items()}

    def masked(self, text: str) -> str:
        """Return a text, such as an error of DuckDB, without the secrets of this lake."""
        secrets = [self.parameters.get("password"), *map(os.environ.get, SECRET_VARIABLES)]
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, "***").replace(secret.replace("'", "''"), "***")
        return mask_dsn(text)


SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD")


def bucket_options(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the options of DuckDB's secret for a bucket, from the variables of the AWS tools."""
    options = {
        "key_id": environment.get("AWS_ACCESS_KEY_ID"),
        "secret": environment.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": environment.get("AWS_SESSION_TOKEN"),
        "region": environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"),
    }
    if endpoint := environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"):
        scheme, _, address = endpoint.rpartition("://")
        options |= {
            "endpoint": address.rstrip("/"),
            "url_style": "path",
            "use_ssl": "false" if scheme == "http" else "true",
        }
    return {name: value for name, value in options.items() if value}
