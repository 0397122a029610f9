"""The `replica` command: options, output and exit codes; the work is done by engines and `app`.

`main` is the program and lists the commands, `platform`, `replica`, `warehouse`, `outbox` and
`backups` hold those of one pillar each, `common` what commands share, `terminal` how results are
printed. Engines and Dagster are imported when a command runs, so that `--help` stays quick.
"""
