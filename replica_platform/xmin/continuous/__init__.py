"""Continuous syncs: a group is synced again and again, over sessions that are kept.

What one sync does is not decided here.

- `lag`: how long changes take from their commit on the source until they are visible in the target.
- `loop`: the syncs, what is waited for between them, and what is reported.
"""
