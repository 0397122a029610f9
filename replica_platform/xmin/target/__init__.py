"""The target server: its tables, what is written to them, and what a sync remembers there.

Nothing here reads the source; statements run in the caller's transaction. In the order of the
story:

- `schemas`: the sync's schema, and the schemas of target tables.
- `watermark`: what a finished sync remembers, and the lock on a target table.
- `owner`: the one source table that a target table belongs to.
- `widening`: which type may become which without losing a value.
- `types`: user-defined types that the source's columns need.
- `tables`: target and staging tables, inspected, created and adopted.
- `columns`: the target's columns, kept in step with the source's.
- `write`: staged rows written into the target table.
- `proof`: when each table's content was last proven equal.
- `sync_status`: when each table was last synced.
"""
