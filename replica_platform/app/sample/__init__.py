"""The sample platform: input for a fresh machine, made once and only if absent.

- `prepare`: daily bars in the source database, conversations in a worker's outbox.
- `gym_system`: a gym's SQLite database to back up.

Only the embedded source database is written to, never one of the settings. Loading, publishing
and backing up the sample do not belong here; the platform does it as with any other input.
"""
