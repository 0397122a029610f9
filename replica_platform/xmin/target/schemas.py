"""Schemas of the target: the sync's, and those of the target tables."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.errors import MissingGrant

SCHEMA = "replica_platform"


def create_schema(target: psycopg.Connection, schema: str) -> None:
    """Create a schema when it is absent.

    Raises:
        MissingGrant: The role may not create schemas.
    """
    absent = target.execute("select to_regnamespace(quote_ident(%s)) is null", [schema])
    if not one_value(absent):
        return
    create = sql.SQL("create schema if not exists {}").format(sql.Identifier(schema))
    # IF NOT EXISTS fails beside another session that does the same; then the schema is there.
    made_meanwhile = suppress(psycopg.errors.UniqueViolation, psycopg.errors.DuplicateSchema)
    with made_meanwhile, naming_the_grant(target, f"{schema!r}"), target.transaction():
        target.execute(create)


@contextmanager
def naming_the_grant(target: psycopg.Connection, schema: str) -> Iterator[None]:
    """Name the GRANT that is missing when the role may not create a schema.

    Raises:
        MissingGrant: The role may not create schemas.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        database, role = sql.Identifier(target.info.dbname), sql.Identifier(target.info.user)
        raise MissingGrant(
            f"The target role may not create the schema {schema}; run there: GRANT CREATE ON "
            f"DATABASE {database.as_string()} TO {role.as_string()};"
        ) from error
