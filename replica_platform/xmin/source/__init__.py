"""The source server: what is asked of its catalog and its transactions.

Nothing here copies rows or knows the target. In the order of the story:

- `catalog`: a table's columns, key, leaves and fingerprint.
- `projection`: a table reduced to the columns to copy, with masks in the place of values.
- `snapshot`: the session that locks the tables and holds the snapshot of a sync.
- `blocker`: the transaction that holds the watermark back.
- `drift`: what a changed definition means for the rows that were delivered.
- `timestamp`: the condition for reading by a timestamp column.
- `listing`: every table of a database with its comments and references, to choose from.
"""
