"""One writer, many readers, nothing lost: a Dagster data platform for DuckDB, Postgres and SQLite.

From the bottom up; each imports only what is listed above it:

- `core`: what every engine may use: errors, files, locks, disk space, Postgres, SQLite, reports.
- `market`, `replica`, `xmin`, `outbox`, `backup`: the engines. None knows another one or Dagster.
- `app`: settings, the embedded Postgres, the sample, launch, runs and health.
- `policies`, `metadata`, `resources`, `io_managers`, `components`, `defs`, `definitions`: the
  Dagster project.
- `cli`: the `replica` command.
"""
