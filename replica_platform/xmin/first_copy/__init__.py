"""First copies: a table is loaded range by range, at one snapshot of the source or at several.

To change ...

- what is remembered of a copy that has begun, and why its parts fit together: `ledger`;
- how long a snapshot is held, and which ranges are loaded at it: `load`.
"""
