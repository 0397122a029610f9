"""The command that proposes the `defs.yaml` for a database of yours."""

import os

import click

from replica_platform.cli.common import as_json_option
from replica_platform.cli.terminal import out, plain, print_json


@click.command()
@click.argument("source", metavar="DSN")
@click.option("--name", help="The name of the group; the database's when absent.")
@click.option("--schema", "schemas", multiple=True, help="Look at this schema only; repeatable.")
@click.option("--write", is_flag=True, help="Write the file; an existing one is not overwritten.")
@as_json_option
def adopt(
    source: str, name: str | None, schemas: tuple[str, ...], write: bool, as_json: bool
) -> int:
    """Propose the defs.yaml that syncs a database.

    DSN is a Postgres (`postgresql://…`), or the environment variable that holds its DSN. Only its
    catalog is read: keys, sizes, rights, columns that look like secrets.
    """
    from replica_platform.app.adopt import plain_name, proposal, write_proposal
    from replica_platform.app.launch import existing_databases, is_made
    from replica_platform.app.settings import Settings
    from replica_platform.xmin import survey

    settings = Settings()
    by_name = "://" not in source and "=" not in source and source in os.environ
    dsn = os.environ[source] if by_name else source
    with existing_databases(settings):
        has_target = settings.target_dsn is not None or is_made(settings)
        found = survey(dsn, settings.target if has_target else None, schemas=schemas)
    group = plain_name(name or found.database)
    given = settings.source_dsn
    is_default = given is not None and dsn == given.get_secret_value()
    variable = None if is_default else source if by_name else f"{group.upper()}_DSN"
    text = proposal(found, group, variable)
    file = write_proposal(text, group) if write else None
    if as_json:
        print_json({"sentence": found.sentence, "yaml": text, "file": file})
        return 0
    if file is None:
        click.echo(text)
    out.print(plain(found.sentence))
    for table in found.tables:
        if table.refusal:
            out.print(f"Not {plain(str(table.name))}: {plain(table.refusal)}.")
    if file is None:
        out.print(f"Nothing is written; --write makes {group}/defs.yaml among the definitions.")
        return 0
    out.print(f"Written to {file}; look it over.")
    if variable and variable not in os.environ:
        out.print(f"Set {variable} to the DSN in the environment or in .env, then `replica dev`.")
    return 0
