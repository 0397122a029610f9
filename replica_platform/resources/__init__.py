"""What assets, checks, schedules and sensors are given at run time; no work is done here.

`definitions.build_defs` makes them from the settings: `platform` (folders and limits), `postgres`
(a database by its DSN), `master` and `store` (the DuckDB file and its published generations).
"""
