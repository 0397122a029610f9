"""A look at a database before its tables are synced: keys, sizes, secrets, rights, the first copy.

The catalog answers all of it; no row is read.
"""

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

from replica_platform.core.postgres import CannotConnect, connect
from replica_platform.core.reports import DoneReport, format_age, format_bytes
from replica_platform.xmin.copy.measure import measure_speed
from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.listing import ListedColumn, ListedTable, list_tables

# Where no target is there to measure: what two small servers in one network reach.
ASSUMED_BYTES_PER_S = 50e6

SECRET_WORDS = frozenset(
    {
        *("credential", "credentials", "otp", "passphrase", "passwd", "password", "passwords"),
        *("apikey", "privatekey", "psk", "pwd", "secret", "secrets", "token", "tokens", "totp"),
        *("cvc", "cvv", "iban", "ssn"),
    }
)
SECRET_PAIRS = frozenset(
    {("access", "key"), ("api", "key"), ("auth", "key"), ("card", "number"), ("private", "key")}
)
# A number or a time is no secret: `token_count`, `password_changed_at`.
SECRET_TYPES = ("text", "character", "bytea", "json", "uuid", "citext")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_MISSING_GRANTS = """
select n.nspname, c.relname, array_remove(array[
    case when not has_schema_privilege(n.oid, 'usage')
        then format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, current_user) end,
    case when not has_table_privilege(c.oid, 'select')
        then format('GRANT SELECT ON %I.%I TO %I', n.nspname, c.relname, current_user) end
], null) missing
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p')
    and not (has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'))
"""


@dataclass(frozen=True)
class SurveyedTable:
    """A table that could be synced.

    Attributes:
        listed: What the catalog says of it.
        secrets: Columns that look like secrets by name and type, without those of the key.
        refusal: Why it should be left out; None where it can be synced.
    """

    listed: ListedTable
    secrets: tuple[str, ...] = ()
    refusal: str | None = None

    @property
    def name(self) -> TableName:
        """Its name."""
        return self.listed.name


@dataclass(frozen=True)
class Survey(DoneReport):
    """The tables of a database, and what a first copy of them takes.

    Attributes:
        database: The name of the database.
        tables: Its tables, by schema and name.
        views: Its views and foreign tables, which a sync takes by name only.
        bytes_per_s: The speed that the first copy is reckoned with.
        measured: Whether that speed was measured between both servers.
    """

    database: str
    tables: Sequence[SurveyedTable]
    views: Sequence[TableName] = field(default=())
    bytes_per_s: float = ASSUMED_BYTES_PER_S
    measured: bool = False

    @property
    def proposed(self) -> list[SurveyedTable]:
        """The tables that can be synced."""
        return [table for table in self.tables if table.refusal is None]

    @property
    def bytes(self) -> int:
        """The size of the proposed tables, without indexes."""
        return sum(table.listed.bytes for table in self.proposed)

    @property
    def first_copy_s(self) -> float:
        """About how long the first copy takes, in seconds."""
        return self.bytes / self.bytes_per_s

    @property
    def sentence(self) -> str:
        """What was found, in figures."""
        proposed = self.proposed
        unkeyed = sum(not table.listed.key for table in proposed)
        secret = sum(bool(table.secrets) for table in proposed)
        how = "measured" if self.measured else "assumed"
        return (
            f"{self.database} has {len(self.tables)} tables, of which {len(proposed)} can be "
            f"synced: {format_bytes(self.bytes)}, {unkeyed} without a key, {secret} with columns "
            f"that look like secrets. The first copy takes about {format_age(self.first_copy_s)} "
            f"at {format_bytes(self.bytes_per_s)}/s ({how})."
        )


def survey(
    source_dsn: str, target_dsn: str | None = None, *, schemas: Collection[str] = ()
) -> Survey:
    """Return what a database holds that could be synced.

    Args:
        source_dsn: The database.
        target_dsn: Where it would be copied to, to measure the speed; a usual speed is taken when
            absent or away.
        schemas: The schemas to look at; all when empty.

    Raises:
        CannotConnect: The database does not answer.
        CannotSync: A database refused the question.
    """
    found = [
        table for table in list_tables(source_dsn) if not schemas or table.name.schema in schemas
    ]
    with (
        connect(source_dsn, autocommit=True) as source,
        translate_errors("source", "the list of tables"),
    ):
        database = source.info.dbname
        grants = {
            TableName(schema, table): missing
            for schema, table, missing in source.execute(_MISSING_GRANTS)
        }
        speed = None
        # A target that is away costs the measurement only.
        with suppress(CannotConnect):
            if target_dsn is not None:
                with connect(target_dsn, autocommit=True) as target:
                    speed = measure_speed(source, target).bytes_per_s
    return Survey(
        database,
        [_surveyed(one, grants.get(one.name, ())) for one in found if one.is_table],
        [one.name for one in found if not one.is_table],
        speed or ASSUMED_BYTES_PER_S,
        speed is not None,
    )


def _surveyed(table: ListedTable, grants: Sequence[str]) -> SurveyedTable:
    secrets = [column.name for column in table.columns if looks_secret(column)]
    in_key = [name for name in secrets if name in table.key]
    if grants:
        refusal = f"the user may not read it; run {'; '.join(grants)}"
    elif in_key:
        refusal = f"{in_key[0]} looks like a secret and is part of the key, so it cannot be masked"
    else:
        return SurveyedTable(table, tuple(secrets))
    return SurveyedTable(table, refusal=refusal)


def looks_secret(column: ListedColumn) -> bool:
    """Return whether a column may hold secrets, by the words of its name and by its type."""
    if not column.type.rpartition(".")[2].startswith(SECRET_TYPES):
        return False
    words = [word.lower() for word in _WORDS.findall(column.name)]
    return not SECRET_WORDS.isdisjoint(words) or any(
        pair in SECRET_PAIRS for pair in pairwise(words)
    )
