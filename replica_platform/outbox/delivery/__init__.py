"""Delivery of outbox files to Postgres; the only part of the engine that loads the driver.

What concerns the file alone (`queue`, `breaker`, `inspect`) belongs above. In the order of the
story:

- `drain`: deliver what waits; `watch`: drain as records come.
- `target`: the connection to Postgres, its session and the lock of a file.
- `statements`: the SQL that a delivery runs; `kinds`: a kind's own table.
- `ledger`: the target's proof of what it has of a file, and the comparison with the file.
- `isolate`: one batch in one transaction, with its bad rows set aside.
- `failures`: what an error of Postgres means for the rows.
- `reconcile`: find and resend what the target no longer has; `prune`: delete delivered rows.
- `refill`: rebuild a kind's own table from the records.
- `doctor`: check what the durability depends on.
"""
