"""The sample's input for a fresh machine, made once and only if absent.

- `source`: daily bars in the source database, conversations in a worker's outbox.
- `gym_system`: a gym's SQLite database to back up.

Only embedded databases are written to, never those of the settings. Loading, publishing and
backing up the sample do not belong here; the platform does it as with any other input.
"""

from replica_platform.app.settings import Settings


def prepare(settings: Settings) -> None:
    """Create the sample's input where it is missing; existing files and tables stay.

    A configured database receives no sample input.
    """
    # Imported late: pandas comes with it, which loading the definitions can do without.
    from replica_platform.defs.sample.input.gym_system import sample_gym_system
    from replica_platform.defs.sample.input.source import append_conversations, fill_source

    if settings.databases["fds"] is None:
        fill_source(settings.source)
    if settings.databases["warehouse"] is None:
        append_conversations(settings.outbox_dir / "worker-1.db")
    sample_gym_system(settings.data_dir / "sample" / "gym_system.db")
